"""Keeping the rows of a task whose prompt has some number of tokens."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from lorascope.core.errors import DataError, InputError
from lorascope.tasks.collate import IGNORE_INDEX
from lorascope.tasks.encode import encode_task, tokenize
from lorascope.tasks.prompts import EXAMPLES
from lorascope.tasks.rows import Row, Task, TextRow

_ANY = 10**9


@dataclass(frozen=True)
class Lengths:
    """What a filter by length kept.

    Attributes:
        low: Fewest tokens of a prompt.
        high: Most tokens of a prompt.
        kept: Rows that were kept, by split.
        dropped: Rows that were left out, by split.
    """

    low: int
    high: int
    kept: dict[str, int]
    dropped: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping of all fields."""
        return dataclasses.asdict(self)

    def sentence(self) -> str:
        """What was left out, for a reader."""
        parts = [f"{self.kept[name]} of {self.kept[name] + self.dropped[name]} {name}" for name in self.kept]
        return f"only rows whose prompt has {self.low} to {self.high} tokens count: {', '.join(parts)} rows"


def prompt_lengths(task: Task, tokenizer: PreTrainedTokenizerBase, split: str) -> list[int]:
    """Tokens in the prompt of each row of a split: what a model reads before the answer, special tokens included.

    Multiple choice: the prompt that the task's `prompt` writes, with its worked example if it has one (with choices
    filled into a sentence: up to the end of the correct one). Chat: everything before the last answer, as the chat template
    writes it. Text has no prompt: the tokens of the document.

    Args:
        task: The task.
        tokenizer: The model's tokenizer.
        split: Name of the split.

    Returns:
        One number a row, in the order of the rows.

    Raises:
        DataError: The task has no such split, or a row cannot be encoded.
    """
    if task.kind == "text":
        rows = [row for row in task.rows(split) if isinstance(row, TextRow)]
        return [len(tokenize(tokenizer, row.text, special=False)) for row in rows]
    encoded = encode_task(task, tokenizer, split, max_length=_ANY)
    return [next(i for i, label in enumerate(f["labels"]) if label != IGNORE_INDEX) for f in encoded.features]


def length_bins(task: Task, tokenizer: PreTrainedTokenizerBase, count: int = 3) -> list[tuple[int, int]]:
    """Cut the lengths of a task's prompts into bins that hold about as many train rows each.

    For tasks whose prompts do not reach the paper's bins of 100 tokens.

    Args:
        task: The task, with the splits ``train`` and ``test``.
        tokenizer: The model's tokenizer.
        count: Bins, at least 2.

    Returns:
        Lowest and highest number of tokens of each bin, both included, from the shortest to the longest prompt. Fewer than
        ``count`` where prompts differ too little in length; none where no two bins hold a train and a test row each.

    Raises:
        InputError: ``count`` is below 2.
        DataError: The task has no such split, or a row cannot be encoded.

    Example:
        >>> length_bins(load_task("towns"), tokenizer)  # doctest: +SKIP
        [(21, 22), (23, 23), (24, 29)]
    """
    if count < 2:
        raise InputError(f"count {count} must be at least 2: one bin is the whole task")
    train, test = (sorted(prompt_lengths(task, tokenizer, split)) for split in ("train", "test"))
    below = {level: bisect.bisect_right(train, level) for level in sorted(set(train))[:-1]}
    ends = {
        min(below, key=lambda level: abs(below[level] - len(train) * part / count)) for part in range(1, count) if below
    }
    edges = [min(train[0], test[0]) - 1, *sorted(ends), max(train[-1], test[-1])]
    bins = [(low + 1, high) for low, high in itertools.pairwise(edges) if low < high]
    full = [(low, high) for low, high in bins if all(any(low <= n <= high for n in split) for split in (train, test))]
    return full if len(full) > 1 else []


def with_length(
    task: Task, tokenizer: PreTrainedTokenizerBase, low: int, high: int, *, splits: Sequence[str] | None = None
) -> tuple[Task, Lengths]:
    """Keep the rows whose prompt has from ``low`` to ``high`` tokens, both included.

    Worked examples of prompts are still drawn from all train rows, so that a row keeps the prompt it was counted by.

    Args:
        task: The task.
        tokenizer: The model's tokenizer.
        low: Fewest tokens, at least 1.
        high: Most tokens.
        splits: Splits to look at, each of which must keep a row; the others are left out of the task. By default all, and
            those that keep none are left out.

    Returns:
        The task with the rows that are left, and how many were kept and left out.

    Raises:
        InputError: ``low`` and ``high`` are no range.
        DataError: No row is left.

    Example:
        >>> task, kept = with_length(load_task("towns"), tokenizer, 1, 100)  # doctest: +SKIP

    References:
        The bins 1-100, 101-200 and 201-300 of arXiv 2501.03152.
    """
    if not 1 <= low <= high:
        raise InputError(f"length {low}-{high} is no range of tokens: give the lowest and the highest, such as 1-100")
    left: dict[str, tuple[Row, ...]] = {}
    kept: dict[str, int] = {}
    dropped: dict[str, int] = {}
    seen: list[int] = []
    for split in [name for name in task.splits if name != EXAMPLES] if splits is None else splits:
        lengths = prompt_lengths(task, tokenizer, split)
        seen += lengths
        chosen = tuple(row for row, length in zip(task.splits[split], lengths, strict=True) if low <= length <= high)
        if not chosen and splits is not None:
            raise _nothing(task.name, f" of split '{split}'", low, high, lengths)
        kept[split], dropped[split] = len(chosen), len(lengths) - len(chosen)
        if chosen:
            left[split] = chosen
    if not left:
        raise _nothing(task.name, "", low, high, seen)
    examples = task.splits.get(EXAMPLES) or task.splits.get("train")
    if examples and task.kind == "multiple_choice":
        left[EXAMPLES] = examples
    return dataclasses.replace(task, splits=left), Lengths(low, high, kept, dropped)


def _nothing(task: str, where: str, low: int, high: int, lengths: Sequence[int]) -> DataError:
    return DataError(
        f"task '{task}': no row{where} has a prompt of {low} to {high} tokens (they have {min(lengths)} to {max(lengths)}): "
        "give another --length"
    )
