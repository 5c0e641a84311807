"""Candidates and runs of a decision as JSON-ready records, for a plan and its page."""

from __future__ import annotations

from typing import Any

import numpy as np

from lorascope.scaling.laws import AXES
from lorascope.scaling.plan_costs import KINDS
from lorascope.scaling.plan_problem import Problem


def cell_record(problem: Problem, place: int) -> dict[str, Any]:
    """``N``, ``R`` and ``D`` of a candidate; None for an axis that the table lacks."""
    return _by_axis(problem, problem.cells[place])


def prediction(problem: Problem, place: int, level: float) -> dict[str, float]:
    """``predicted``, ``low`` and ``high`` of a candidate's mean metric."""
    low, high = interval(problem.draws[:, place], problem.runs.sign, level)
    return {"predicted": float(problem.runs.sign * problem.draws[:, place].mean()), "low": low, "high": high}


def interval(draws: np.ndarray, sign: int, level: float) -> tuple[float, float]:
    """The middle ``level`` of draws, in the metric's own direction."""
    low, high = np.quantile(sign * draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def siblings(problem: Problem, index: int, column: int) -> list[int]:
    """Candidates that differ from one in a single axis, itself included, by that axis."""
    others = [place for place in range(3) if place != column]
    same = (problem.cells[:, others] == problem.cells[index, others]).all(axis=1)
    return sorted(np.flatnonzero(same).tolist(), key=lambda place: float(problem.cells[place, column]))


def along(problem: Problem, index: int, column: int, level: float) -> list[dict[str, Any]]:
    """One record a value of an axis, the others as in one candidate; empty where the table lacks the axis."""
    if AXES[column] not in problem.runs.axes:
        return []
    places = siblings(problem, index, column)
    best = places[int(np.argmax(problem.draws[:, places].mean(0)))]
    return [
        {
            AXES[column]: whole(problem.cells[place, column]),
            **prediction(problem, place, level),
            "within_noise": float((problem.draws[:, best] - problem.draws[:, place] <= problem.noise + 1e-12).mean()),
            "runs": int(problem.observed[place]),
            "extrapolated": bool(problem.outside[place]),
            "flops": float(problem.costs["flops"][place]),
        }
        for place in places
    ]


def candidate_records(problem: Problem, allowed: np.ndarray, level: float) -> list[dict[str, Any]]:
    """One record a candidate: its prediction, what it costs (None unknown), its runs, and whether it may be chosen."""
    return [
        {
            **cell_record(problem, place),
            **prediction(problem, place, level),
            **{kind: _known(problem.costs[kind][place]) for kind in KINDS},
            "runs": int(problem.observed[place]),
            "extrapolated": bool(problem.outside[place]),
            "affordable": bool(allowed[place]),
        }
        for place in range(len(problem.cells))
    ]


def run_records(problem: Problem, wider: Problem) -> list[dict[str, Any]]:
    """One record a run: its place, its metric, and the surface there.

    Args:
        problem: The decision.
        wider: The same with every place that was run among its cells.

    Returns:
        ``N``, ``R``, ``D``, ``seed`` (numbered from 0), ``value`` and ``fitted``.
    """
    sign = problem.runs.sign
    fitted = {}
    for source in (wider, problem):  # at a candidate, what the plan says of it
        means = sign * source.draws.mean(0)
        fitted.update({tuple(cell): float(mean) for cell, mean in zip(source.cells.tolist(), means, strict=True)})
    frame = problem.runs.frame
    return [
        {
            **_by_axis(problem, np.array(cell)),
            "seed": int(seed),
            "value": float(value),
            "fitted": fitted[tuple(cell)],
        }
        for cell, seed, value in zip(frame[list(AXES)].to_numpy().tolist(), frame["seed"], frame["y"], strict=True)
    ]


def whole(value: float) -> int | float:
    """A whole number as one."""
    return int(value) if float(value).is_integer() else float(value)


def _by_axis(problem: Problem, cell: np.ndarray) -> dict[str, Any]:
    return {axis: whole(cell[i]) if axis in problem.runs.axes else None for i, axis in enumerate(AXES)}


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
