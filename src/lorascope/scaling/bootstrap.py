"""Fitting again to runs drawn with replacement, and the intervals that this gives."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from lorascope.scaling.optimum import Optimum, without_empty_terms
from lorascope.scaling.solve import solve

_SMALL, _USUAL = 0.05, 0.3


def resample(
    optimum: Optimum,
    y: Float[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    count: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, "b p"]:
    """Refit the law to as many groups of runs as there are, drawn with replacement, many times.

    Without groups each run is its own. Each refit starts at the best fit to all runs and keeps its noise scale and the
    signs of its amplitudes. Of the bootstraps that were measured (docs/science/scaling.md), this one covers best: a
    residual or wild bootstrap is too narrow for nine runs, this one is not, since its fits differ in their design too.

    Args:
        optimum: The best fit to all runs.
        y: The metric, in the units of the optimum.
        groups: Number of each run's group.
        count: Number of fits.
        rng: Where the draws come from.

    Returns:
        The parameters of each fit, (count, p).
    """
    if count == 0:
        return np.empty((0, optimum.problem.form.size))
    kinds = int(groups.max()) + 1
    drawn = rng.multinomial(kinds, np.full(kinds, 1 / kinds), size=count)
    counts = drawn[:, groups].astype(float)
    form = optimum.problem.form
    theta = optimum.theta.copy()
    # A term that is zero in the best fit may be there in another draw: it starts small, with a usual exponent.
    for i in np.flatnonzero(theta[: len(form.amplitudes)] == 0):
        theta[i] = _SMALL if optimum.problem.high[i] > 0 else -_SMALL
        for place in [len(form.amplitudes) + i] if form.law == "additive" else range(1, 1 + len(form.axes)):
            theta[place] = _USUAL
    start = np.broadcast_to(theta, (count, form.size))
    target = np.broadcast_to(y, (count, len(y)))
    return without_empty_terms(form, solve(optimum.problem, target, start, counts=counts, tolerance=1e-8)[0])


def percentile_intervals(boot: Float[np.ndarray, "b p"], level: float) -> Float[np.ndarray, "2 p"]:
    """The middle ``level`` of the bootstrap distribution of each parameter, as (lows, highs).

    Formula: order statistics at (count + 1) (1 -+ level) / 2, so that few fits do not make the interval too short.
    """
    found: np.ndarray = np.quantile(boot, [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull")
    return found
