"""The benchmark tasks of the paper from the Hugging Face hub, in the repositories that lm-eval reads.

PIQA, WinoGrande and HellaSwag publish no labels for their test split; as lm-eval does, their official validation split
is the one to test on, so it is named ``test`` here and there is no ``validation``.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lorascope.core.errors import DataError
from lorascope.tasks.rows import Kind, Row, Style, parse_row

Convert = Callable[[Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class HubTask:
    """Where a task lives and how its rows become ours.

    Attributes:
        repo: Dataset repository.
        config: Name of its configuration.
        splits: Our split name -> theirs.
        convert: Their row -> a mapping that `parse_row` accepts.
        kind: Kind of the rows.
        style: How prompt ``plain`` reads them.
        revision: Branch of the repository.
        join: Put between all rows of a split to make one document of them (texts published in single lines).
    """

    repo: str
    config: str | None
    splits: Mapping[str, str]
    convert: Convert
    kind: Kind = "multiple_choice"
    style: Style = "question"
    revision: str | None = None
    join: str | None = None


def piqa_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """PIQA: goal, two solutions, label."""
    return {"question": row["goal"], "choices": [row["sol1"], row["sol2"]], "answer": int(row["label"])}


def arc_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """ARC: choices with labels A-E or 1-5, and the label of the correct one."""
    labels = list(row["choices"]["label"])
    answer = labels.index(row["answerKey"]) if row["answerKey"] in labels else -1
    return {"question": row["question"], "choices": list(row["choices"]["text"]), "answer": answer}


def winogrande_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """WinoGrande: a sentence with a blank, two options, "1" or "2"."""
    answer = {"1": 0, "2": 1}.get(str(row["answer"]), -1)
    return {"question": row["sentence"], "choices": [row["option1"], row["option2"]], "answer": answer}


def hellaswag_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """HellaSwag: context and endings, cleaned of WikiHow's brackets as lm-eval does."""
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return {
        "question": _clean(context),
        "choices": [_clean(ending) for ending in row["endings"]],
        "answer": int(row["label"]) if str(row["label"]).strip() else -1,
    }


def _clean(text: str) -> str:
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


_ARC_SPLITS = {"train": "train", "validation": "validation", "test": "test"}
_NO_TEST_LABELS = {"train": "train", "test": "validation"}


def _texts(repo: str, config: str, column: str, revision: str | None = None, join: str | None = None) -> HubTask:
    def convert(row: Mapping[str, Any]) -> dict[str, Any]:
        return {"text": row[column]}

    return HubTask(repo, config, _ARC_SPLITS, convert, kind="text", revision=revision, join=join)


HUB_TASKS: dict[str, HubTask] = {
    "piqa": HubTask("baber/piqa", None, _NO_TEST_LABELS, piqa_row),
    "arc_easy": HubTask("allenai/ai2_arc", "ARC-Easy", _ARC_SPLITS, arc_row),
    "arc_challenge": HubTask("allenai/ai2_arc", "ARC-Challenge", _ARC_SPLITS, arc_row),
    "winogrande": HubTask("allenai/winogrande", "winogrande_xl", _NO_TEST_LABELS, winogrande_row, style="blank"),
    "hellaswag": HubTask("Rowan/hellaswag", None, _NO_TEST_LABELS, hellaswag_row, style="continuation"),
    "wikitext": _texts("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", "page"),
    "ptb": _texts("ptb-text-only/ptb_text_only", "penn_treebank", "sentence", "refs/convert/parquet", join=" "),
}


def load_hub_task(name: str) -> tuple[dict[str, tuple[Row, ...]], dict[str, str]]:
    """Download a known task through `datasets` (which caches it) and convert its rows.

    Args:
        name: A key of `HUB_TASKS`.

    Returns:
        Rows by split, and the repository with its revision.

    Raises:
        DataError: The hub cannot be reached, or nothing there can be used.
    """
    import datasets

    task = HUB_TASKS[name]
    splits = {}
    for ours, theirs in task.splits.items():
        try:
            rows = datasets.load_dataset(task.repo, task.config, split=theirs, revision=task.revision)
        except Exception as error:  # datasets raises many unrelated classes for a hub that cannot be reached
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"cannot get task '{name}' from the hub repository '{task.repo}' ({type(error).__name__}: {reason}): "
                "check the network, or give a local folder with train.jsonl and test.jsonl by its path"
            ) from error
        splits[ours] = convert_rows(task, rows, f"{task.repo}/{theirs}")
    return splits, {task.repo: task.revision or "main"}


def convert_rows(task: HubTask, rows: Iterable[Mapping[str, Any]], where: str) -> tuple[Row, ...]:
    """Convert the rows of one split; rows that cannot be used are counted in a warning, never dropped silently.

    Raises:
        DataError: No row can be used.
    """
    converted: list[Row] = []
    first_error = ""
    dropped = 0
    values: Iterable[Mapping[str, Any]] = map(task.convert, rows)
    if task.join is not None:
        values = [{"text": task.join.join(str(row["text"]).strip() for row in values)}]
    for number, row in enumerate(values, start=1):
        try:
            converted.append(parse_row(row, task.kind, f"{where}:{number}"))
        except DataError as error:
            first_error = first_error or str(error)
            dropped += 1
    if not converted:
        raise DataError(f"'{where}' has no usable rows: {first_error or 'it is empty'}")
    if dropped:
        warnings.warn(
            f"'{where}': {dropped} rows cannot be used and are left out, the first: {first_error}", stacklevel=2
        )
    return tuple(converted)
