"""Initialisations of LoRA against each other: each tuned by itself, on some seeds, and compared on others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lorascope.core.errors import DataError, InputError
from lorascope.core.metrics import METRICS
from lorascope.results import RunRecord
from lorascope.sweeps.executors import Executor
from lorascope.sweeps.folder import SweepFolder
from lorascope.sweeps.inits_plan import REFERENCE, InitsPlan
from lorascope.sweeps.loop import Event, run_sweep
from lorascope.sweeps.paired import holm, paired_difference, verdict

DIRECTIONS = {
    "held_out_loss": "lower",
    "accuracy": "higher",
    "ce": "lower",
    "text_ppl": "lower",
    "miub_js": "neither",
    "seconds_init": "neither",
}
"""Metric -> what is better. ``held_out_loss@10`` goes by the part before ``@``."""


@dataclass(frozen=True)
class InitsOutcome:
    """What came of a comparison.

    Attributes:
        folder: Of the sweep.
        tuning: One row a method and rate: ``method``, ``learning_rate``, ``loss`` (validation, mean over tuning seeds; inf
            where a run diverged), ``chosen``.
        runs: One row a method and seed, see `inits_table`.
        summary: One row a method and metric, see `summarise_inits`.
        failed: Cell -> reason.
        notes: What a reader must know.
    """

    folder: Path
    tuning: pd.DataFrame
    runs: pd.DataFrame
    summary: pd.DataFrame
    failed: dict[str, str]
    notes: tuple[str, ...]


def compare_inits(
    plan: InitsPlan,
    out_dir: str | Path,
    *,
    executor: str | Executor = "local",
    on_event: Callable[[Event], None] | None = None,
    **options: Any,
) -> InitsOutcome:
    """Tune every method, run it at its rate, and compare it with the default; or go on where an earlier call stopped.

    Args:
        plan: What to compare.
        out_dir: Folder of the sweep that both stages share.
        executor: ``local``, ``ray`` or ``slurm``, or an `Executor`.
        on_event: Called with what happens.
        **options: For the executor.

    Returns:
        The tables and what they say.

    Raises:
        InputError: The plan is refused, or no rate of the default worked.
        OutputError: The folder holds something else.
        KeyboardInterrupt: Ctrl-C was pressed; the same call goes on from there.
    """
    first = run_sweep(plan.tuning_sweep(), out_dir, executor=executor, on_event=on_event, **options)
    tuning = tuning_table(plan, out_dir)
    chosen = {str(row["method"]): float(row["learning_rate"]) for row in tuning[tuning["chosen"]].to_dict("records")}
    if REFERENCE not in chosen:
        reason = next(iter(first.failed.values()), "no run ended")
        raise InputError(f"no learning rate of {list(plan.rates)} worked for '{REFERENCE}' ({reason}): give others")
    second = run_sweep(plan.final_sweep(chosen), out_dir, executor=executor, on_event=on_event, **options)
    runs = inits_table(plan, chosen, out_dir)
    summary = summarise_inits(runs)
    failed = {**first.failed, **second.failed, **_damaged(SweepFolder.open(out_dir), [*first.done, *second.done])}
    return InitsOutcome(Path(out_dir), tuning, runs, summary, failed, tuple(_notes(plan, tuning, runs)))


def tuning_table(plan: InitsPlan, folder: str | Path) -> pd.DataFrame:
    """The validation losses that decide each method's rate; see `InitsOutcome`."""
    place = SweepFolder.open(folder)
    losses: dict[tuple[str, float], list[float]] = {}
    for cell in plan.tuning_sweep().expand():
        key = (cell.spec.init, float(cell.spec.learning_rate))
        record = _record(place, cell.name)
        found = {} if record is None else _held_out(record)
        last = found[max(found)] if found else None
        losses.setdefault(key, []).append(math.inf if last is None else last)
    rows = [
        {"method": method, "learning_rate": rate, "loss": float(np.mean(values)), "chosen": False}
        for (method, rate), values in losses.items()
    ]
    for method in plan.methods:
        own = [row for row in rows if row["method"] == method and math.isfinite(float(str(row["loss"])))]
        if own:
            min(own, key=lambda row: float(str(row["loss"])))["chosen"] = True
    return pd.DataFrame(rows, columns=["method", "learning_rate", "loss", "chosen"])


def inits_table(plan: InitsPlan, chosen: Mapping[str, float], folder: str | Path) -> pd.DataFrame:
    """One row a method and seed that is done.

    Columns: ``method``, ``learning_rate``, ``seed``; ``held_out_loss@N`` after N steps (validation, nats a token);
    ``accuracy`` and ``ce`` of the test rows; ``miub_js``; ``text_ppl`` of held-out text, where more means more forgotten;
    ``seconds_init`` and ``seconds_training``.
    """
    place = SweepFolder.open(folder)
    rows = []
    for cell in plan.final_sweep(chosen).expand():
        record = _record(place, cell.name)
        if record is None:
            continue
        row: dict[str, Any] = {
            "method": cell.spec.init,
            "learning_rate": float(cell.spec.learning_rate),
            "seed": cell.spec.seed,
        }
        row |= {f"held_out_loss@{step}": loss for step, loss in sorted(_held_out(record).items())}
        row |= {name: record.totals.get(name) for name in ("accuracy", "ce", "miub_js", "text_ppl")}
        row["seconds_init"] = float(record.settings.get("init", {}).get("seconds", 0.0))
        row["seconds_training"] = record.settings.get("costs", {}).get("seconds_training")
        rows.append(row)
    if not rows:
        raise DataError(f"no run of the comparison in '{folder}' is done: run it again")
    return pd.DataFrame(rows)


