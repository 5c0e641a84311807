"""One decision: candidates, their costs, and joint draws of what each would score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lorascope.core.errors import InputError
from lorascope.core.seeds import derive_seed
from lorascope.scaling.fit import fit_scaling_law
from lorascope.scaling.laws import AXES
from lorascope.scaling.plan_costs import CostBook
from lorascope.scaling.plan_runs import Runs
from lorascope.scaling.plan_surface import draw_surface
from lorascope.scaling.result import ScalingFit

DRAWS = 512

NOISE_QUANTILE = 0.5
"""Of the draws of the noise."""

CONFIDENCE = 0.8
"""Probability with which a choice must be within the noise of the best."""

SAME_COST = 1.1
"""Ratio of costs up to which two candidates count as equally dear."""

SETTLED = 0.5
"""Share of the noise of a run that perfect knowledge may gain at most once a decision counts as settled."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Candidates with draws of their mean metric.

    Attributes:
        runs: The runs behind it.
        cells: Candidates, (m, 3) of N, R, D, cheapest first.
        costs: Cost by kind, (m,) each.
        draws: Mean metric of each candidate times the sign (so that more is better), (draws, m).
        noise: Run-to-run standard deviation, in the metric's unit: what counts as no difference.
        observed: Runs of each candidate so far, (m,).
        outside: Candidates beyond the range of the runs on some axis, (m,).
        law_weight: Share of the draws that follow the fitted law rather than the free surface.
        law: That law, if one could be fitted.
    """

    runs: Runs
    cells: np.ndarray
    costs: dict[str, np.ndarray]
    draws: np.ndarray
    noise: float
    observed: np.ndarray
    outside: np.ndarray
    law_weight: float
    law: ScalingFit | None


def pose(
    runs: Runs,
    cells: np.ndarray,
    book: CostBook,
    *,
    seed: int = 0,
    law: ScalingFit | None = None,
    use_law: bool = True,
    noise: float | int | None = None,
    extra: np.ndarray | None = None,
) -> Problem:
    """Draw the metric of every candidate.

    Args:
        runs: What was run.
        cells: Candidates; those that failed before are left out.
        book: Costs.
        seed: Seed of the draws.
        law: A fitted law to use as the trend; None fits one.
        use_law: Whether a law may be the trend at all.
        noise: Difference that counts as none, in the metric's unit; None takes the run-to-run spread.
        extra: Further cells to draw at beside the candidates, put behind them; the caller cuts them off again.

    Returns:
        The problem.

    Raises:
        InputError: No candidate is left.
    """
    lost = np.array([tuple(cell) in runs.failed for cell in cells], dtype=bool)
    cells = cells[~lost]
    if not len(cells):
        raise InputError("every candidate failed in the sweep: give others")
    costs = book.of(cells)
    order = np.lexsort((cells[:, 1], costs["flops"]))
    cells = cells[order]
    if extra is not None and len(extra):
        cells = np.concatenate([cells, extra])
    costs = book.of(cells)
    data = runs.frame[list(AXES)].to_numpy(dtype=float)
    logs, at = np.log(data), np.log(cells)
    low, high = np.minimum(logs.min(0), at.min(0)), np.maximum(logs.max(0), at.max(0))
    moving = high - low > 1e-9
    width = np.where(moving, high - low, 1.0)
    middle = (low + high) / 2
    x, z = ((logs - middle) / width)[:, moving], ((at - middle) / width)[:, moving]
    y = runs.sign * runs.frame["y"].to_numpy(dtype=float)
    seeds = pd.factorize(runs.frame["seed"])[0]
    rng = np.random.default_rng(derive_seed(seed, "plan", runs.metric))
    if not moving.any():
        x, z = np.zeros((len(y), 1)), np.zeros((len(cells), 1))
    free = draw_surface(x, y, seeds, z, count=DRAWS, rng=rng)
    values, spread, weight = free.values, free.noise, 0.0
    if law is None and use_law and len(np.unique(data, axis=0)) >= 6:
        law = _try_law(runs, seed)
    if law is not None and len(law.boot):
        trend = tuple(runs.sign * law.sample(**_by_axis(law, places)) for places in (data, cells))
        steered = draw_surface(x, y, seeds, z, count=DRAWS, rng=rng, trend=(trend[0], trend[1]))
        gap = steered.evidence - free.evidence - 0.5 * len(law.params) * np.log(len(y))
        weight = float(1 / (1 + np.exp(-np.clip(gap, -50, 50))))
        taken = rng.random(DRAWS) < weight
        values = np.where(taken[:, None], steered.values, values)
        lost = np.sqrt(len(y) / max(len(y) - len(law.params), 1))  # the law took that many degrees of freedom
        spread = np.where(taken, lost * steered.noise, spread)
    counts = {tuple(cell): count for cell, count in zip(*np.unique(data, axis=0, return_counts=True), strict=True)}
    eps = 1e-9
    return Problem(
        runs=runs,
        cells=cells,
        costs=costs,
        draws=values,
        noise=float(np.quantile(spread, NOISE_QUANTILE)) if noise is None else float(noise),
        observed=np.array([counts.get(tuple(cell), 0) for cell in cells]),
        outside=((at < logs.min(0) - eps) | (at > logs.max(0) + eps)).any(axis=1),
        law_weight=weight,
        law=law,
    )


def _try_law(runs: Runs, seed: int) -> ScalingFit | None:
    """The additive law with and without floor by whichever fits better, or None where the data allow none."""
    found: list[ScalingFit] = []
    for floor in (False, True):
        try:
            found.append(
                fit_scaling_law(
                    runs.frame.rename(columns={"y": runs.metric}),
                    "additive",
                    runs.metric,
                    floor=floor,
                    n_boot=100,
                    seed=seed,
                )
            )
        except InputError:
            continue  # too few values for this law: the free surface is left
    finite = [fit for fit in found if np.isfinite(fit.boot).all() and np.isfinite(fit.rmse)]
    count = runs.frame.shape[0]
    return min(
        finite,
        key=lambda fit: count * np.log(max(fit.rmse, 1e-12)) + len(fit.params) * 0.5 * np.log(count),
        default=None,
    )


def _by_axis(law: ScalingFit, places: np.ndarray) -> dict[str, np.ndarray]:
    return {axis: places[:, index] for index, axis in enumerate(AXES) if axis in law.axes}


def choose(problem: Problem, allowed: np.ndarray) -> tuple[int, int]:
    """The cheapest allowed candidate that is within the noise of the best, and the best one.

    With b the candidate of the highest mean, a candidate c is good enough if f_b - f_c is at most the noise of one run with
    a probability of `CONFIDENCE`: the fit's uncertainty counts against it, so that a cheap cell about which little is known
    is not chosen. Of the good ones whose cost is that of the cheapest up to `SAME_COST`, the smallest rank is taken, and
    at that rank the highest mean: what is free is not given away.

    Args:
        problem: The problem.
        allowed: Which candidates may be chosen, (m,).

    Returns:
        Index of the choice, index of the best.
    """
    mean = np.where(allowed, problem.draws.mean(0), -np.inf)
    best = int(np.argmax(mean))
    gap = problem.draws[:, [best]] - problem.draws
    good = allowed & ((gap <= problem.noise + 1e-12).mean(0) >= CONFIDENCE)
    good[best] = True
    cost, ranks = problem.costs["flops"], problem.cells[:, 1]
    near = np.flatnonzero(good & (cost <= SAME_COST * cost[good].min()))
    near = near[ranks[near] == ranks[near].min()]
    return int(near[np.argmax(mean[near])]), best


def is_settled(problem: Problem, allowed: np.ndarray) -> bool:
    """Whether more runs would change little: E[max f] - max E[f] is at most half the noise of a run.

    This is what knowing every candidate exactly would gain over taking the best as it looks now.
    """
    best = int(np.argmax(np.where(allowed, problem.draws.mean(0), -np.inf)))
    return expected_regret(problem, best, allowed) <= SETTLED * problem.noise + 1e-12


def expected_regret(problem: Problem, index: int, allowed: np.ndarray) -> float:
    """E[max over allowed f - f_index]: what knowing everything would gain over a candidate."""
    top = problem.draws[:, allowed].max(1)
    return float((top - problem.draws[:, index]).mean())
