"""All shifts of a block at once: where, on the way from the lowest to the highest, a weight passes a border.

Raising the shift raises every border between codes, so that a weight only ever falls to lower codes, and few do: about one
event a weight for the paper's window. Each event changes two counts, and with them the entropy and three sums that give the
squared error. Adding events up over the candidates replaces quantising the block for each.

The arrays are flat and of 32 bits, and searches are without branches, which is what makes this quick on a processor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lorascope.quantization.search import Candidates, best_of, code_counts, plogp


@dataclass(frozen=True)
class Events:
    """Weights that pass a border, one entry each, all int32.

    Attributes:
        block: Row of the block.
        weight: Place of the weight among all sorted weights of all blocks.
        border: The border that it passes, so that its code falls from ``border + 1`` to ``border``.
        here: Place, among all candidates of all blocks, of the first candidate with the border at or above the weight.
        first: Codes for the first candidate, of (blocks, size).
        last: Codes for the last one.
    """

    block: Int[Tensor, " events"]
    weight: Int[Tensor, " events"]
    border: Int[Tensor, " events"]
    here: Int[Tensor, " events"]
    first: Int[Tensor, "blocks size"]
    last: Int[Tensor, "blocks size"]


def best_shift(candidates: Candidates, objective: str) -> tuple[Int[Tensor, " blocks"], Int[Tensor, "blocks size"]]:
    """The shift with the highest entropy (equal entropies: the lowest squared error), or with the lowest error.

    Args:
        candidates: In about even steps, shifts rising, each with the scale that is the largest magnitude of the shifted
            weights; for a code book from -1 to 1.
        objective: ``"entropy"`` or ``"mse"``.

    Returns:
        Index of the best candidate of each block, of equally good ones the first; and its codes of the ordered weights.
    """
    events = find_events(candidates)
    wanted = best_of(candidates, entropy_scores(candidates, events) if objective == "entropy" else None)
    there = wanted.flatten().nonzero().squeeze(1)
    error = squared_errors(candidates, events, there)
    blocks, width = wanted.shape
    row = there // width
    least = torch.full((blocks,), torch.inf, dtype=torch.float64, device=there.device)
    least.scatter_reduce_(0, row, error, "amin")
    # Of equally good ones the first; where errors overflow, the first of all.
    place = torch.where(error == least.index_select(0, row), there, wanted.numel())
    first = torch.full((blocks,), wanted.numel(), dtype=torch.long, device=there.device)
    first.scatter_reduce_(0, row, place, "amin")
    passed = (events.here <= first.index_select(0, events.block)).int()
    codes = events.first.flatten().index_add(0, events.weight, passed, alpha=-1).view(events.first.shape)
    return first - torch.arange(blocks, device=there.device) * width, codes


def find_events(shifts: Candidates) -> Events:
    """Every passing of a border by a weight between the first and the last candidate."""
    blocks, width = shifts.shift.shape
    size, device = shifts.ordered.shape[1], shifts.ordered.device
    first = shifts.codes(0)
    passed = (first - shifts.codes(-1)).clamp_min_(0).flatten()
    weight = torch.repeat_interleave(passed).int()
    # A weight with code c passes the borders c - 1, c - 2, ... one after the other.
    top = first.flatten() + passed.cumsum(0, dtype=torch.int32) - passed - 1
    border = top.index_select(0, weight) - torch.arange(weight.numel(), dtype=torch.int32, device=device)
    block = torch.arange(blocks, dtype=torch.int32, device=device).repeat_interleave(size).index_select(0, weight)
    value, middle = shifts.ordered.flatten().index_select(0, weight), shifts.middles.index_select(0, border)

    def of_block(numbers: Tensor) -> Tensor:
        return numbers.contiguous().index_select(0, block)

    # A border is shift + scale * middle, where scale is the larger of high - shift and shift - low: of two straight lines
    # the higher one for middle > 0, else the lower one.
    sign = middle.sign()
    from_high = (value - of_block(shifts.ordered[:, -1]) * middle) / (1 - middle)
    from_low = (value + of_block(shifts.ordered[:, 0]) * middle) / (1 + middle)
    at = torch.minimum(sign * from_high, sign * from_low) * sign + (1 - sign.abs()) * value
    step = (shifts.shift[:, -1] - shifts.shift[:, 0]) / (width - 1)
    candidate = ((at - of_block(shifts.shift[:, 0])) / of_block(step)).ceil_().clamp_(1, width - 1).int()
    # Rounding may have led to a neighbour; further, where candidates that are stored alike make the steps uneven.
    row = block * width
    step_by = _correction(shifts, row, candidate, middle, value)
    candidate += step_by
    left = step_by.nonzero().squeeze(1)
    while left.numel():
        step_by = _correction(shifts, *(x.index_select(0, left) for x in (row, candidate, middle, value)))
        candidate.index_add_(0, left, step_by)
        left = left.index_select(0, step_by.nonzero().squeeze(1))
    return Events(block, weight, border, row + candidate, first, first - passed.view(first.shape))


def _correction(shifts: Candidates, row: Tensor, candidate: Tensor, middle: Tensor, value: Tensor) -> Tensor:
    """-1, 0 or 1 towards the first candidate, from the second on, with its border at or above the value."""
    width = shifts.shift.shape[1]
    back = (_borders(shifts, row + candidate - 1, middle) >= value) & (candidate > 1)
    ahead = (_borders(shifts, row + candidate, middle) < value) & (candidate < width - 1) & ~back
    return ahead.int() - back.int()


def _borders(
    shifts: Candidates, here: Int[Tensor, " events"], middle: Float[Tensor, " events"]
) -> Float[Tensor, " events"]:
    return shifts.shift.flatten().index_select(0, here) + shifts.scale.flatten().index_select(0, here) * middle


def entropy_scores(shifts: Candidates, events: Events) -> Int[Tensor, "blocks candidates"]:
    """Sum over the codes of c log2 c, less that of the first candidate: the lower, the higher the entropy.

    Whole numbers, so that equal histograms have equal scores.
    """
    size, levels = shifts.ordered.shape[1], shifts.values.numel()
    place = events.weight - events.block * size
    # How many weights are at or below each border for the first and the last candidate; below the lowest none, and all
    # below the highest. Any count in between lies between the two.
    ends = [
        torch.nn.functional.pad(code_counts(codes, levels).cumsum(dim=1, dtype=torch.int32), (1, 0)).flatten()
        for codes in (events.first, events.last)
    ]
    widest = int((ends[1] - ends[0]).max())
    middles = torch.nn.functional.pad(shifts.middles, (1, 1))
    row = events.block * (levels + 1) + events.border
    # Of the events of one candidate those of higher borders come first: the border above has moved, the one below has not.
    upto_above, upto_below = (
        _count(shifts, events, here, middles.index_select(0, events.border + to), ends, row + to, widest)
        for here, to in ((events.here, 2), (events.here - 1, 0))
    )
    table = plogp(size).to(shifts.ordered.device)
    gain = table[1:] - table[:-1]
    change = gain.index_select(0, (place - upto_below).clamp_(0, size - 1))
    change -= gain.index_select(0, (upto_above - place - 1).clamp_(0, size - 1))
    total = torch.zeros(shifts.shift.numel(), dtype=torch.int32, device=shifts.ordered.device)
    total.index_add_(0, events.here, change)
    return total.view(shifts.shift.shape).cumsum(dim=1, dtype=torch.int32)


def _count(
    shifts: Candidates,
    events: Events,
    here: Int[Tensor, " events"],
    middle: Float[Tensor, " events"],
    ends: list[Tensor],
    border: Int[Tensor, " events"],
    widest: int,
) -> Int[Tensor, " events"]:
    """How many weights of an event's block are at or below a border for a candidate, between two known counts."""
    size = shifts.ordered.shape[1]
    value = _borders(shifts, here, middle)
    flat = torch.nn.functional.pad(shifts.ordered.flatten(), (1, 0))
    start = events.block * size  # the place before the block's first weight
    low, high = (end.index_select(0, border) + start for end in ends)
    stride = 1 << widest.bit_length()
    while stride := stride // 2:
        at = torch.minimum(low + stride, high)
        low = torch.maximum(low, (flat.index_select(0, at) <= value).int() * at)
    return low - start


