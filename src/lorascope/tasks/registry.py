"""Tasks by name or path."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lorascope.core.errors import DataError, unknown_name
from lorascope.tasks.files import load_files
from lorascope.tasks.hub import HUB_TASKS, load_hub_task
from lorascope.tasks.prompts import PROMPTS
from lorascope.tasks.rows import ChoiceRow, Task, warn_of_repeated_choices
from lorascope.tasks.sotu import sotu
from lorascope.tasks.towns import towns

TASKS: dict[str, str] = {
    "towns": "in which country is this town? (multiple choice, embedded)",
    "sotu": "annual messages of the presidents of the United States (text, embedded)",
    "piqa": "physical common sense (multiple choice, hub)",
    "arc_easy": "science questions, easy (multiple choice, hub)",
    "arc_challenge": "science questions, hard (multiple choice, hub)",
    "winogrande": "fill the blank with one of two names (multiple choice, hub)",
    "hellaswag": "choose the ending (multiple choice, hub)",
    "wikitext": "WikiText-2, raw (text, hub)",
    "ptb": "Penn Treebank (text, hub)",
}
"""Known task names and what they are."""


def load_task(
    name_or_path: str | Path, *, prompt: str = "main", data_dir: str | Path | None = None, seed: int = 0
) -> Task:
    """Load a task by its name, or rows of your own by path.

    Args:
        name_or_path: A name of `TASKS`; or a folder with ``train``, ``validation`` or ``test`` as ``.jsonl`` or
            ``.parquet``; or one such file. A known name comes first: write ``./towns`` for a folder called ``towns``.
            In a folder where every question has exactly one ``_``, it marks the blank that the choices fill.
        prompt: One of `PROMPTS`; only multiple choice is prompted.
        data_dir: Local folder or file with the rows of a known hub task, read with that task's ``plain`` format.
        seed: Decides the worked examples of ``prompt1`` and ``prompt2``.

    Returns:
        The task, every row checked.

    Raises:
        InputError: The name or the prompt is unknown.
        DataError: A file or row is wrong (file and line in the message), or the hub cannot be reached.
        MissingDependencyError: An embedded task's package is not installed.

    Example:
        >>> task = load_task("towns")
        >>> len(task.rows("test", limit=100))
        100
    """
    if prompt not in PROMPTS:
        raise unknown_name("prompt", prompt, PROMPTS)
    name = str(name_or_path)
    if data_dir is not None:
        if name not in HUB_TASKS:
            raise unknown_name("hub task for data_dir", name, HUB_TASKS)
        task = _load_path(Path(data_dir), name)
        if task.kind != HUB_TASKS[name].kind:
            raise DataError(f"'{data_dir}' holds {task.kind} rows, but {name} needs {HUB_TASKS[name].kind} rows")
        task = dataclasses.replace(task, style=HUB_TASKS[name].style)
    elif name == "towns":
        rows, sources = towns()
        task = Task(name, "multiple_choice", rows, sources=sources)
    elif name == "sotu":
        texts, sources = sotu()
        task = Task(name, "text", texts, sources=sources)
    elif name in HUB_TASKS:
        downloaded, sources = load_hub_task(name)
        task = Task(name, HUB_TASKS[name].kind, downloaded, style=HUB_TASKS[name].style, sources=sources)
    else:
        path = Path(name).expanduser()
        try:
            found = path.exists()
        except OSError as error:  # a name longer than any file's
            raise DataError(f"task '{name[:40]}...' is neither a known task nor a path: {error.strerror}") from error
        if not found:
            if "/" in name or "\\" in name or path.suffix:
                raise DataError(
                    f"no file or folder '{name}': give a path that exists, or a task name ({', '.join(TASKS)})"
                )
            raise unknown_name("task", name, [*TASKS, "a path to your own rows"])
        task = _load_path(path, name)
    for part in task.splits.values():
        warn_of_repeated_choices(part)
    return dataclasses.replace(task, prompt=prompt, seed=seed)


def _load_path(path: Path, name: str) -> Task:
    if not path.exists():
        raise DataError(f"no file or folder '{path}': give a path that exists")
    kind, splits, sources = load_files(path)
    rows = [row for part in splits.values() for row in part if isinstance(row, ChoiceRow)]
    blank = bool(rows) and all(row.question.count("_") == 1 for row in rows)
    return Task(name, kind, splits, style="blank" if blank else "question", sources=sources)
