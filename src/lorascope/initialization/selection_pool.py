"""The pool that rows are chosen from: rows as they were written, with or without labels, each different row once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lorascope.core.errors import DataError, InputError
from lorascope.core.files import sha256_of
from lorascope.tasks import ChatRow, ChoiceRow, CompletionRow, Row, Task, load_task
from lorascope.tasks.files import SUFFIXES, find_files, read_mappings
from lorascope.tasks.rows import Kind, parse_row, row_kind

PLACEHOLDER = " x"
"""Stands where the answer of a row without one will be: a word of its own, so as not to melt into the prompt's end."""

SPLIT = "pool"


@dataclass(frozen=True)
class Pool:
    """Rows to choose from.

    Attributes:
        task: The different rows, in split ``pool``; unlabelled ones hold a placeholder where the label will be.
        lines: Each of them as one line of JSON, as it was written.
        labelled: Whether each has its label.
        indices: Place of each among the rows that were read, from 0.
        duplicates: Rows left out because an earlier one is the same.
        sources: Where the rows came from -> SHA-256 or version.
    """

    task: Task
    lines: tuple[str, ...]
    labelled: tuple[bool, ...]
    indices: tuple[int, ...]
    duplicates: int = 0
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> tuple[Row, ...]:
        """The different rows."""
        return self.task.splits[SPLIT]

    def __len__(self) -> int:
        return len(self.rows)

    def digest(self) -> str:
        """Hash of the rows and of how they are asked."""
        text = "\n".join([self.task.kind, self.task.prompt, self.task.style, *self.lines])
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def require_labels(self, method: str) -> None:
        """Refuse a pool with rows that have no label.

        Raises:
            DataError: A row has none.
        """
        if not all(self.labelled):
            first = self.rows[self.labelled.index(False)].where
            count = self.labelled.count(False)
            raise DataError(
                f"method '{method}' needs labels, and {count} of {len(self)} rows have none, the first at {first}: take a "
                "label-free method such as d_optimal_expected, entropy or random"
            )


def load_pool(
    source: str | Path | Sequence[Mapping[str, Any]],
    *,
    split: str = "train",
    prompt: str = "main",
    data_dir: str | Path | None = None,
    seed: int = 0,
) -> Pool:
    """Read a pool.

    Rows may lack their label: ``answer`` of a question, ``completion`` after a prompt, or the last ``assistant`` message;
    null counts as lacking. Texts are their own labels. Rows that are equal in all that a model sees count once.

    Args:
        source: A file of rows (all of them are the pool), a folder or known task (``split`` of it), or the rows themselves.
        split: Split of a folder or task.
        prompt: Name of the prompt, for multiple choice.
        data_dir: Local folder with the rows of a known hub task.
        seed: Decides worked examples in prompts.

    Returns:
        The pool.

    Raises:
        DataError: There is no row, or one is wrong (the message says where).
        InputError: The task or prompt is unknown.

    Example:
        >>> load_pool([{"question": "Where is Oslo?", "choices": ["Norway", "Spain"]}]).labelled
        (False,)
    """
    if not isinstance(source, str | Path):
        named = [(f"row {number + 1}", dict(values)) for number, values in enumerate(source)]
        return _from_mappings(named, [_json(values) for _, values in named], "rows", {}, prompt, seed)
    path = Path(source).expanduser()
    if data_dir is None and (path.suffix.lower() in SUFFIXES or path.is_dir()):
        files = find_files(path)
        if path.is_dir() and split not in files:
            raise DataError(f"folder '{path}' has no {split}.jsonl: it has {', '.join(sorted(files))}; give --split")
        file = files["all"] if "all" in files else files[split]
        read = [(where, dict(values)) for where, values in read_mappings(file)]
        lines = [_json(values) for _, values in read]
        if file.suffix.lower() == ".jsonl":
            raw = file.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8")
            lines = [line.rstrip("\r") for line in raw.split("\n")[: len(read)]]
        return _from_mappings(read, lines, str(source), {file.name: sha256_of(file)}, prompt, seed)
    task = load_task(source, prompt=prompt, data_dir=data_dir, seed=seed)
    rows = task.rows(split)
    return _distinct(
        Task(task.name, task.kind, {**task.splits, SPLIT: tuple(rows)}, prompt, task.style, seed),
        [_json(mapping_of(row)) for row in rows],
        [True] * len(rows),
        dict(task.sources),
    )


