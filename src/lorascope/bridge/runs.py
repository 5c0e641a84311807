"""Training and scoring the runs of a plan; what is on disk already is not done again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from lorascope.adapters import attach_adapter
from lorascope.bridge.plan import BridgePlan
from lorascope.core.errors import DataError, InputError, OutputError
from lorascope.core.files import read_json, write_json
from lorascope.measuring import load_model_and_tokenizer
from lorascope.tasks import evaluate_task, load_task
from lorascope.training.runner import run

PLAN_FILE = "plan.json"
FROZEN = "frozen"


def claim_folder(plan: BridgePlan, folder: Path) -> None:
    """Write the plan into its folder, or check that the folder's runs are of this plan.

    A plan may ask for other sizes and seeds than the folder's: runs that both have are kept, the others are made.

    Raises:
        OutputError: The folder holds runs that cannot be compared with this plan's.
    """
    path = folder / PLAN_FILE
    if path.is_file():
        there = BridgePlan.from_dict(read_json(path), source=str(path)).to_dict()
        asked = plan.to_dict()
        for name in asked.keys() - {"sizes", "seeds"}:
            if there[name] != asked[name]:
                raise OutputError(
                    f"'{folder}' holds runs with {name} {there[name]}, not {asked[name]}: choose another --out"
                )
    write_json(path, plan.to_dict())


def run_plan(plan: BridgePlan, folder: str | Path, *, progress: bool = True) -> None:
    """Train every run of a plan and score it and the frozen model on the same test questions.

    Can be stopped and started again: runs and scores that are there are kept.

    Args:
        plan: What to run.
        folder: ``plan.json``, ``runs/NAME/`` (see `lorascope.training.run`) and ``scores/NAME.json``.
        progress: Show progress bars.

    Raises:
        InputError: The task has no choices.
        OutputError: The folder holds another plan, or cannot be written.
    """
    place = Path(folder)
    claim_folder(plan, place)
    model, tokenizer = load_model_and_tokenizer(plan.model)
    task = load_task(plan.task)
    if task.kind != "multiple_choice":
        raise InputError(f"task '{plan.task}' has no choices: the bridge compares the logits of multiple-choice tasks")

    def keep(name: str, scored: nn.Module) -> None:
        path = place / "scores" / f"{name}.json"
        found = evaluate_task(scored, tokenizer, task, limit=plan.questions, progress=progress)
        names = ("answer", "log_likelihoods", "nats", "tokens")
        rows = [{key: row[key] for key in names} for row in found.per_example]
        write_json(path, {"metrics": found.metrics, "errors": found.errors, "rows": rows})

    if not (place / "scores" / f"{FROZEN}.json").is_file():
        keep(FROZEN, model)
    for name, spec in tqdm(plan.runs(), desc="bridge", unit="run", disable=not progress):
        if (place / "scores" / f"{name}.json").is_file():
            continue
        run(spec, place / "runs" / name, model=model, tokenizer=tokenizer, progress=progress)
        with adapted(model, adapter_folder(place, name)) as scored:
            keep(name, scored)


def adapter_folder(folder: Path, name: str) -> Path:
    """Where the adapter of a run is."""
    return folder / "runs" / name / "adapter"


@contextlib.contextmanager
def adapted(model: PreTrainedModel, adapter: Path) -> Iterator[nn.Module]:
    """The model with a saved adapter on it; it is as it was afterwards."""
    changed = attach_adapter(model, adapter)
    try:
        yield changed
    finally:
        changed.unload()


def load_scores(folder: Path, name: str) -> dict[str, Any]:
    """What `run_plan` wrote about a run or the frozen model.

    Raises:
        DataError: It is not there, or is something else.
    """
    path = folder / "scores" / f"{name}.json"
    found = read_json(path)
    if not isinstance(found, dict) or not {"metrics", "errors", "rows"} <= found.keys():
        raise DataError(f"'{path}' holds no scores of the bridge: delete it and run the same command again")
    return found


__all__ = ["FROZEN", "adapted", "adapter_folder", "claim_folder", "load_scores", "run_plan"]