def summarise_inits(runs: pd.DataFrame) -> pd.DataFrame:
    """Each method's means, and its differences to the default, paired by seed.

    Args:
        runs: As `inits_table` makes it.

    Returns:
        One row a method and metric: ``method``, ``metric``, ``better``, ``mean``, ``sd`` (between seeds), ``difference``,
        ``low``, ``high`` (95 %, see `lorascope.sweeps.paired.paired_difference`), ``t``, ``p``, ``p_holm`` (adjusted for
        the methods compared on that metric), ``noise`` (the default's sd), ``pairs`` and ``helped``.
    """
    metrics = [name for name in runs.columns if name.split("@")[0] in DIRECTIONS]
    rows = []
    for metric in metrics:
        better = DIRECTIONS[metric.split("@")[0]]
        wide = runs.pivot_table(index="seed", columns="method", values=metric)
        if REFERENCE not in wide:
            continue
        noise = float(wide[REFERENCE].std(ddof=1)) if wide[REFERENCE].notna().sum() > 1 else None
        here = []
        for method in runs["method"].unique():
            if method not in wide:
                continue
            values = wide[method].dropna()
            row: dict[str, Any] = {"method": method, "metric": metric, "better": better}
            row |= {"mean": float(values.mean()), "sd": float(values.std(ddof=1)) if len(values) > 1 else None}
            row |= {"noise": noise, "pairs": 0, "helped": "", "p": None}
            gaps = (wide[method] - wide[REFERENCE]).dropna()
            if method != REFERENCE and len(gaps) and better != "neither":
                found = paired_difference(gaps.tolist())
                row |= {"difference": found.mean, "low": found.low, "high": found.high, "t": found.t, "p": found.p}
                row |= {"pairs": found.pairs, "helped": verdict(found, better, noise)}
            here.append(row)
        for row, adjusted in zip(here, holm([row["p"] for row in here]), strict=True):
            row["p_holm"] = adjusted
        rows += here
    columns = ["method", "metric", "better", "mean", "sd", "difference", "low", "high", "t", "p", "p_holm", "noise"]
    return pd.DataFrame(rows, columns=[*columns, "pairs", "helped"])


def final_loss(metrics: Sequence[str]) -> str:
    """The held-out loss after the most steps, which the headline goes by.

    Example:
        >>> final_loss(["held_out_loss@1", "held_out_loss@30", "accuracy"])
        'held_out_loss@30'
    """
    losses = [name for name in metrics if name.startswith("held_out_loss@")]
    if not losses:
        raise InputError("no held-out loss was recorded: set probe_steps")
    return max(losses, key=lambda name: int(name.split("@")[1]))


def metric_label(metric: str) -> str:
    """A metric of the comparison in words.

    Example:
        >>> metric_label("held_out_loss@10")
        'Validation loss after 10 steps'
    """
    name, _, step = metric.partition("@")
    if step:
        return f"Validation loss after {step} step{'s' * (step != '1')}"
    own = {"seconds_init": "Seconds of the init", "text_ppl": "Perplexity of held-out text"}
    return own.get(name) or (METRICS[name].label if name in METRICS else name)


def _held_out(record: RunRecord) -> dict[int, float]:
    return {int(line["step"]): float(line["held_out_loss"]) for line in record.history if "held_out_loss" in line}


def _record(place: SweepFolder, name: str) -> RunRecord | None:
    """The result of a run that is done; None if it is not, or if its file is damaged, which `_damaged` says."""
    try:
        return place.store.load(name) if place.status(name) == "done" else None
    except DataError:
        return None


def _damaged(place: SweepFolder, names: Sequence[str]) -> dict[str, str]:
    return {
        name: f"its result.json is damaged: delete '{place.store.path(name)}' and run the same command again"
        for name in names
        if place.status(name) == "done" and _record(place, name) is None
    }


def _notes(plan: InitsPlan, tuning: pd.DataFrame, runs: pd.DataFrame) -> list[str]:
    notes = []
    ends = (min(plan.rates), max(plan.rates))
    edge = tuning[tuning["chosen"] & tuning["learning_rate"].isin(ends)]["method"].tolist()
    if edge and len(plan.rates) > 1:
        notes.append(
            f"the best rate of {', '.join(edge)} is at an end of the sweep: a wider one may change what is said about them"
        )
    lost = [method for method in plan.methods if method not in set(tuning[tuning["chosen"]]["method"])]
    if lost:
        notes.append(f"no rate worked for {', '.join(lost)}: every tuning run failed")
    short = [m for m in runs["method"].unique() if (runs["method"] == m).sum() < len(plan.seeds) and m not in lost]
    if short:
        notes.append(f"some runs of {', '.join(short)} failed or are missing: fewer pairs")
    return notes
