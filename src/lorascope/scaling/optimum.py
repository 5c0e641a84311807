"""The best fit to all runs: many starts, a robust loss, and the scale of the noise."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import nnls

from lorascope.scaling.laws import Form, values
from lorascope.scaling.solve import Problem, rho, solve

STEEPEST = 5.0  # bound of the exponents
LARGEST = 20.0  # bound of amplitudes and floor, in medians of the metric, where their signs differ
FEW = 5  # with fewer runs than parameters and this, no run is left out as an outlier: Huber takes bisquare's place
EMPTY = 1e-6  # an amplitude below this, for a metric of size 1, is none
_MAD = 1.4826
_LEAST = 0.05
_SIGN_MARGIN = 6.0  # by how much a fit with amplitudes of mixed signs must be better, in units of the loss
_EXPONENTS = (0.1, 0.4, 1.2)  # to start from, where amplitudes are positive
_FEWER = (0.2, 0.8)  # likewise for each choice of directions, where signs are free


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


def bounds(form: Form, positive: bool) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the parameters, for a metric whose median is 1."""
    low, high = np.full(form.size, -STEEPEST), np.full(form.size, STEEPEST)
    linear = list(form.linear)
    low[linear], high[linear] = (0.0 if positive else -LARGEST), LARGEST
    return low, high


def starts(
    form: Form, x: Float[np.ndarray, "n k"], y: Float[np.ndarray, " n"], spread: Float[np.ndarray, " n"], positive: bool
) -> Float[np.ndarray, "s p"]:
    """Places to start from: a grid of exponents in the direction in which the metric moves, amplitudes solved."""
    slopes = np.linalg.lstsq(np.column_stack([np.ones(len(y)), x]) / spread[:, None], y / spread, rcond=None)[0][1:]
    k, found = len(form.axes), []
    signs = [(-1.0 if slope > 0 else 1.0,) if positive else (1.0, -1.0) for slope in slopes]
    for direction in itertools.product(*signs):
        for sizes in itertools.product(_EXPONENTS if positive else _FEWER, repeat=k):
            exponents = np.array(direction) * np.array(sizes)
            theta = np.zeros(form.size)
            theta[len(form.amplitudes) : len(form.amplitudes) + k] = exponents
            basis = np.exp(-x * exponents) if form.law == "additive" else np.exp(-x @ exponents)[:, None]
            if form.floor:
                basis = np.column_stack([basis, np.ones(len(y))])
            basis, target = basis / spread[:, None], y / spread
            solved = nnls(basis, target)[0] if positive else np.linalg.lstsq(basis, target, rcond=None)[0]
            if positive:  # a term that starts at zero has no exponent to improve
                solved = np.maximum(solved, 0.02)
            theta[list(form.linear)] = solved
            found.append(theta)
    return np.array(found)


def scale_of(residuals: Float[np.ndarray, " n"], parameters: int) -> float:
    """Robust standard deviation of residuals of a fit with that many parameters.

    Formula: 1.4826 median |r| sqrt(n / (n - p)). If more than half of the runs lie on the law exactly (a metric of few
    distinct values), that would call all others outliers; it is never taken below a twentieth of the root mean square.
    """
    n = len(residuals)
    middle = _MAD * np.median(np.abs(residuals))
    return float(max(middle, _LEAST * np.sqrt((residuals**2).mean())) * np.sqrt(n / max(1, n - parameters)))


def best_fit(
    form: Form, x: Float[np.ndarray, "n k"], y: Float[np.ndarray, " n"], *, loss: str, relative: bool, signs: str
) -> Optimum:
    """Fit a law to a metric whose median is 1 (or whose size is about 1).

    Args:
        form: The law.
        x: ln(value / reference).
        y: The metric in units of its median.
        loss: ``"bisquare"``, ``"huber"`` or ``"squares"``.
        relative: Whether the noise is proportional to the law's value.
        signs: ``"positive"``, ``"free"``, or ``"auto"``: positive unless free is clearly better.
    """
    found = _fit(form, x, y, loss, relative, positive=True) if signs != "free" else None
    if signs == "positive" and found is not None:
        return found
    free = _fit(form, x, y, loss, relative, positive=False)
    if found is None:
        return free
    # Both at the scale of the better one, so that the margin is in likelihood units.
    u = [(y - values(form, o.theta[None], x)[0]) / free.problem.scale for o in (found, free)]
    margin = float(rho(u[0], loss).sum() - rho(u[1], loss).sum())
    return free if margin > _SIGN_MARGIN else found


def _fit(form: Form, x: np.ndarray, y: np.ndarray, loss: str, relative: bool, *, positive: bool) -> Optimum:
    if loss == "bisquare" and len(y) < form.size + FEW:
        loss = "huber"
    low, high = bounds(form, positive)
    least = 1e-3
    spread = np.maximum(np.abs(y), 0.05) if relative else np.ones_like(y)
    begin = starts(form, x, y, spread, positive)
    quadratic = np.column_stack([np.ones(len(y)), x, x**2])
    rough = quadratic @ np.linalg.lstsq(quadratic / spread[:, None], y / spread, rcond=None)[0]
    sigma = max(scale_of((y - rough) / spread, 1), 1e-9)
    early = "squares" if loss == "squares" else "huber"
    problem = Problem(form, x, spread * sigma, early, low, high)
    theta, cost = solve(problem, np.broadcast_to(y, (len(begin), len(y))), begin, iterations=15, tolerance=1e-4)
    order = np.argsort(cost)[:6]
    theta = theta[order]
    current = y[None]
    best = theta[:1]
    for stage in (early, early, early, loss, loss):
        fitted = values(form, best, x)[0]
        if relative:
            spread = np.maximum(np.abs(fitted), least)
        if stage == early:
            sigma = max(scale_of((y - fitted) / spread, form.size), 1e-9)
        problem = Problem(form, x, spread * sigma, stage, low, high)
        theta, cost = solve(problem, np.broadcast_to(y, (len(theta), len(y))), theta)
        best = theta[[int(np.argmin(cost))]]
    best, cost = solve(problem, current, best, iterations=500, tolerance=1e-13)
    return Optimum(problem, without_empty_terms(form, best)[0], sigma, spread, float(cost[0]))


def without_empty_terms(form: Form, theta: Float[np.ndarray, "b p"]) -> Float[np.ndarray, "b p"]:
    """Set amplitudes that are zero up to rounding to zero, so that no exponent can blow them up far from the runs.

    The exponent of such a term has no meaning; in the additive law it is set to 0 too where all fits agree.
    """
    theta = theta.copy()
    first, k = len(form.amplitudes), len(form.axes)
    empty = np.abs(theta[:, :first]) < EMPTY
    theta[:, :first][empty] = 0.0
    if len(theta) == 1:
        exponents = np.broadcast_to(empty, (1, k))
        theta[:, first : first + k][exponents] = 0.0
    return theta


def constant_fit(form: Form, x: Float[np.ndarray, "n k"], level: float, *, loss: str, relative: bool) -> Optimum:
    """The law for a metric that is exactly the same in all runs: no exponents, the amplitudes share the level."""
    low, high = bounds(form, positive=False)
    theta = np.zeros(form.size)
    theta[: len(form.amplitudes)] = level / len(form.amplitudes)
    spread = np.full(len(x), max(abs(level), 1e-3) if relative else 1.0)
    return Optimum(Problem(form, x, spread, loss, low, high), theta, 0.0, spread, 0.0)
