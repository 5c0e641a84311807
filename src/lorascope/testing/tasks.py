"""What every task must do: give your task and a tokenizer to `check_task`."""

from __future__ import annotations

import json

from transformers import PreTrainedTokenizerBase

from lorascope.tasks import ChoiceRow, Task, encode_task

_NAMES = {
    "multiple_choice": "ChoiceRow",
    "text": "TextRow",
    "completion": "CompletionRow",
    "chat": "ChatRow",
}


def check_task(task: Task, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None) -> None:
    """Check that a task can be trained on, measured and evaluated.

    Every split has rows of the task's kind; no question is in two splits; answers are inside the choices; encoding is
    the same twice, keeps labels only where tokens are learned, and its counts are true; a limit draws nested samples.

    Args:
        task: The task.
        tokenizer: Any tokenizer.
        max_length: Largest number of tokens in a row (longer ones are dropped and counted).

    Raises:
        AssertionError: A check failed; the message says which and where.

    Example:
        >>> check_task(load_task("towns"), tokenizer)  # doctest: +SKIP
    """
    assert task.splits, f"task '{task.name}' has no splits"
    json.dumps(dict(task.sources))
    owners: dict[str, str] = {}
    for split, rows in task.splits.items():
        assert rows, f"split '{split}' of task '{task.name}' has no rows"
        for row in rows:
            kind = type(row).__name__
            assert kind == _NAMES[task.kind], f"{row.where}: a {kind} in a {task.kind} task"
            assert row.where, f"a row of split '{split}' does not say where it is from"
            if isinstance(row, ChoiceRow):
                assert len(row.choices) > 1, f"{row.where}: fewer than two choices"
                assert 0 <= row.answer < len(row.choices), f"{row.where}: answer {row.answer} is outside the choices"
                if split != "all":
                    owner = owners.setdefault(row.question, split)
                    assert owner == split, f"{row.where}: the question is in {owner} and {split}"
        _check_encoding(task, tokenizer, split, max_length)
        half = max(1, len(rows) // 2)
        drawn = {id(row) for row in task.rows(split, limit=half)}
        assert len(drawn) == half, f"limit {half} of split '{split}' gives {len(drawn)} rows"
        assert drawn <= {id(row) for row in task.rows(split, limit=half + 1)}, f"limits of '{split}' are not nested"


def _check_encoding(task: Task, tokenizer: PreTrainedTokenizerBase, split: str, max_length: int | None) -> None:
    first, second = (encode_task(task, tokenizer, split, max_length=max_length, overlong="drop") for _ in range(2))
    assert first == second, f"split '{split}' is encoded differently the second time"
    assert len(first.features) == len(first.where) == first.counts["samples"], f"samples of '{split}' are miscounted"
    if task.kind != "text":
        total = first.counts["samples"] + first.counts["dropped"]
        assert total == len(task.splits[split]), f"{len(task.splits[split])} rows of '{split}' became {total}"
    tokens = scored = 0
    for feature, where in zip(first.features, first.where, strict=True):
        ids, labels = feature["input_ids"], feature["labels"]
        assert len(ids) == len(labels) == len(feature["attention_mask"]), f"{where}: lengths of the feature differ"
        assert max_length is None or len(ids) <= max_length, f"{where}: {len(ids)} tokens, over {max_length}"
        assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True)), f"{where}: foreign label"
        learned = sum(label != -100 for label in labels[1:])
        assert learned > 0, f"{where}: nothing to learn or score"
        tokens += len(ids)
        scored += learned
    assert (tokens, scored) == (first.counts["tokens"], first.counts["scored_tokens"]), (
        f"tokens of '{split}' miscounted"
    )
