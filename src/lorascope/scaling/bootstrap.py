"""Fitting again under another draw of the noise, run by run."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from lorascope.scaling.laws import derivatives
from lorascope.scaling.optimum import Optimum
from lorascope.scaling.solve import solve


def leverages(optimum: Optimum) -> Float[np.ndarray, " n"]:
    """How much of its own noise each run's fitted value takes up, in [0, 1); the trace is the number of parameters.

    Formula: h_ii of the hat matrix of the law linearised at the optimum, runs weighted by their noise.
    """
    problem = optimum.problem
    _, slopes = derivatives(problem.form, optimum.theta[None], problem.x)
    scaled = (slopes[0] / problem.scale).T
    held = (optimum.theta <= problem.low) | (optimum.theta >= problem.high)
    scaled = scaled[:, ~held] / np.maximum(np.linalg.norm(scaled[:, ~held], axis=0), 1e-300)
    left, singular, _ = np.linalg.svd(scaled, full_matrices=False)
    kept = left[:, singular > 1e-9 * singular.max(initial=1e-300)]
    found: np.ndarray = np.minimum((kept**2).sum(axis=1), 1 - 1e-6)
    return found


def wild(
    optimum: Optimum,
    y: Float[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    count: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, "b p"]:
    """Refit the law to itself plus each run's own residual times a random sign.

    Formula: y*_i = f_i + r_i / sqrt(1 - h_i) v_g(i), with v = +1 or -1 for each group (each run by default).
    """
    fitted = y - (residuals := residuals_of(optimum, y))
    corrected = residuals / np.sqrt(1 - np.minimum(leverages(optimum), 0.95))
    signs = rng.choice(np.array([-1.0, 1.0]), size=(count, int(groups.max()) + 1))[:, groups]
    start = np.broadcast_to(optimum.theta, (count, len(optimum.theta)))
    return solve(optimum.problem, fitted + corrected * signs, start)[0]


def residuals_of(optimum: Optimum, y: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Metric minus law at each run."""
    from lorascope.scaling.laws import values

    found: np.ndarray = y - values(optimum.problem.form, optimum.theta[None], optimum.problem.x)[0]
    return found