def squared_errors(shifts: Candidates, events: Events, there: Int[Tensor, " wanted"]) -> Float[Tensor, " wanted"]:
    """Squared error of some candidates, in float64.

    With v the values of the weights' codes, d the shift, s the scale: the sum of (w - d - s v)^2 needs the sums of v w, v
    and v^2, which change with the events.

    Args:
        shifts: All candidates.
        events: What happens between them.
        there: Places of the wanted ones among all candidates of all blocks.
    """
    ordered, level = shifts.ordered, shifts.values.double()
    size, width = ordered.shape[1], shifts.shift.shape[1]
    centre = ordered[:, size // 2].double().unsqueeze(1)
    centred = ordered.double() - centre
    start = level.index_select(0, events.first.flatten()).view(ordered.shape)
    row = there // width

    def summed(at_first: Tensor, change: Tensor) -> Tensor:
        total = torch.zeros(shifts.shift.numel(), dtype=torch.float64, device=ordered.device)
        total.index_add_(0, events.here, change)
        table = total.view(shifts.shift.shape)
        table[:, 0] += at_first.sum(dim=1)
        return table.cumsum(dim=1).flatten().index_select(0, there)

    moved = (level[:-1] - level[1:]).index_select(0, events.border)
    moved_square = (level[:-1].square() - level[1:].square()).index_select(0, events.border)
    products = summed(start * centred, centred.flatten().index_select(0, events.weight) * moved)
    plain = summed(start, moved)
    squares = summed(start.square(), moved_square)
    offset = shifts.shift.flatten().index_select(0, there).double() - centre.flatten().index_select(0, row)
    wide = shifts.scale.flatten().index_select(0, there).double()
    return (
        centred.square().sum(dim=1).index_select(0, row)
        + offset * (size * offset - 2 * centred.sum(dim=1).index_select(0, row))
        + wide * (2 * (offset * plain - products) + wide * squares)
    )
