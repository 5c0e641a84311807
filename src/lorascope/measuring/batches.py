"""Turning what a user has (a task, a data set, a loader, plain texts) into batches for a model."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate
from transformers import PreTrainedTokenizerBase

from lorascope.core.errors import InputError
from lorascope.tasks import PaddingCollator, Task, encode_task, pad_token_id
from lorascope.tasks.rows import parse_row, row_kind

Batch = dict[str, Any]


def make_batches(
    data: Any,
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    batch_size: int,
    pad_token: str | None = None,
    split: str = "test",
    limit: int | None = None,
    max_length: int | None = None,
    overlong: str = "error",
) -> tuple[Iterable[Batch], dict[str, int]]:
    """Batches from any of the forms that `lorascope.measure` takes.

    Args:
        data: A `Task`; a DataLoader or other iterable of batches; a sequence or data set of features (``input_ids``,
            ``pixel_values``, ...), of rows (``text``, ``prompt``/``completion``, ``messages``,
            ``question``/``choices``/``answer``) or of strings.
        tokenizer: Needed for tasks, rows and strings.
        batch_size: Samples in a batch, where batches are made here.
        pad_token: Token to pad with where the tokenizer has none.
        split: Split of a task.
        limit: Number of samples at most, where batches are made here.
        max_length: Longest sample in tokens.
        overlong: ``error``, ``drop`` or ``truncate`` for longer ones.

    Returns:
        The batches, and what was counted while encoding (``truncated``, ``dropped``).

    Raises:
        InputError: There is no data, or it is of a form that is not known, or the tokenizer is missing.
    """
    for name, value in (("batch_size", batch_size), ("limit", limit)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise InputError(f"{name}={value!r}: give a whole number of at least 1")
    if isinstance(data, DataLoader):
        return _plain_loader(data), {}
    if isinstance(data, Task):
        return _task_batches(data, tokenizer, batch_size, pad_token, split, limit, max_length, overlong)
    if isinstance(data, str | Mapping) or not isinstance(data, Iterable | Dataset):
        raise InputError(
            f"data of type {type(data).__name__}: give a DataLoader, a data set, a list of texts, rows or batches, "
            "or a task"
        )
    items, first = _peek(data)
    if isinstance(first, Mapping) and not _is_batch(first) and ("input_ids" in first or "pixel_values" in first):
        return _feature_batches(items, tokenizer, batch_size, pad_token, limit), {}
    if isinstance(first, str) or (
        isinstance(first, Mapping) and not any(isinstance(v, torch.Tensor) for v in first.values())
    ):
        task = _task_from_rows(items, split, limit)
        return _task_batches(task, tokenizer, batch_size, pad_token, split, limit, max_length, overlong)
    if not isinstance(first, Mapping):
        raise InputError(f"data items of type {type(first).__name__}: give mappings of the model's inputs, or strings")
    return _Replay(data, items), {}


class _Replay:
    """The items of an iterable whose first one was already looked at, with its length where that is known."""

    def __init__(self, data: Any, items: Iterator[Any]) -> None:
        self._items = items
        self._length = len(data) if isinstance(data, Sized) else None

    def __iter__(self) -> Iterator[Batch]:
        return self._items

    def __length_hint__(self) -> int:
        return self._length or 0


def _peek(data: Any) -> tuple[Iterator[Any], Any]:
    iterator = iter(data) if isinstance(data, Iterable) else (data[i] for i in range(len(data)))
    try:
        first = next(iterator)
    except StopIteration:
        raise InputError("no data: the data set, list or loader is empty") from None
    return itertools.chain([first], iterator), first


def _is_batch(item: Mapping[str, Any]) -> bool:
    ids, pixels = item.get("input_ids"), item.get("pixel_values")
    return (isinstance(ids, torch.Tensor) and ids.dim() == 2) or (
        isinstance(pixels, torch.Tensor) and pixels.dim() >= 4
    )


def _plain_loader(loader: DataLoader[Any]) -> DataLoader[Any]:
    """The user's own loader behind one that accelerate prepared: sharding is done here, without repeated samples."""
    base = getattr(loader, "base_dataloader", loader)
    if not isinstance(base, DataLoader):
        raise InputError(f"loader of type {type(loader).__name__}: give the DataLoader as it was before prepare()")
    if base is not loader and isinstance(base.dataset, Sized):
        # accelerate replaces the sampler of the prepared loader only; the base still walks the whole data set.
        return base
    return loader


def _task_from_rows(items: Iterator[Any], split: str, limit: int | None) -> Task:
    values = [{"text": item} if isinstance(item, str) else item for item in itertools.islice(items, limit)]
    kind = row_kind(values[0], "row 1")
    rows = tuple(parse_row(value, kind, f"row {number}") for number, value in enumerate(values, start=1))
    return Task(name="data", kind=kind, splits={split: rows})


def _need_tokenizer(tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    if tokenizer is None:
        raise InputError("texts and rows need a tokenizer: pass tokenizer=AutoTokenizer.from_pretrained(...)")
    return tokenizer


def _task_batches(
    task: Task,
    tokenizer: PreTrainedTokenizerBase | None,
    batch_size: int,
    pad_token: str | None,
    split: str,
    limit: int | None,
    max_length: int | None,
    overlong: str,
) -> tuple[Iterable[Batch], dict[str, int]]:
    tokenizer = _need_tokenizer(tokenizer)
    encoded = encode_task(task, tokenizer, split, limit=limit, max_length=max_length, overlong=overlong)
    counts = {key: value for key, value in encoded.counts.items() if key in ("truncated", "dropped")}
    return _collated(encoded.features, PaddingCollator(pad_token_id(tokenizer, pad_token)), batch_size), counts


def _feature_batches(
    items: Iterator[Any],
    tokenizer: PreTrainedTokenizerBase | None,
    batch_size: int,
    pad_token: str | None,
    limit: int | None,
) -> Iterable[Batch]:
    features = list(itertools.islice(items, limit))
    if "pixel_values" in features[0]:
        return _collated(features, default_collate, batch_size)
    sequences = [feature["input_ids"] for feature in features]
    if np.ndim(sequences[0]) != 1:
        raise InputError(
            f"input_ids of a row have {np.ndim(sequences[0])} dimensions: give each row its own list of numbers, or a batch "
            "as tensors of shape (rows, tokens)"
        )
    if tokenizer is None and len({len(sequence) for sequence in sequences}) > 1:
        raise InputError("features of different lengths need a tokenizer to pad them: pass tokenizer=...")
    pad_id = pad_token_id(tokenizer, pad_token) if tokenizer is not None else 0
    collate = PaddingCollator(pad_id)
    if any("attention_mask" in feature for feature in features):
        return _collated(features, collate, batch_size)
    return _collated(features, lambda rows: _without_invented_mask(rows, collate(rows)), batch_size)


def _without_invented_mask(rows: Sequence[Any], batch: Batch) -> Batch:
    """A batch of rows that brought no mask and needed no padding: the rows may hold padding of the user's own."""
    if len({len(row["input_ids"]) for row in rows}) == 1:
        del batch["attention_mask"]
    return batch


def _collated(features: Sequence[Any], collate: Any, batch_size: int) -> DataLoader[Any]:
    # A list is a data set to torch: it has a length and an index.
    return DataLoader(features, batch_size=batch_size, shuffle=False, collate_fn=collate)  # type: ignore[arg-type]
