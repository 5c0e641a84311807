"""Levenberg-Marquardt over a whole batch of fits at once, robust and with bounds, in numpy.

All fits of a batch share the runs' places and differ in the metric, in the runs' weights or in the start; one iteration
is a few matrix products over the batch, so that a thousand bootstrap fits cost about as much as ten single ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lorascope.core.errors import unknown_name
from lorascope.scaling.laws import Form, derivatives, values

HUBER = 1.345  # 95 % efficient for Gaussian noise
BISQUARE = 4.685  # likewise; beyond this many standard deviations a run has no weight
LOSSES: tuple[str, ...] = ("bisquare", "huber", "squares")
_CHUNK = 2_000_000  # most numbers in one array of derivatives


@dataclass(frozen=True)
class Problem:
    """What a batch of fits has in common.

    Attributes:
        form: The law.
        x: ln(value / reference), (n, k).
        scale: Standard deviation of each run's noise, in the metric's unit, (n,).
        loss: ``"bisquare"``, ``"huber"`` or ``"squares"``.
        low: Lower bounds of the parameters, (p,).
        high: Upper bounds, (p,).
    """

    form: Form
    x: np.ndarray
    scale: np.ndarray
    loss: str
    low: np.ndarray
    high: np.ndarray


def rho(u: np.ndarray, loss: str) -> np.ndarray:
    """The loss of standardised residuals; u^2 / 2 near zero.

    Formula: squares: u^2/2; Huber: u^2/2 up to k = 1.345, then k |u| - k^2/2; Tukey's bisquare: (c^2/6) (1 - (1 -
    (u/c)^2)^3) up to c = 4.685, then constant.
    """
    if loss == "squares":
        return np.asarray(u * u / 2)
    if loss == "huber":
        size = np.abs(u)
        return np.asarray(np.where(size <= HUBER, u * u / 2, HUBER * (size - HUBER / 2)))
    if loss == "bisquare":
        inside = np.clip(1 - (u / BISQUARE) ** 2, 0, None)
        return np.asarray(BISQUARE**2 / 6 * (1 - inside**3))
    raise unknown_name("loss", loss, LOSSES)


def weight(u: np.ndarray, loss: str) -> np.ndarray:
    """rho'(u) / u: the weight of a run with standardised residual u."""
    if loss == "squares":
        return np.ones_like(u)
    if loss == "huber":
        return np.asarray(HUBER / np.maximum(np.abs(u), HUBER))
    if loss == "bisquare":
        return np.asarray(np.clip(1 - (u / BISQUARE) ** 2, 0, None) ** 2)
    raise unknown_name("loss", loss, LOSSES)


def solve(
    problem: Problem,
    y: Float[np.ndarray, "b n"],
    start: Float[np.ndarray, "b p"],
    *,
    counts: Float[np.ndarray, "b n"] | None = None,
    iterations: int = 200,
    tolerance: float = 1e-9,
) -> tuple[Float[np.ndarray, "b p"], Float[np.ndarray, " b"]]:
    """Minimise sum_i counts_i rho((y_i - f_i) / scale_i) for every row of a batch.

    Parameters stay within bounds: one that sits on a bound and is pushed outward is held for that step.

    Args:
        problem: What the fits share.
        y: The metric of each fit and run, in its unit.
        start: Where each fit starts.
        counts: How often each run counts in each fit; once if not given.
        iterations: Most steps of one fit.
        tolerance: A fit has converged when a step lowers its loss by less than this fraction.

    Returns:
        Parameters (b, p) and losses (b,).
    """
    n, p = problem.x.shape[0], problem.form.size
    rows = max(1, _CHUNK // max(1, n * p))
    parts = [
        _solve(
            problem, y[i : i + rows], start[i : i + rows], None if counts is None else counts[i : i + rows], iterations,
            tolerance,
        )
        for i in range(0, len(y), rows)
    ]  # fmt: skip
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _loss(problem: Problem, y: np.ndarray, found: np.ndarray, counts: np.ndarray | None) -> np.ndarray:
    cost = rho((y - found) / problem.scale, problem.loss)
    total: np.ndarray = (cost if counts is None else cost * counts).sum(axis=1)
    return total


def _solve(
    problem: Problem, y: np.ndarray, start: np.ndarray, counts: np.ndarray | None, iterations: int, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    form, x, low, high = problem.form, problem.x, problem.low, problem.high
    p = form.size
    best = np.clip(start, low, high)
    cost = _loss(problem, y, values(form, best, x), counts)
    damping = np.full(len(y), 1e-3)
    calm = np.zeros(len(y), dtype=int)
    active = np.arange(len(y))
    diagonal = np.arange(p)
    for _ in range(iterations):
        theta, target = best[active], y[active]
        times = None if counts is None else counts[active]
        found, slopes = derivatives(form, theta, x)
        u = (target - found) / problem.scale
        w = weight(u, problem.loss)
        if times is not None:
            w = w * times
        slopes /= problem.scale
        weighted = slopes * w[:, None, :]
        gradient = (weighted @ u[:, :, None])[:, :, 0]
        hessian = weighted @ slopes.transpose(0, 2, 1)
        held = ((theta <= low) & (gradient < 0)) | ((theta >= high) & (gradient > 0))
        gradient[held] = 0.0
        hessian[held[:, :, None] | held[:, None, :]] = 0.0
        curvature = hessian[:, diagonal, diagonal]
        # A parameter without any effect keeps its place.
        curvature = np.where(curvature > 0, curvature, 1.0)
        unit = np.sqrt(curvature)
        scaled = hessian / unit[:, :, None] / unit[:, None, :]
        scaled[:, diagonal, diagonal] = 1.0 + damping[active, None]
        step = np.linalg.solve(scaled, (gradient / unit)[:, :, None])[:, :, 0] / unit
        trial = np.clip(theta + step, low, high)
        with np.errstate(over="ignore", invalid="ignore"):
            new = _loss(problem, target, values(form, trial, x), times)
        new = np.where(np.isfinite(new), new, np.inf)
        better = new <= cost[active]
        gain = cost[active] - new
        small = better & (gain <= tolerance * cost[active] + 1e-300)
        calm[active] = np.where(small, calm[active] + 1, np.where(better, 0, calm[active]))
        taken = active[better]
        best[taken], cost[taken] = trial[better], new[better]
        damping[active] = np.where(better, np.maximum(damping[active] / 5, 1e-12), damping[active] * 4)
        active = active[(calm[active] < 2) & (damping[active] < 1e10)]
        if not len(active):
            break
    return best, cost
