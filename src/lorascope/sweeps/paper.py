"""The experiments of arXiv 2501.03152 as one sweep: in full, or cut down to what two cores do in half an hour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorascope.core.errors import InputError
from lorascope.sweeps.spec import SweepSpec

TASKS = ("piqa", "arc_challenge", "arc_easy", "winogrande", "hellaswag")
LENGTHS = ((1, 100), (101, 200), (201, 300))
SHARES = (8, 4, 2)
PROMPTS = ("prompt1", "prompt2", "prompt3")


def full_sweep(
    models: Sequence[str],
    tasks: Sequence[str] = TASKS,
    *,
    seeds: int = 3,
    first_seed: int = 0,
    data: dict[str, str],
) -> SweepSpec:
    """The paper's grid: ranks 32, 128, 512; shared layers in groups of 8, 4, 2; lengths; prompts; its recipe.

    Args:
        models: Base models, hub ids or folders.
        tasks: Names of multiple-choice tasks.
        seeds: Seeds of each cell; the paper names none and shows one run.
        first_seed: The first of them.
        data: Task -> local folder with its rows, instead of the hub.

    Returns:
        The sweep; a rank of a model on a task is one run that several tables read.

    References:
        arXiv 2501.03152, section 4 and Tables 1 to 3.
    """
    base: dict[str, Any] = {"preset": "paper", "epochs": 1.0, "eval_limit": None, "measure_limit": 100}
    cells = []
    for model in models:
        for task in tasks:
            head: dict[str, Any] = {"model": model, "task": task, "data_dir": data.get(task)}
            for seed in range(first_seed, first_seed + seeds):
                cells += [{**head, "rank": rank, "seed": seed} for rank in (32, 128, 512)]
                cells += [{**head, "rank": 32, "share": share, "seed": seed} for share in SHARES]
                cells += [
                    {**head, "rank": rank, "prompt": prompt, "seed": seed}
                    for rank in (32, 128, 512)
                    for prompt in PROMPTS
                ]
                cells += [{**head, "rank": 32, "length": list(bin_), "seed": seed} for bin_ in LENGTHS]
            cells.append({**head, "rank": 0})
    return SweepSpec(base=base, cells=cells)


def reduced_sweep(
    model: str,
    task: str,
    *,
    seeds: int = 2,
    first_seed: int = 0,
    lengths: Sequence[tuple[int, int]] = (),
    data_dir: str | None = None,
) -> SweepSpec:
    """A cut-down grid: three ranks and three sizes of training set, and along the other axes one rank only.

    On the embedded 135M model and the towns task this takes about half an hour on two cores. Ranks are 4, 16 and 64,
    since 512 is nearly the width of such a model; training is the ``quick`` preset; 100 questions are scored and 32 rows
    measured; prompts and lengths have one seed. The paper's bins of 100 tokens hold all or none of the rows of a task with
    short prompts, so that the bins are an argument: `lorascope.tasks.length_bins` finds some.

    Args:
        model: Base model.
        task: A multiple-choice task.
        seeds: Seeds of the ranks, the sizes and the shared layers.
        first_seed: The first of them; another one adds runs that can be joined with earlier ones.
        lengths: Bins of prompt lengths, lowest and highest number of tokens; none leaves this axis out.
        data_dir: Local folder with the rows of a hub task.

    Returns:
        The sweep. The cells that take longest come first and the base model comes last, so that workers end together.

    Raises:
        InputError: There is no seed.

    Example:
        >>> len(reduced_sweep("smollm2", "towns", lengths=[(21, 22), (23, 23), (24, 29)]).expand())
        31
    """
    if seeds < 1:
        raise InputError(f"seeds {seeds} must be at least 1")
    base = {
        "preset": "quick",
        "model": model,
        "task": task,
        "data_dir": None if data_dir is None else str(Path(data_dir).resolve()),
        "eval_limit": 100,
        "measure_limit": 32,
    }
    most, chosen = 320, list(range(first_seed, first_seed + seeds))
    one = {"rank": 16, "train_limit": most, "seed": first_seed}
    cells: list[dict[str, Any]] = [{**one, "prompt": prompt} for prompt in PROMPTS]
    cells += [{**one, "length": list(bin_)} for bin_ in lengths]
    cells += [{**one, "share": share, "seed": seed} for share in SHARES for seed in chosen]
    cells += [{"rank": 0}]
    return SweepSpec(base=base, grid={"seed": chosen, "train_limit": [40, 120, most], "rank": [4, 16, 64]}, cells=cells)
