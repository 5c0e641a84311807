"""Scoring through lm-eval: its own tasks by name, and ours written out so that it scores the same rows."""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedTokenizerBase

from lorascope.core.errors import InputError, ModelError, unknown_name
from lorascope.core.files import atomic_write_text
from lorascope.core.optional import require
from lorascope.core.seeds import preserved_random_state
from lorascope.tasks.prompts import build_requests
from lorascope.tasks.rows import ChoiceRow, Task, TextRow

_INSTALL = "'lorascope[eval]'"
_PURPOSE = "evaluation through lm-eval"


def require_lm_eval_tasks(
    task_names: Sequence[str],
    *,
    include_path: str | Path | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Refuse what `lm_eval_scores` would refuse, before any work is done: lm-eval missing, or names it does not know.

    Takes some seconds the first time, in which lm-eval reads its own task files; nothing is downloaded.

    Args:
        task_names: Names that `lm_eval_scores` will be given.
        include_path: Its folder.
        tokenizer: Its tokenizer, where it is at hand already.

    Raises:
        MissingDependencyError: lm-eval is not installed.
        InputError: There is no name, or a task is unknown.
        ModelError: The tokenizer has neither bos nor eos, which lm-eval needs.

    Example:
        >>> require_lm_eval_tasks(["pica"])                           # doctest: +SKIP
        Traceback (most recent call last):
        lorascope.core.errors.InputError: unknown lm-eval task 'pica': did you mean 'piqa'? Choose from ...
    """
    with preserved_random_state():
        require("lm_eval.evaluator", install=_INSTALL, purpose=_PURPOSE)
        if tokenizer is not None and tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
            raise ModelError("lm-eval needs a tokenizer with a bos or eos token: set tokenizer.eos_token")
        if not task_names:
            raise InputError("no lm-eval task is named: give at least one, such as piqa")
        known = _manager(include_path).all_tasks
    for name in task_names:
        if name not in known:
            family = [task for task in known if task.split("_")[0] == name.split("_")[0]]
            close = difflib.get_close_matches(name, known, n=8)
            raise unknown_name("lm-eval task", name, (close or family or sorted(known))[:8])


def _manager(include_path: str | Path | None) -> Any:
    """lm-eval's index of tasks, of the folder alone where one is given; its own is read once."""
    return _own_manager() if include_path is None else _new_manager(str(include_path))


@functools.cache
def _own_manager() -> Any:
    return _new_manager(None)


def _new_manager(folder: str | None) -> Any:
    tasks = require("lm_eval.tasks", install=_INSTALL, purpose=_PURPOSE)
    return tasks.TaskManager(include_path=folder, include_defaults=folder is None)


def lm_eval_scores(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    task_names: Sequence[str],
    *,
    include_path: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    max_length: int | None = None,
) -> dict[str, dict[str, float]]:
    """Evaluate a loaded model, with or without an adapter, by lm-eval's task names.

    Global random state is put back afterwards.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        task_names: lm-eval's names such as ``"piqa"``; or names from the folder.
        include_path: Folder with task files of your own, such as `task_to_lm_eval` writes. Then lm-eval's own tasks are not
            read, and nothing is downloaded.
        limit: Score the first so many rows of each task.
        batch_size: Rows in a forward pass.
        max_length: Largest number of tokens in a row; by default what lm-eval finds in the model.

    Returns:
        For each task, metric -> value, as ``{"acc": 0.5, "acc_norm": 0.6, "acc_stderr": ...}``.

    Raises:
        MissingDependencyError: lm-eval is not installed.
        InputError: No task is named, one is unknown, or lm-eval cannot read it.
        ModelError: The tokenizer has neither bos nor eos, which lm-eval needs.

    References:
        https://github.com/EleutherAI/lm-evaluation-harness
    """
    require_lm_eval_tasks(task_names, include_path=include_path, tokenizer=tokenizer)
    with preserved_random_state():
        evaluator = require("lm_eval.evaluator", install=_INSTALL, purpose=_PURPOSE)
        huggingface = require("lm_eval.models.huggingface", install=_INSTALL, purpose=_PURPOSE)
        wrapped = huggingface.HFLM(
            pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=max_length, backend="causal"
        )
        try:
            outcome = evaluator.simple_evaluate(
                wrapped,
                tasks=list(task_names),
                task_manager=_manager(include_path),
                limit=limit,
                bootstrap_iters=100,
                log_samples=False,
            )
        except (OSError, ConnectionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"lm-eval cannot get the rows of {', '.join(task_names)} ({reason})") from error
    scores: dict[str, dict[str, float]] = {}
    for name, values in outcome["results"].items():
        scores[name] = {
            key.removesuffix(",none"): float(value)
            for key, value in values.items()
            if key.endswith(",none") and isinstance(value, int | float)
        }
    return scores


def task_to_lm_eval(
    task: Task, folder: str | Path, *, split: str = "test", limit: int | None = None, seed: int = 0
) -> str:
    """Write a split as a local lm-eval task (YAML and JSONL) that asks for exactly the same likelihoods.

    Args:
        task: A multiple-choice or text task; prompts are written out.
        folder: Where to write; give it to `lm_eval_scores` as ``include_path``, or to ``lm_eval --include_path``.
        split: Name of the split.
        limit: Largest number of rows, the same sample that `evaluate_task` takes (text: whole documents).
        seed: Decides which rows a limit keeps.

    Returns:
        The name of the lm-eval task.

    Raises:
        InputError: The task is neither multiple choice nor text.
    """
    rows = task.rows(split, limit=limit, seed=seed)
    config: dict[str, Any]
    documents: list[dict[str, Any]]
    if task.kind == "multiple_choice":
        requests = build_requests(task, [row for row in rows if isinstance(row, ChoiceRow)])
        shared = all(len(request.contexts) == 1 for request in requests)
        documents = [
            {
                "context": request.contexts[0],
                "choices": list(request.names),
                "continuation": request.continuations[0].removeprefix(" "),
                "answer": request.answer,
            }
            for request in requests
        ]
        config = {
            "output_type": "multiple_choice",
            "doc_to_text": "context" if shared else "answer",
            "doc_to_choice": "choices",
            "doc_to_target": "answer" if shared else "continuation",
            "metric_list": [
                {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")
            ],
        }
    elif task.kind == "text":
        documents = [{"text": row.text} for row in rows if isinstance(row, TextRow)]
        config = {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "text",
            "metric_list": [{"metric": metric} for metric in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
        }
    else:
        raise InputError(
            f"task '{task.name}' has {task.kind} rows: lm-eval scores multiple choice and text; use evaluate_task"
        )
    directory = Path(folder).resolve()
    slug = re.sub(r"[^a-z0-9]+", "_", Path(task.name).stem.lower()).strip("_") or "task"
    name = f"lorascope_{slug}_{task.prompt}_{split}"
    data = directory / f"{name}.jsonl"
    atomic_write_text(data, "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents))
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(directory / "cache")},
        "test_split": "test",
        **config,
        "metadata": {"version": 1.0},
    }
    atomic_write_text(directory / f"{name}.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    return name
