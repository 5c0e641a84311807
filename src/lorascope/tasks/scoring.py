"""Log-likelihoods of continuations, in nats: the choices of a question share one pass over their common prefix.

`score_choices` runs the prefix of each question once and continues from its key-value cache for every choice;
`score_pairs` runs every (context, continuation) pair whole. They agree to rounding; the second serves models without
such a cache, and as the reference.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lorascope.tasks.encode import Pair

SLACK = 4
"""Questions whose shared prefixes differ by up to this many tokens go through together."""
_LOGIT_ELEMENTS = 2**26  # 256 MiB of float32 logits at once


def score_pairs(
    model: torch.nn.Module,
    pairs: Sequence[Pair],
    *,
    batch_size: int,
    pad_id: int,
    advance: Callable[[int], object] = lambda rows: None,
) -> list[float]:
    """Log-likelihood of each continuation given its context: sum of ln p over the continuation's tokens.

    Args:
        model: A causal language model in evaluation mode.
        pairs: (context, continuation) token ids; at least one token each.
        batch_size: Rows in a forward pass (fewer for long rows and large vocabularies).
        pad_id: Fills rows on the right, where nothing attends to it.
        advance: Called with the number of rows done, for progress bars.

    Returns:
        One number a pair, in nats, at most 0.
    """
    scores = [0.0] * len(pairs)
    order = sorted(range(len(pairs)), key=lambda index: (-len(pairs[index][0]) - len(pairs[index][1]), index))
    while order:
        longest = sum(map(len, pairs[order[0]]))
        size = max(1, min(batch_size, _LOGIT_ELEMENTS // (longest * _vocabulary(model))))
        chosen, order = order[:size], order[size:]
        rows = [(pairs[index][0] + pairs[index][1])[:-1] for index in chosen]
        keep = max(len(row) for row in rows) - min(len(pairs[index][0]) - 1 for index in chosen)
        logits = _forward(model, rows, pad_id, keep=keep).logits
        offset = max(len(row) for row in rows) - logits.shape[1]
        spans = [(len(pairs[index][0]) - 1 - offset, pairs[index][1]) for index in chosen]
        for index, score in zip(chosen, _continuation_scores(logits, list(range(len(rows))), spans), strict=True):
            scores[index] = score
        advance(len(chosen))
    return scores


def score_choices(
    model: torch.nn.Module,
    questions: Sequence[Sequence[Pair]],
    *,
    batch_size: int,
    pad_id: int,
    advance: Callable[[int], object] = lambda questions: None,
    use_cache: bool = True,
) -> list[list[float]]:
    """Log-likelihood of every choice of every question; see `score_pairs`.

    Questions are sorted by the number of tokens that their choices share. A group of them, cut to the shortest shared
    prefix of the group, goes through the model once without padding; each choice then continues from a copy of the
    cache with what is left of its prompt and its own tokens.

    Args:
        model: A causal language model in evaluation mode.
        questions: For each question, one (context, continuation) pair a choice.
        batch_size: Questions in a forward pass.
        pad_id: Fills rows on the right, where nothing attends to it.
        advance: Called with the number of questions done.
        use_cache: False runs every pair whole.

    Returns:
        One list a question, in nats.
    """
    scores: list[list[float]] = [[] for _ in questions]
    shared = [_shared_length(pairs) for pairs in questions]
    plain = [index for index in range(len(questions)) if not use_cache or shared[index] == 0]
    waiting = sorted(set(range(len(questions))) - set(plain), key=lambda index: (-shared[index], index))
    while waiting:
        floor = shared[waiting[0]] - SLACK
        chosen = [index for index in waiting[:batch_size] if shared[index] >= floor]
        result = _score_group(model, [questions[index] for index in chosen], shared[chosen[-1]], pad_id)
        if result is None:  # the model has no cache that can be copied
            plain += waiting
            break
        waiting = waiting[len(chosen) :]
        for index, values in zip(chosen, result, strict=True):
            scores[index] = values
        advance(len(chosen))
    for start in range(0, len(plain), batch_size):
        part = plain[start : start + batch_size]
        flat = [pair for index in part for pair in questions[index]]
        flat_scores = iter(score_pairs(model, flat, batch_size=batch_size * 4, pad_id=pad_id))
        for index in part:
            scores[index] = [next(flat_scores) for _ in questions[index]]
        advance(len(part))
    return scores


def _shared_length(pairs: Sequence[Pair]) -> int:
    """Tokens that all choices begin with, short of the last token before anything is scored."""
    rows = [(context + continuation)[:-1] for context, continuation in pairs]
    same = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False)))
    return min(same, min(len(context) for context, _ in pairs) - 1)


def _score_group(
    model: torch.nn.Module, questions: Sequence[Sequence[Pair]], shared: int, pad_id: int
) -> list[list[float]] | None:
    """Score questions that go through together; None if the model gives no cache that can be copied."""
    prefixes = [pairs[0][0][:shared] for pairs in questions]
    output = _forward(model, prefixes, pad_id, keep=1, use_cache=True)
    cache = getattr(output, "past_key_values", None)
    if type(cache) is not DynamicCache or any(
        type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers
    ):
        return None
    tails: dict[tuple[int, tuple[int, ...]], int] = {}  # equal tails (one-token choices) run once
    rows: list[int] = []
    spans: list[tuple[int, list[int]]] = []
    for number, pairs in enumerate(questions):
        for context, continuation in pairs:
            tail = tuple((context + continuation)[shared:-1])
            rows.append(tails.setdefault((number, tail), len(tails)))
            spans.append((len(context) - 1 - shared, continuation))
    longest = max(len(tail) for _, tail in tails)
    size = max(1, _LOGIT_ELEMENTS // (longest * _vocabulary(model)))
    keys = list(tails)
    scores = [0.0] * len(rows)
    for start in range(0, len(keys), size):
        part = keys[start : start + size]
        last = start + size >= len(keys)
        copied = cache if last else _copy(cache)
        copied.batch_select_indices(torch.tensor([number for number, _ in part], device=_device(model)))
        logits = _forward(model, [list(tail) for _, tail in part], pad_id, cache=copied, past=shared).logits
        here = [index for index, row in enumerate(rows) if start <= row < start + size]
        values = _continuation_scores(logits, [rows[index] - start for index in here], [spans[index] for index in here])
        for index, value in zip(here, values, strict=True):
            scores[index] = value
    values_left = iter(scores)
    return [[next(values_left) for _ in pairs] for pairs in questions]


def _copy(cache: DynamicCache) -> DynamicCache:
    """A copy whose layers can be changed; selecting rows makes new tensors, so that none need copying here."""
    import copy

    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    return copied


def _forward(
    model: torch.nn.Module,
    rows: Sequence[list[int]],
    pad_id: int,
    *,
    keep: int | None = None,
    use_cache: bool = False,
    cache: DynamicCache | None = None,
    past: int = 0,
) -> Any:
    """One forward pass of rows padded on the right; `keep` asks for the last logits only where the model can."""
    length = max(len(row) for row in rows)
    ids = torch.tensor([row + [pad_id] * (length - len(row)) for row in rows], device=_device(model))
    mask = torch.tensor([[1] * (past + len(row)) + [0] * (length - len(row)) for row in rows], device=_device(model))
    options: dict[str, Any] = {"use_cache": use_cache or cache is not None}
    if cache is not None:
        options["past_key_values"] = cache
    if keep is not None and _keeps_logits(model):
        options["logits_to_keep"] = keep
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, **options)


def _continuation_scores(logits: Tensor, rows: list[int], spans: list[tuple[int, list[int]]]) -> list[float]:
    """Sum of ln p of the tokens of each span, whose first token is predicted at the span's position of its row."""
    device = logits.device
    row = torch.tensor([r for r, (_, ids) in zip(rows, spans, strict=True) for _ in ids], device=device)
    column = torch.tensor([start + offset for start, ids in spans for offset in range(len(ids))], device=device)
    target = torch.tensor([token for _, ids in spans for token in ids], device=device)
    owner = torch.tensor([index for index, (_, ids) in enumerate(spans) for _ in ids], device=device)
    needed = logits[row, column].float()
    values = needed.gather(1, target[:, None])[:, 0] - needed.logsumexp(dim=-1)
    totals = torch.zeros(len(spans), dtype=torch.float64, device=device).index_add_(0, owner, values.double())
    return [float(total) for total in totals.tolist()]


def _base(model: torch.nn.Module) -> torch.nn.Module:
    """The transformers model inside an adapter's or a data-parallel wrapper."""
    if hasattr(model, "get_base_model"):
        return model.get_base_model()  # type: ignore[no-any-return,operator]
    return model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model


def _keeps_logits(model: torch.nn.Module) -> bool:
    return "logits_to_keep" in inspect.signature(_base(model).forward).parameters


def _device(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device


def _vocabulary(model: torch.nn.Module) -> int:
    base = _base(model)
    return int(base.config.get_text_config().vocab_size) if isinstance(base, PreTrainedModel) else 2**16