def mapping_of(row: Row) -> dict[str, Any]:
    """A row as it stands in a file.

    Example:
        >>> from lorascope.tasks.rows import TextRow
        >>> mapping_of(TextRow("a", "here"))
        {'text': 'a'}
    """
    if isinstance(row, ChoiceRow):
        return {"question": row.question, "choices": list(row.choices), "answer": row.answer}
    if isinstance(row, CompletionRow):
        return {"prompt": row.prompt, "completion": row.completion}
    if isinstance(row, ChatRow):
        return {"messages": [{"role": role, "content": content} for role, content in row.messages]}
    return {"text": row.text}


def without_answer(row: Row) -> Row:
    """A prompt or chat with the placeholder for its answer; questions and texts as they are.

    Example:
        >>> without_answer(CompletionRow("2 + 2 =", " 4", "here")).completion
        ' x'
    """
    if isinstance(row, CompletionRow):
        return replace(row, completion=PLACEHOLDER)
    if isinstance(row, ChatRow):
        role, _ = row.messages[-1]
        return replace(row, messages=(*row.messages[:-1], (role, PLACEHOLDER)))
    return row


def _from_mappings(
    named: Sequence[tuple[str, dict[str, Any]]],
    lines: Sequence[str],
    name: str,
    sources: dict[str, str],
    prompt: str,
    seed: int,
) -> Pool:
    if not named:
        raise DataError("the pool is empty: give at least one row")
    kind: Kind | None = None
    rows, labelled = [], []
    for where, values in named:
        whole, has_label = _filled(values)
        kind = kind or row_kind(whole, where)
        rows.append(parse_row(whole, kind, where))
        labelled.append(has_label)
    assert kind is not None
    questions = [row for row in rows if isinstance(row, ChoiceRow)]
    blank = bool(questions) and all(row.question.count("_") == 1 for row in questions)
    train = tuple(row for row, known in zip(rows, labelled, strict=True) if known)
    splits = {SPLIT: tuple(rows)} | ({"train": train} if train else {})
    return _distinct(Task(name, kind, splits, prompt, "blank" if blank else "question", seed), lines, labelled, sources)


def _filled(values: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The row with a placeholder where its label is missing, and whether it had one."""
    if "question" in values and "choices" in values and values.get("answer") is None:
        return {**values, "answer": 0}, False
    if "prompt" in values and values.get("completion") is None:
        return {**values, "completion": PLACEHOLDER}, False
    messages = values.get("messages")
    if isinstance(messages, Sequence) and not isinstance(messages, str) and messages:
        last = messages[-1]
        if isinstance(last, Mapping) and last.get("role") != "assistant":
            return {**values, "messages": [*messages, {"role": "assistant", "content": PLACEHOLDER}]}, False
    return values, True


def _distinct(task: Task, lines: Sequence[str], labelled: Sequence[bool], sources: dict[str, str]) -> Pool:
    seen: set[str] = set()
    kept = []
    for index, (row, known) in enumerate(zip(task.splits[SPLIT], labelled, strict=True)):
        key = _json({**mapping_of(row), "labelled": known})
        if key not in seen:
            seen.add(key)
            kept.append(index)
    rows = tuple(task.splits[SPLIT][index] for index in kept)
    return Pool(
        Task(task.name, task.kind, {**task.splits, SPLIT: rows}, task.prompt, task.style, task.seed),
        tuple(lines[index] for index in kept),
        tuple(labelled[index] for index in kept),
        tuple(kept),
        len(lines) - len(kept),
        sources,
    )


def _json(values: Any) -> str:
    try:
        return json.dumps(values, ensure_ascii=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"a row of the pool holds what JSON cannot ({error}): give texts, numbers and lists"
        ) from error


def _plain(value: Any) -> Any:
    """Arrays and numbers of NumPy, which Parquet gives."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__}")
