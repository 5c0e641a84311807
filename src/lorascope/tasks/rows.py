"""Rows, tasks and the checks that every row passes, whatever file or generator it came from."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from lorascope.core.errors import DataError, InputError
from lorascope.core.seeds import derive_seed

Kind = Literal["multiple_choice", "text", "completion", "chat"]
Style = Literal["question", "blank", "continuation"]


@dataclass(frozen=True)
class ChoiceRow:
    """A question with its choices; `answer` is the index of the correct one. `where` is file and line, for messages."""

    question: str
    choices: tuple[str, ...]
    answer: int
    where: str


@dataclass(frozen=True)
class TextRow:
    """A document."""

    text: str
    where: str


@dataclass(frozen=True)
class CompletionRow:
    """A prompt and the text that should follow it, joined as they are."""

    prompt: str
    completion: str
    where: str


@dataclass(frozen=True)
class ChatRow:
    """A conversation as (role, content) pairs; the last one is the assistant's and is the completion."""

    messages: tuple[tuple[str, str], ...]
    where: str


Row: TypeAlias = ChoiceRow | TextRow | CompletionRow | ChatRow


@dataclass(frozen=True)
class Task:
    """Rows by split, with the prompt they are asked with.

    Attributes:
        name: Known name, or the path it was read from.
        kind: What the rows are.
        splits: Rows by split name (``train``, ``validation``, ``test``), each at least one row.
        prompt: Name of the prompt, see `lorascope.tasks.PROMPTS`; only multiple choice is prompted.
        style: How prompt ``plain`` reads a row: a question to answer, a blank (``_``) to fill, or a text to continue.
        seed: Decides the worked examples of prompts 1 and 2.
        sources: Where the rows came from -> SHA-256 (files) or version (packages, hub).
    """

    name: str
    kind: Kind
    splits: Mapping[str, tuple[Row, ...]] = field(repr=False)
    prompt: str = "main"
    style: Style = "question"
    seed: int = 0
    sources: Mapping[str, str] = field(default_factory=dict)

    def rows(self, split: str, *, limit: int | None = None, seed: int = 0) -> list[Row]:
        """The rows of a split, or a random sample of them in their own order.

        Samples are nested: the first 50 drawn are among the first 100 drawn with the same seed.

        Args:
            split: Name of the split.
            limit: Largest number of rows; all by default.
            seed: Decides which rows a limit keeps.

        Returns:
            The rows.

        Raises:
            DataError: The task has no such split.
            InputError: The limit is below 1.
        """
        if split not in self.splits and "all" in self.splits:
            count = len(self.splits["all"])
            raise DataError(
                f"task '{self.name}' has {count} {'row' if count == 1 else 'rows'} in one file, none for split '{split}' "
                "(every tenth is test, every tenth validation, the rest train): give more rows, or a folder with "
                f"{split}.jsonl"
            )
        if split not in self.splits:
            raise DataError(
                f"task '{self.name}' has no split '{split}': it has {', '.join(self.splits)}; "
                f"add a file {split}.jsonl or choose another split"
            )
        rows = self.splits[split]
        return [rows[index] for index in sample_indices(len(rows), limit, seed)]


def sample_indices(count: int, limit: int | None, seed: int) -> list[int]:
    """Indices of a nested random sample, ascending; all of them when there is no limit or it is not reached."""
    if limit is not None and (isinstance(limit, bool) or limit < 1):
        raise InputError(f"limit {limit} leaves no rows: give a number of at least 1, or none for all rows")
    if limit is None or limit >= count:
        return list(range(count))
    order = np.random.default_rng(derive_seed(seed, "sample", count)).permutation(count)
    return sorted(int(index) for index in order[:limit])


_KEYS: dict[Kind, tuple[str, ...]] = {
    "multiple_choice": ("question", "choices", "answer"),
    "text": ("text",),
    "completion": ("prompt", "completion"),
    "chat": ("messages",),
}
FORMATS = " or ".join("{" + ", ".join(f'"{key}"' for key in keys) + "}" for keys in _KEYS.values())


def row_kind(values: Mapping[str, Any], where: str) -> Kind:
    """Which kind of row a mapping is, by its keys.

    Raises:
        DataError: It fits none; the message names the keys that are missing from the nearest kind.
    """
    for kind, keys in _KEYS.items():
        if all(key in values for key in keys):
            return kind
    best = max(_KEYS.values(), key=lambda keys: sum(key in values for key in keys) / len(keys))
    present = [key for key in best if key in values]
    if present:
        missing = " and ".join(f"'{key}'" for key in best if key not in values)
        raise DataError(f"{where}: key {missing} is missing beside '{present[0]}': a row is {FORMATS}")
    found = ", ".join(f"'{key}'" for key in values) or "no keys"
    raise DataError(f"{where}: unknown kind of row with {found}: a row is {FORMATS}")


