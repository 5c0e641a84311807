r"""Stage 1 with softmax, T = 2: a fixed point in Q, M and V."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit

from lorascope.theory._fixed_point import Point, fixed_point
from lorascope.theory._prox import Array, sobol_normals
from lorascope.theory._softmax import C_INVERSE, C_ROOT, C_ROOT_INVERSE, logit_loss, pretraining_prox
from lorascope.theory.spectrum import Spectrum

if TYPE_CHECKING:
    from lorascope.theory.pretraining import Pretrained

MOST = 100
COARSE = 2**9
SMALLEST = 1e-8
SMALLEST_RIDGE = 1e-9
STARTS = ((0.8, 0.8, 1.0), (0.2, 0.3, 3.0), (0.9, 0.95, 0.3))
"""Q / Q0, M / Q0 and V from which the iteration begins."""


@dataclass(frozen=True)
class _Averages:
    a: float
    am: float
    square: float


def draw(samples: int, seed: int = 0, width: int = 4) -> Array:
    """Normals of (2n, width): quasi-random, each with its mirror image."""
    z = sobol_normals(width, samples, seed)
    return np.concatenate([z, -z])


def fields(z: Array, q: float, m: float, target: float) -> tuple[Array, Array]:
    r"""omega ~ N(0, Q C) and u* given omega, N((M/Q) omega, (target - M^2/Q) C), from normals of (n, 4)."""
    omega = math.sqrt(q) * z[:, :2] @ C_ROOT
    star = (m / q) * omega + math.sqrt(max(target - m * m / q, 0.0)) * z[:, 2:4] @ C_ROOT
    return omega, star


def _averages(z: Array, given: Pretrained, q: float, m: float, v: float, near: Array | None) -> tuple[_Averages, Array]:
    r"""a, a_m and E|g~|^2 with :math:`\tilde g = C^{-1/2}(u - \omega)/V`, by Stein's identity."""
    whole = given.Q0 + given.noise / 2
    omega, star = fields(z, q, m, whole)
    u = pretraining_prox(omega, expit(star), v, near)
    g = (u - omega) @ C_ROOT_INVERSE / v
    first = float((g * (omega @ C_ROOT_INVERSE)).sum(1).mean())
    second = float((g * (star @ C_ROOT_INVERSE)).sum(1).mean())
    det = max(q * whole - m * m, 1e-12)
    by_omega, by_star = (whole * first - m * second) / det, (q * second - m * first) / det
    return _Averages(-given.alpha * by_omega, given.alpha * by_star, float((g * g).sum(1).mean())), u


def solve(given: Pretrained, samples: int, start: Pretrained | None, tolerance: float) -> Pretrained:
    r"""The fixed point of stage 1.

    .. math:: \delta^2 = \alpha E|\tilde g|^2/(2 a_m^2), \quad \eta = a_m/a, \quad \epsilon = \tilde\lambda/a_m, \quad
              Q = \eta^2 J, \quad M = \eta (\int x f - \delta^2 D), \quad V = D/(2a).

    Every start runs on few points; the first that converges goes on with all of them.

    Args:
        given: Settings, in a result that is not filled in yet.
        samples: Quasi-random points.
        start: A result nearby; then only this start runs.
        tolerance: Largest change of Q, M and V (relative, for values above 1).
    """
    z = draw(samples)
    if start is not None and start.Q > 0 and start.V > 0:
        begin = np.array([start.Q, start.M, start.V])
    else:
        begin = np.array(STARTS[0]) * given.Q0
        for q, m, v in STARTS:
            coarse = _run(given, draw(min(COARSE, samples)), np.array([q * given.Q0, m * given.Q0, v]), 1e-3)
            if coarse.point.converged and not coarse.collapsed:
                begin = coarse.point.x
                break
    found = _run(given, z, begin, tolerance)
    if found.collapsed:
        rest = _rest(given, z, 0.0, 0.0, 0.0)
        return replace(given, converged=True, iterations=found.point.iterations, **rest)
    q, m, v = (float(value) for value in found.point.x)
    m = min(max(m, -math.sqrt(q * given.Q0)), math.sqrt(q * given.Q0))
    point = found.point
    return replace(
        given,
        Q=q,
        M=m,
        rank_fraction=found.mass,
        trace=found.trace,
        converged=point.converged,
        iterations=point.iterations,
        residual=point.residual,
        **_rest(given, z, q, m, v),
    )


@dataclass(frozen=True)
class _End:
    point: Point
    mass: float
    trace: float
    collapsed: bool


def _run(given: Pretrained, z: Array, begin: Array, tolerance: float) -> _End:
    pull = math.sqrt(given.kappa) * max(given.ridge, SMALLEST_RIDGE)
    whole = given.Q0 + given.noise / 2
    near: Array | None = None
    mass, trace, collapsed = 0.0, 0.0, False

    def feasible(x: Array) -> bool:
        return bool(x[0] > 0 and x[2] > 0 and x[1] ** 2 < x[0] * whole)

    def step(x: Array) -> Array | None:
        nonlocal near, mass, trace, collapsed
        q, m, v = (float(value) for value in x)
        limit = math.sqrt(q * whole) * (1 - 1e-9)
        found, near = _averages(z, given, q, min(max(m, -limit), limit), v, near)
        if not (found.a > 0 and found.am > 0 and math.isfinite(found.a) and math.isfinite(found.am)):
            return None
        law = Spectrum.of(given.kappa0, given.alpha * found.square / (2 * found.am**2))
        cut = law.moments(pull / found.am)
        eta = found.am / found.a
        mass, trace = cut.mass, eta * cut.f
        new = np.array([eta**2 * cut.j, eta * (cut.xf - law.variance * cut.d), cut.d / (2 * found.a)])
        collapsed = bool(new[0] < SMALLEST or new[2] < SMALLEST)
        return None if collapsed else new

    point = fixed_point(step, begin, feasible=feasible, tolerance=tolerance, most=MOST)
    return _End(point, mass, trace, collapsed)


def _rest(given: Pretrained, z: Array, q: float, m: float, v: float) -> dict[str, Any]:
    """Residual variance on the training set, k, and the error of the noiseless target on fresh sequences."""
    whole = given.Q0 + given.noise / 2
    delta = given.noise / 2 + max(given.Q0 - 2 * m + q, 0.0)
    if q == 0:
        star = math.sqrt(given.Q0) * z[:, :2] @ C_ROOT
        return {
            "V": 0.0,
            "k": 1.0,
            "delta_reuse": delta,
            "error": float(logit_loss(np.zeros_like(star), expit(star)).mean()),
        }
    omega, star = fields(z, q, m, whole)
    gap = pretraining_prox(omega, expit(star), v) - star
    reuse = float(((gap @ C_INVERSE) * gap).sum(1).mean() / 2)
    omega, clean = fields(z, q, m, given.Q0)
    error = float(logit_loss(omega, expit(clean)).mean())
    return {"V": v, "k": math.sqrt(delta / max(reuse, 1e-12)), "delta_reuse": reuse, "error": error}
