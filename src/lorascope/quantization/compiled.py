"""The search of `lorascope.quantization.events` as one compiled loop: several times quicker on a processor, the same codes
(of two shifts that are equally good to the last bit it may take the other).

Needs numba (``pip install "lorascope[quantize]"``), which takes a few seconds to compile it, once a machine; what it made is
kept beside this file or in the user's cache folder.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, from_numpy

from lorascope.quantization.search import Candidates, plogp

_PAYS_BACK = 2**22

_LOCK = threading.Lock()
_searched = 0


def is_quicker(weights: int) -> bool:
    """Whether to search so many weights by the compiled loop: once a process has had enough of them to pay for loading it.

    Example:
        >>> is_quicker(64)  # doctest: +SKIP
        False
    """
    global _searched
    with _LOCK:
        _searched += weights
        return _searched >= _PAYS_BACK and _compiled() is not None


def best_shift(candidates: Candidates, objective: str) -> tuple[Int[Tensor, " blocks"], Int[Tensor, "blocks size"]]:
    """What `lorascope.quantization.events.best_shift` gives, for tensors on a processor; only after `is_quicker`."""
    made = _compiled()
    assert made is not None
    return _run(made, candidates, objective == "entropy")


@functools.cache
def _compiled() -> Callable[..., None] | None:
    """The loop, compiled for the types that it is called with; None where numba is missing or does not work."""
    try:
        import numba
    except (ImportError, SystemError, OSError):  # numba names versions of numpy that it does not take in this way
        return None
    options = {"nogil": True, "error_model": "numpy"}
    plain = inspect.unwrap(search_blocks)
    try:
        made: Callable[..., None] = numba.njit(cache=True, **options)(plain)
    except RuntimeError:  # no folder to keep it in
        made = numba.njit(**options)(plain)
    # Compiled here, before threads would each do it.
    rows, one = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    _run(made, Candidates(rows, rows, rows, one, torch.tensor([-1.0, 1.0]), torch.zeros(1)), True)
    return made


def _run(
    search: Callable[..., None], candidates: Candidates, by_entropy: bool
) -> tuple[Int[Tensor, " blocks"], Int[Tensor, "blocks size"]]:
    blocks, size = candidates.ordered.shape
    best, codes = np.empty(blocks, dtype=np.int64), np.empty((blocks, size), dtype=np.int32)
    arrays = (candidates.ordered, candidates.shift, candidates.scale, candidates.valid, candidates.values)
    search(
        *(array.contiguous().numpy() for array in (*arrays, candidates.middles, plogp(size))), by_entropy, best, codes
    )
    return from_numpy(best), from_numpy(codes)


def search_blocks(
    ordered: Any,
    shift: Any,
    scale: Any,
    valid: Any,
    values: Any,
    middles: Any,
    table: Any,
    by_entropy: bool,
    best: Any,
    codes: Any,
) -> None:
    """Block by block: which weights pass which border at which candidate, and then one walk over the candidates.

    Args:
        ordered: Weights of each block, rising, of (blocks, size), float32.
        shift: Of (blocks, candidates), float32, about evenly rising.
        scale: Likewise.
        valid: Which candidates count.
        values: The code book.
        middles: Its borders.
        table: c log2 c, in whole numbers.
        by_entropy: Highest entropy first, then lowest error; else lowest error.
        best: Index of the best candidate of each block, which is written here.
        codes: Its codes, likewise.
    """
    blocks, size = ordered.shape
    width, borders = shift.shape[1], middles.size
    at = np.empty(size * borders, dtype=np.int64)
    border, weight, order = np.empty_like(at), np.empty_like(at), np.empty_like(at)
    by_high, by_low = 1 / (1 - middles.astype(np.float64)), 1 / (1 + middles.astype(np.float64))
    first, counts, begin = np.empty(size, np.int64), np.empty(borders + 1, np.int64), np.empty(width + 1, np.int64)
    for b in range(blocks):
        x, d, s = ordered[b], shift[b], scale[b]
        centre, bottom, top = np.float64(x[size // 2]), np.float64(x[0]), np.float64(x[size - 1])
        by_step = (width - 1) / (np.float64(d[width - 1]) - np.float64(d[0]))
        total = total_square = products = plain = squares = 0.0
        counts[:] = 0
        begin[:] = 0
        events = low = high = 0
        for i in range(size):
            while low < borders and d[0] + s[0] * middles[low] < x[i]:
                low += 1
            while high < borders and d[width - 1] + s[width - 1] * middles[high] < x[i]:
                high += 1
            first[i] = low
            counts[low] += 1
            value, away = np.float64(values[low]), np.float64(x[i]) - centre
            total += away
            total_square += away * away
            products += value * away
            plain += value
            squares += value * value
            for k in range(low - 1, high - 1, -1):
                # In exact numbers a border is the higher of two straight lines for a middle above 0, else the lower one.
                m = np.float64(middles[k])
                from_high, from_low = (x[i] - m * top) * by_high[k], (x[i] + m * bottom) * by_low[k]
                there = min(from_high, from_low) if m > 0 else max(from_high, from_low)
                guess = np.ceil((there - d[0]) * by_step)
                c = int(guess) if 1.0 <= guess <= width - 1.0 else 1
                while c > 1 and d[c - 1] + s[c - 1] * middles[k] >= x[i]:
                    c -= 1
                while c < width - 1 and d[c] + s[c] * middles[k] < x[i]:
                    c += 1
                at[events], border[events], weight[events] = c, k, i
                begin[c + 1] += 1
                events += 1
        # Events in the order of candidates; those of one weight stay in the order of falling borders.
        for c in range(width):
            begin[c + 1] += begin[c]
        for e in range(events):
            order[begin[at[e]]] = e
            begin[at[e]] += 1
        score = np.int64(0)
        for k in range(borders + 1):
            score += table[counts[k]]
        done, least, lowest, found = 0, np.inf, np.int64(0), -1
        c = 0
        while c < width:
            while done < events and at[order[done]] == c:
                e = order[done]
                k, away = border[e], np.float64(x[weight[e]]) - centre
                lower, upper = np.float64(values[k]), np.float64(values[k + 1])
                score -= table[counts[k]] + table[counts[k + 1]]
                counts[k] += 1
                counts[k + 1] -= 1
                score += table[counts[k]] + table[counts[k + 1]]
                products += (lower - upper) * away
                plain += lower - upper
                squares += lower * lower - upper * upper
                done += 1
            here, c = c, at[order[done]] if done < events else width
            if by_entropy and found >= 0 and score > lowest:
                continue
            for same in range(here, c):  # the same codes for all of these
                if not valid[b, same]:
                    continue
                offset, wide = np.float64(d[same]) - centre, np.float64(s[same])
                error = total_square + offset * (size * offset - 2 * total)
                error += wide * (2 * (offset * plain - products) + wide * squares)
                if found < 0 or (by_entropy and score < lowest) or error < least:
                    found, lowest = same, score
                    least = error if error == error else np.inf
        best[b] = found
        for i in range(size):
            codes[b, i] = first[i]
        for e in range(events):
            if at[e] <= found:
                codes[b, weight[e]] -= 1
