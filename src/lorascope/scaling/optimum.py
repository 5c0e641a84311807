"""The best fit to all runs: many starts, a robust loss, and the scale of the noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lorascope.core.errors import InputError
from lorascope.core.metrics import METRICS
from lorascope.scaling.laws import Form, values
from lorascope.scaling.solve import Problem, rho, solve
from lorascope.scaling.starts import LARGEST, bounds, starts
from lorascope.scaling.table import Observations

FEW = 5  # with fewer runs than parameters and this, no run is left out as an outlier: Huber takes bisquare's place
EMPTY = 1e-6  # an amplitude below this, for a metric of size 1, is none
_MAD = 1.4826
_LEAST = 0.05
_FINALISTS = 6  # starts that are followed to the end
_SIGN_MARGIN = 6.0  # by how much a fit with amplitudes of mixed signs must be better, in units of the loss


@dataclass(frozen=True, eq=False)
class Optimum:
    """The best fit, and what a bootstrap needs to fit again.

    Attributes:
        problem: Law, places, bounds, loss; the scale is the noise of each run, sigma included.
        theta: The parameters, (p,).
        sigma: Standard deviation of a run: a fraction if the noise is relative, else in the metric's unit.
        spread: Noise of each run for sigma = 1, (n,).
        loss: The minimum that was reached.
    """

    problem: Problem
    theta: np.ndarray
    sigma: float
    spread: np.ndarray
    loss: float

    @property
    def fitted(self) -> np.ndarray:
        """The law at each run, (n,)."""
        found: np.ndarray = values(self.problem.form, self.theta[None], self.problem.x)[0]
        return found


def scale_of(residuals: Float[np.ndarray, " n"], parameters: int) -> float:
    """Robust standard deviation of residuals of a fit with that many parameters.

    Formula: 1.4826 median |r| sqrt(n / (n - p)). If more than half of the runs lie on the law exactly (a metric of few
    distinct values), that would call all others outliers; it is never taken below a twentieth of the root mean square.
    """
    n = len(residuals)
    middle = _MAD * np.median(np.abs(residuals))
    return float(max(middle, _LEAST * np.sqrt((residuals**2).mean())) * np.sqrt(n / max(1, n - parameters)))


def best_fit(
    form: Form,
    x: Float[np.ndarray, "n k"],
    y: Float[np.ndarray, " n"],
    *,
    loss: str,
    relative: bool,
    signs: str,
    top: float = LARGEST,
) -> Optimum:
    """Fit a law to a metric whose size is about 1.

    Args:
        form: The law.
        x: ln(value / reference).
        y: The metric in units of its median.
        loss: ``"bisquare"``, ``"huber"`` or ``"squares"``.
        relative: Whether the noise is proportional to the law's value.
        signs: ``"positive"``, ``"ceiling"`` or ``"free"``; one of the first two with ``" or free"`` behind it takes free
            signs if they are clearly better.
        top: The highest ceiling there can be.
    """
    usual, _, fallback = signs.partition(" or ")
    found = _fit(form, x, y, loss, relative, usual, top)
    if not fallback:
        return found
    free = _fit(form, x, y, loss, relative, fallback, top)
    # Both at the scale of the better one, so that the margin is in likelihood units.
    losses = [float(rho((y - each.fitted) / free.problem.scale, loss).sum()) for each in (found, free)]
    return free if losses[0] - losses[1] > _SIGN_MARGIN else found


def fit_form(form: Form, seen: Observations, *, loss: str, relative: bool, signs: str) -> tuple[Optimum, float]:
    """Fit a law to runs, and the unit (the metric's median, or its largest size) in which the optimum is.

    Args:
        form: The law.
        seen: The runs.
        loss: As in `best_fit`.
        relative: As in `best_fit`.
        signs: ``"auto"``, or as in `best_fit`.
    """
    one_sign = bool((seen.y >= 0).all() or (seen.y <= 0).all())
    unit = float(np.median(seen.y) if one_sign else 0.0) or float(np.abs(seen.y).max()) or 1.0
    y = seen.y / unit
    if np.ptp(y) <= 1e-12 * np.abs(y).max():
        return constant_fit(form, seen.x, float(y[0]), loss=loss, relative=relative), unit
    known = METRICS.get(seen.metric)
    rises = known is not None and known.better == "higher"
    top = min(1 / unit, LARGEST) if known is not None and known.unit == "fraction" and unit > 0 else LARGEST
    if signs == "auto":
        signs = "ceiling or free" if rises and form.floor else "positive or free"
    if not one_sign:
        signs = "free"
    elif signs == "ceiling" and not form.floor:
        raise InputError("signs='ceiling' needs a law with a floor: fit with floor=True, or with signs='auto'")
    return best_fit(form, seen.x, y, loss=loss, relative=relative, signs=signs, top=top), unit


def _fit(form: Form, x: np.ndarray, y: np.ndarray, loss: str, relative: bool, signs: str, top: float) -> Optimum:
    if loss == "bisquare" and len(y) < form.size + FEW:
        loss = "huber"
    low, high = bounds(form, signs, top)
    spread = np.maximum(np.abs(y), 0.05) if relative else np.ones_like(y)
    quadratic = np.column_stack([np.ones(len(y)), x, x**2])
    rough = quadratic @ np.linalg.lstsq(quadratic / spread[:, None], y / spread, rcond=None)[0]
    sigma = max(scale_of((y - rough) / spread, 1), 1e-9)
    early = "squares" if loss == "squares" else "huber"
    problem = Problem(form, x, spread * sigma, early, low, high)
    begin = starts(form, x, y, spread, signs)
    theta, cost = solve(problem, np.broadcast_to(y, (len(begin), len(y))), begin, iterations=15, tolerance=1e-4)
    theta = theta[np.argsort(cost)[:_FINALISTS]]
    best = theta[:1]
    for stage in (early, early, early, loss, loss):
        fitted = values(form, best, x)[0]
        if relative:
            spread = np.maximum(np.abs(fitted), 1e-3)
        if stage == early:
            sigma = max(scale_of((y - fitted) / spread, form.size), 1e-9)
        problem = Problem(form, x, spread * sigma, stage, low, high)
        theta, cost = solve(problem, np.broadcast_to(y, (len(theta), len(y))), theta)
        best = theta[[int(np.argmin(cost))]]
    best, cost = solve(problem, y[None], best, iterations=500, tolerance=1e-13)
    return Optimum(problem, without_empty_terms(form, best, exponents=True)[0], sigma, spread, float(cost[0]))


def without_empty_terms(
    form: Form, theta: Float[np.ndarray, "b p"], *, exponents: bool = False
) -> Float[np.ndarray, "b p"]:
    """Set amplitudes that are zero up to rounding to zero, so that no exponent can blow them up far from the runs.

    Args:
        form: The law.
        theta: Parameters of each fit.
        exponents: Set the exponents of such terms, which have no meaning, to 0 too.
    """
    theta = theta.copy()
    first, k = len(form.amplitudes), len(form.axes)
    empty = np.abs(theta[:, :first]) < EMPTY
    theta[:, :first][empty] = 0.0
    if exponents:
        theta[:, first : first + k][np.broadcast_to(empty, (len(theta), k))] = 0.0
    return theta


def constant_fit(form: Form, x: Float[np.ndarray, "n k"], level: float, *, loss: str, relative: bool) -> Optimum:
    """The law for a metric that is exactly the same in all runs: no exponents, the amplitudes share the level."""
    low, high = bounds(form, "free")
    theta = np.zeros(form.size)
    theta[: len(form.amplitudes)] = level / len(form.amplitudes)
    spread = np.full(len(x), max(abs(level), 1e-3) if relative else 1.0)
    return Optimum(Problem(form, x, spread, loss, low, high), theta, 0.0, spread, 0.0)