def parse_row(values: Mapping[str, Any], kind: Kind, where: str) -> Row:
    """Check one mapping and build its row; unknown extra keys are ignored.

    Args:
        values: The mapping, as read from a file.
        kind: What it must be (every row of a task is of one kind).
        where: File and line, for messages.

    Returns:
        The row.

    Raises:
        DataError: The row is wrong; the message says where, what and how to mend it.
    """
    found = row_kind(values, where)
    if found != kind:
        raise DataError(f"{where}: a {found} row among {kind} rows: keep one kind of row in a task")
    if kind == "multiple_choice":
        return _choice_row(values, where)
    if kind == "text":
        return TextRow(_string(values["text"], "text", where), where)
    if kind == "completion":
        prompt = values["prompt"]
        if not isinstance(prompt, str):
            raise DataError(f"{where}: 'prompt' must be text, not {_type(prompt)}: write conversations as 'messages'")
        return CompletionRow(prompt, _string(values["completion"], "completion", where), where)
    return _chat_row(values["messages"], where)


def _choice_row(values: Mapping[str, Any], where: str) -> ChoiceRow:
    question = _string(values["question"], "question", where)
    choices = values["choices"]
    if isinstance(choices, np.ndarray):  # Parquet
        choices = choices.tolist()
    if isinstance(choices, str) or not isinstance(choices, Sequence):
        raise DataError(f"{where}: 'choices' must be a list of texts, not {_type(choices)}")
    if len(choices) < 2:
        raise DataError(f"{where}: {len(choices)} choices: a question needs at least 2")
    texts = tuple(_string(choice, f"choices[{index}]", where) for index, choice in enumerate(choices))
    answer = values["answer"]
    if isinstance(answer, np.integer):
        answer = int(answer)
    if isinstance(answer, bool) or not isinstance(answer, int):
        raise DataError(
            f"{where}: 'answer' is {answer!r} ({_type(answer)}): give the index of the correct choice as a whole "
            f"number from 0 to {len(texts) - 1}"
        )
    if not 0 <= answer < len(texts):
        raise DataError(
            f"{where}: answer {answer} is outside the {len(texts)} choices: indices count from 0, so give 0 to "
            f"{len(texts) - 1}"
        )
    return ChoiceRow(question, texts, answer, where)


def warn_of_repeated_choices(rows: Sequence[Row]) -> None:
    """Warn once if rows offer the same choice twice: they can be scored, but not told apart."""
    repeated = [row for row in rows if isinstance(row, ChoiceRow) and len(set(row.choices)) < len(row.choices)]
    if repeated:
        choices = repeated[0].choices
        twice = next(text for text in choices if choices.count(text) > 1)
        warnings.warn(
            f"{len(repeated)} of {len(rows)} rows offer a choice twice, the first at {repeated[0].where} "
            f"({twice[:40]!r}): a tie goes to the earlier choice",
            stacklevel=3,
        )


def _chat_row(messages: Any, where: str) -> ChatRow:
    if isinstance(messages, np.ndarray):
        messages = messages.tolist()
    if isinstance(messages, Sequence) and not isinstance(messages, str) and not messages:
        raise DataError(f"{where}: 'messages' is empty: give a 'user' and an 'assistant' message, or delete the row")
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        raise DataError(f'{where}: \'messages\' must be a list of {{"role", "content"}}, not {_type(messages)}')
    pairs = []
    for index, message in enumerate(messages):
        name = f"messages[{index}]"
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise DataError(f"{where}: {name} needs the keys 'role' and 'content'")
        pairs.append(
            (_string(message["role"], f"{name} role", where), _string(message["content"], f"{name} content", where))
        )
    if pairs[-1][0] != "assistant":
        raise DataError(
            f"{where}: the last message is from '{pairs[-1][0]}': end with the 'assistant' message to learn or score"
        )
    if len(pairs) == 1:
        raise DataError(f"{where}: 'messages' holds only the answer: put the 'user' message before it")
    return ChatRow(tuple(pairs), where)


def _string(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: '{name}' must be text, not {_type(value)}")
    if not value.strip():
        raise DataError(f"{where}: '{name}' is empty: fill it in or delete the row")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise DataError(f"{where}: '{name}' holds half a character (a lone surrogate): write it again as UTF-8")
    return value


def _type(value: Any) -> str:
    if value is None:
        return "null"
    names = {"str": "text", "list": "a list", "dict": "a mapping", "bool": "true/false", "int": "a number"}
    return names.get(type(value).__name__, type(value).__name__)
