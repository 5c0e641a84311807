"""`recommend`: from runs to the smallest rank, the data and the model that are worth their cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lorascope.core.errors import InputError
from lorascope.scaling.cost_shapes import ModelShape
from lorascope.scaling.design import next_cells
from lorascope.scaling.laws import AXES
from lorascope.scaling.plan_costs import cost_book, cost_dict
from lorascope.scaling.plan_problem import Problem, choose, expected_regret, is_settled, pose
from lorascope.scaling.plan_records import (
    along,
    candidate_records,
    cell_record,
    interval,
    prediction,
    run_records,
    siblings,
)
from lorascope.scaling.plan_result import Plan
from lorascope.scaling.plan_runs import Runs, candidates_of, prepare
from lorascope.scaling.plan_units import Budget, parse_budget
from lorascope.scaling.result import ScalingFit, check_level
from lorascope.scaling.table import as_table

Table = pd.DataFrame | Mapping[str, Any] | str | Path
Candidates = Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]] | pd.DataFrame | None


def recommend(
    table_or_fits: Table | ScalingFit | Sequence[ScalingFit],
    *,
    metric: str = "accuracy",
    target: float | int | None = None,
    budget: str | float | int | Budget | None = None,
    candidates: Candidates = None,
    seed: int = 0,
    level: float = 0.9,
    better: str | None = None,
    noise: float | int | None = None,
    shape: ModelShape | None = None,
) -> Plan:
    """Recommend rank, data and model.

    Without target and budget: the cheapest candidate that is within the run-to-run noise of the best one with a
    probability of 0.8; of equally dear ones the smallest rank. With a budget: the same among those that fit. With a target:
    the cheapest whose expected metric reaches it. Probabilities are over joint draws of all candidates' means from a smooth
    surface through the runs, with a fitted law as its trend in the share that the data support.

    Args:
        table_or_fits: Runs (a frame, columns, a CSV or Parquet file, a sweep's folder), or fitted laws, which hold theirs.
        metric: Column to plan by; accuracy falls back to ce.
        target: Value that the metric's mean over seeds shall reach.
        budget: Limit on FLOPs, time or bytes, as `parse_budget` reads it.
        candidates: What can be chosen: axis -> values, or cells; None means what was run.
        seed: Seed of the draws.
        level: Level of the intervals, and what "safe" means for a target.
        better: ``higher`` or ``lower`` for a metric that lorascope does not know.
        noise: Difference that counts as none; None takes the run-to-run spread about paired seeds.
        shape: Dimensions of the base model, for exact costs.

    Returns:
        The plan.

    Raises:
        InputError: The table, metric, unit or candidates cannot be used, nothing fits the budget, or the target is out
            of reach.

    Example:
        >>> runs = {"R": [2, 2, 8, 8, 32, 32], "seed": [0, 1] * 3, "D": [100] * 6, "N": [1e8] * 6,
        ...         "accuracy": [0.50, 0.51, 0.60, 0.61, 0.60, 0.61]}
        >>> recommend(runs).rank
        8
    """
    level = check_level(level)
    table, law, metric = _source(table_or_fits, metric)
    limit = None if budget is None else parse_budget(budget)
    if target is not None and not (isinstance(target, int | float) and math.isfinite(target)):
        raise InputError(f"target {target!r} is not a number")
    runs = prepare(table, metric, better=better)
    cells = candidates_of(candidates, runs)
    book = cost_book(runs.rows, shape=shape)
    if noise is not None and not (math.isfinite(noise) and noise >= 0):
        raise InputError(f"noise {noise} must be a number of at least 0")
    first = pose(runs, cells, book, seed=seed, law=law, noise=noise)
    affordable = _affordable(first, limit)
    reached: dict[str, Any] = {}
    index, best = choose(first, affordable)
    if target is not None:
        index, reached = _reach(first, affordable, float(target), level)
    extra, axes = _steps_up(first, index)
    extra = np.concatenate([extra, _elsewhere(first)])
    problem = pose(runs, cells, book, seed=seed, law=first.law, noise=noise, extra=extra) if len(extra) else first
    # The steps come from draws of their own; the choice and its probabilities stay those of the candidates.
    regret = expected_regret(first, index, affordable)
    varied = len(np.unique(runs.frame["R"])) > 1
    settled = is_settled(first, affordable) and varied and not first.outside[index]
    if target is not None:
        settled = varied and not first.outside[index] and reached["probability"] >= level
    chosen, factor = first.draws[:, index], runs.sign
    mean = first.draws.mean(0)
    low, high = interval(chosen, factor, level)
    costs = cost_dict(first.costs, index)
    ranks = along(first, index, 1, level)
    bigger = [place for place in siblings(first, index, 1) if first.cells[place, 1] > first.cells[index, 1]]
    more = (first.draws[:, bigger] - chosen[:, None]).max(1) if bigger else np.zeros(1) - np.inf
    notes = [*runs.notes, *book.notes, *_warnings(first, index)]
    return Plan(
        basis="sweep",
        metric=runs.metric,
        better="higher" if runs.sign > 0 else "lower",
        goal=_goal(target, limit, runs.metric),
        choice=cell_record(first, index),
        settled=bool(settled),
        lora=_lora(runs, int(first.cells[index, 1])),
        level=level,
        predicted=float(factor * mean[index]),
        low=low,
        high=high,
        noise=first.noise,
        within_noise=float((first.draws[:, best] - chosen <= first.noise + 1e-12).mean()),
        regret=regret,
        bigger_rank_helps=float((more > first.noise).mean()),
        best={**cell_record(first, best), **prediction(first, best, level)},
        cost=costs,
        ranks=ranks,
        data=along(first, index, 2, level),
        models=along(first, index, 0, level),
        steps=_gains(problem, first, index, extra, axes, level),
        next_cells=[]
        if settled
        else _ask(table, runs, first, seed, better, shape, index if target is not None else None),
        target=reached,
        budget=_budget(limit, affordable),
        candidates=candidate_records(first, affordable, level),
        evidence=run_records(first, problem),
        base=runs.base,
        calibration=book.calibration,
        model=_facts(first),
        notes=list(dict.fromkeys(notes)),
        seed=seed,
    )


def _source(given: Any, metric: str) -> tuple[pd.DataFrame, ScalingFit | None, str]:
    fits = [given] if isinstance(given, ScalingFit) else given
    if isinstance(fits, list | tuple):
        if not fits or not all(isinstance(fit, ScalingFit) for fit in fits):
            raise InputError("give a table, a path, or fitted laws")
        by_metric = {fit.metric: fit for fit in reversed(fits)}
        fit = by_metric.get(metric) or (fits[0] if metric == "accuracy" else None)
        if fit is None:
            raise InputError(f"no fitted law of '{metric}': there is {', '.join(by_metric)}")
        return pd.DataFrame(fit.data), fit, fit.metric
    return as_table(given), None, metric


def _affordable(problem: Problem, limit: Budget | None) -> np.ndarray:
    everything = np.ones(len(problem.cells), dtype=bool)
    if limit is None:
        return everything
    cost = problem.costs[limit.kind]
    if not np.isfinite(cost).any():
        need = {"seconds": "seconds_training", "memory": "peak_memory_bytes", "adapter": "adapter_parameters"}
        raise InputError(
            f"budget '{limit.text}': the table has no {need.get(limit.kind, 'train_tokens_seen')}, so that cost is not "
            "known: give the budget in FLOPs"
        )
    fits = np.isfinite(cost) & (cost <= limit.amount)
    if not fits.any():
        raise InputError(
            f"budget '{limit.text}' is below every candidate: the cheapest needs {np.nanmin(cost):.3g} {limit.label}"
        )
    return np.asarray(fits)


def _reach(problem: Problem, allowed: np.ndarray, target: float, level: float) -> tuple[int, dict[str, Any]]:
    sign = problem.runs.sign
    chance = np.where(allowed, (problem.draws >= sign * target).mean(0), -1.0)
    mean = np.where(allowed, problem.draws.mean(0), -np.inf)
    good = np.flatnonzero(mean >= sign * target)
    index = int(good[0]) if len(good) else int(np.argmax(chance))
    if not len(good) and chance[index] <= (1 - level) / 2:
        top = int(np.argmax(mean))
        low, high = interval(problem.draws[:, top], sign, level)
        raise InputError(
            f"target {target:g} is out of reach: the best prediction of {problem.runs.metric} is {sign * mean[top]:.4g} "
            f"({low:.4g} to {high:.4g}, {level:.0%}); lower the target or widen the candidates"
        )
    safe = np.flatnonzero(chance >= level)
    safer = {**cell_record(problem, int(safe[0])), "probability": float(chance[safe[0]])} if len(safe) else None
    return index, {"value": target, "probability": float(chance[index]), "safer": safer}


def _steps_up(problem: Problem, index: int) -> tuple[np.ndarray, list[str]]:
    cell, rows, axes = problem.cells[index], [], []
    for place, axis in enumerate(AXES):
        if axis not in problem.runs.axes:
            continue
        values = np.unique(problem.cells[:, place])
        above = values[values > cell[place]]
        if axis == "N" and not len(above):
            continue
        up = cell.copy()
        up[place] = above[0] if axis == "N" else 2 * cell[place]
        rows.append(up)
        axes.append(axis)
    return np.array(rows).reshape(-1, 3), axes


def _elsewhere(problem: Problem) -> np.ndarray:
    """Places that were run and are no candidates, (k, 3)."""
    ran = np.unique(problem.runs.frame[list(AXES)].to_numpy(dtype=float), axis=0)
    known = {tuple(cell) for cell in problem.cells.tolist()}
    return np.array([cell for cell in ran.tolist() if tuple(cell) not in known]).reshape(-1, 3)


def _gains(
    problem: Problem, first: Problem, index: int, extra: np.ndarray, axes: list[str], level: float
) -> list[dict[str, Any]]:
    found = []
    for number, axis in enumerate(axes):
        place = len(problem.cells) - len(extra) + number
        gain = problem.draws[:, place] - problem.draws[:, index]
        low, high = np.quantile(gain, [(1 - level) / 2, (1 + level) / 2])
        column = AXES.index(axis)
        found.append(
            {
                "axis": axis,
                "to": float(extra[number, column]),
                "gain": float(gain.mean()),
                "low": float(low),
                "high": float(high),
                "probability": float((gain > first.noise).mean()),
                "cost_factor": float(problem.costs["flops"][place] / problem.costs["flops"][index]),
                "extrapolated": bool(problem.outside[place]),
            }
        )
    return found


def _goal(target: float | int | None, limit: Budget | None, metric: str) -> str:
    if target is not None:
        within = f" within {limit.text}" if limit else ""
        return f"the cheapest that is expected to reach {metric} {target:g}{within}"
    return (
        f"the cheapest within the noise of the best for {limit.text}"
        if limit
        else "the cheapest within the noise of the best"
    )


def _budget(limit: Budget | None, affordable: np.ndarray) -> dict[str, Any]:
    if limit is None:
        return {}
    counts = {"affordable": int(affordable.sum()), "candidates": len(affordable)}
    return {"kind": limit.kind, "amount": limit.amount, "text": limit.text, **counts}


def _facts(problem: Problem) -> dict[str, Any]:
    frame = problem.runs.frame
    return {
        "runs": len(frame),
        "seeds": int(frame["seed"].nunique()),
        "cells_run": len(frame.groupby(list(AXES))),
        "candidates": len(problem.cells),
        "law": None if problem.law is None else problem.law.law,
        "law_weight": problem.law_weight,
    }


def _warnings(problem: Problem, index: int) -> list[str]:
    frame, notes = problem.runs.frame, []
    if frame["R"].nunique() == 1:
        notes.append("only one rank was run: nothing is known about rank")
    if frame["seed"].nunique() == 1 and not (frame.groupby(list(AXES)).size() > 1).any():
        notes.append("each cell was run once: the noise is guessed from the scatter about a smooth surface")
    if problem.noise == 0:
        notes.append("all runs have the same value: the smallest configuration is as good as any")
    if problem.outside[index]:
        notes.append("the choice lies beyond what was run: an extrapolation")
    notes += [
        f"rank {cell[1]:g}, D {cell[2]:g}, N {cell[0]:g} failed and is no candidate" + (f" ({why})" if why else "")
        for cell, why in problem.runs.failed.items()
    ]
    return notes


def _ask(
    table: pd.DataFrame,
    runs: Runs,
    problem: Problem,
    seed: int,
    better: str | None,
    shape: ModelShape | None,
    about: int | None,
) -> list[dict[str, Any]]:
    """Cells to run next; with ``about``, those that tell most of that candidate alone."""
    cells = [dict(zip(AXES, cell, strict=True)) for cell in problem.cells.tolist()]
    ranks = np.unique(problem.cells[:, 1])
    if len(ranks) == 1:
        few = sorted({max(1.0, math.floor(ranks[0] / 4)), 4 * float(ranks[0])} - {float(ranks[0])})
        cells = [{**cell, "R": rank} for cell in cells for rank in few]
    known = pd.to_numeric(table["seed"], errors="coerce").dropna().unique().tolist() if "seed" in table else [0]
    known = sorted(int(item) for item in known) or [0]
    seeds = [*known, *range(known[-1] + 1, known[-1] + 3)]
    asked = next_cells(
        table,
        cells,
        3,
        metric=runs.metric,
        better=better,
        seeds=seeds,
        seed=seed,
        shape=shape,
        settle=False,
        about=None if about is None or len(ranks) == 1 else dict(zip(AXES, problem.cells[about], strict=True)),
    )
    return [{**cell, **{axis: None for axis in AXES if axis not in runs.axes}} for cell in asked]


def _lora(runs: Runs, rank: int) -> dict[str, Any]:
    def constant(name: str) -> Any:
        if name not in runs.rows:
            return None
        values = runs.rows[name].dropna().unique()
        return values[0] if len(values) == 1 else None

    alpha, targets = constant("alpha"), constant("target_modules")
    found: dict[str, Any] = {
        "r": rank,
        "lora_alpha": 2 * rank if alpha is None else float(alpha),
        "lora_dropout": float(constant("dropout") or 0.0),
        "target_modules": "all-linear" if targets is None else str(targets),
        "task_type": "CAUSAL_LM",
    }
    if "," in found["target_modules"]:
        found["target_modules"] = found["target_modules"].split(",")
    for name in ("use_rslora", "use_dora"):
        value = constant(name)
        if value is not None and str(value).lower() in ("true", "1"):
            found[name] = True
    return found
