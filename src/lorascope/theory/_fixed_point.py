r"""The fixed point of stage 2: three order parameters, whatever the loss of a sequence is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lorascope.theory._prox import Array
from lorascope.theory._record import JUMP_LIMIT, Q0_UPDATE

TOLERANCE = 5e-5
DAMPING = 0.7
SMALLEST = 1e-6
"""Below this squared norm over d the update counts as zero."""
STARTS: dict[str, tuple[float, float, float]] = {
    "informed": (0.9, 1.0, 0.1),
    "weak": (0.4, 0.7, 0.3),
    "uninformed": (0.05, 0.5, 0.5),
}
"""m, q and v from which the iteration begins."""


@dataclass(frozen=True)
class Response:
    """What the sequences answer to the current order parameters.

    Attributes:
        mh: Pull towards the target.
        qh: Noise of the pull.
        vh: Curvature.
        loss: Mean training loss of a sequence.
        jump: Share of the sequences with a discontinuous proximal map.
    """

    mh: float
    qh: float
    vh: float
    loss: float
    jump: float


@dataclass(frozen=True)
class State:
    """Where an iteration stands or ended."""

    m: float
    q: float
    v: float
    start: str = ""
    loss: float = 0.0
    jump: float = 0.0
    converged: bool = False
    iterations: int = 0
    residual: float = math.inf

    def alignment(self) -> float:
        """m / sqrt(q q0)."""
        return self.m / math.sqrt(self.q * Q0_UPDATE) if self.q > SMALLEST else 0.0


def respond(
    alpha: float | int,
    m: float | int,
    q: float | int,
    omega: Array,
    star: Array,
    chi: Array,
    v: float | int,
    loss: Array,
    curvature: Array,
    jump: float | int,
) -> Response:
    r"""Averages over sequences, with Stein's identity for the derivatives.

    .. math:: \hat m = \alpha' (q G_s - m G_w)/\det, \quad \hat q = \alpha' E|g|^2, \quad
              \hat v = -\alpha' (q_0 G_w - m G_s)/\det + 2 \alpha' E[\partial\ell/\partial q],

    with :math:`g = (\chi - \omega)/v`, :math:`G_s = E\, g \cdot \chi^*`, :math:`G_w = E\, g \cdot \omega`, det = q0 q - m^2.

    Args:
        alpha: N' / d.
        m: Overlap.
        q: Squared norm.
        omega: sqrt(q) h of (n, T).
        star: Target fields of (n, T).
        chi: Minimisers of (n, T).
        v: Susceptibility.
        loss: Of each sequence.
        curvature: Derivative of each sequence's loss by q at fixed chi.
        jump: Share of discontinuous maps.
    """
    g = (chi - omega) / v
    gs, gw = float((g * star).sum()) / len(g), float((g * omega).sum()) / len(g)
    det = max(Q0_UPDATE * q - m * m, 1e-12)
    return Response(
        mh=alpha * (q * gs - m * gw) / det,
        qh=alpha * float((g * g).sum()) / len(g),
        vh=-alpha * (Q0_UPDATE * gw - m * gs) / det + 2 * alpha * float(curvature.mean()),
        loss=float(loss.mean()),
        jump=float(jump),
    )


def update(found: Response, ridge: float | int) -> tuple[float, float, float] | None:
    """New m, q and v; None if the solution is no minimum there."""
    stiffness = found.vh + 2 * ridge
    if not math.isfinite(stiffness) or stiffness <= 0:
        return None
    v = 1 / stiffness
    m, q = found.mh * Q0_UPDATE * v, (found.mh**2 * Q0_UPDATE + found.qh) * v * v
    return (m, q, v) if math.isfinite(m) and math.isfinite(q) else None


@dataclass(frozen=True)
class Point:
    """Where `fixed_point` ended."""

    x: Array
    converged: bool
    iterations: int
    residual: float
    broken: bool = False


def fixed_point(
    step: Callable[[Array], Array | None],
    start: Array,
    *,
    feasible: Callable[[Array], bool],
    tolerance: float,
    most: int,
    damping: float = DAMPING,
    memory: int = 3,
) -> Point:
    """Damped iteration with Anderson's acceleration; back to plain, smaller steps where that leads astray.

    Args:
        step: The map; None where it has no value, which ends the iteration.
        start: Where to begin.
        feasible: Whether a point is allowed; images of the map and points between allowed ones must be.
        tolerance: Largest change (relative for coordinates above 1) at which to stop.
        most: Evaluations.
        damping: Share of a plain step.
        memory: Differences that the acceleration uses.

    Returns:
        The last point, or the one of smallest change if the iteration did not converge.

    References:
        Walker and Ni 2011, Anderson acceleration for fixed-point iterations.
    """
    x, best, least = start, start, math.inf
    xs: list[Array] = []
    fs: list[Array] = []
    share, bad = damping, 0
    for count in range(1, most + 1):
        image = step(x)
        if image is None or not bool(np.isfinite(image).all()):
            return Point(best if least < math.inf else start, False, count, min(least, 1e3), broken=True)
        f = image - x
        residual = float(np.max(np.abs(f) / np.maximum(1.0, np.abs(x))))
        if residual < tolerance:
            return Point(x, True, count, residual)
        if residual < least:
            best, least, bad = x, residual, 0
        else:
            bad += 1
            if bad >= 3:
                xs, fs, bad, share = [], [], 0, max(0.1, 0.7 * share)
        xs, fs = [*xs, x][-memory - 1 :], [*fs, f][-memory - 1 :]
        following = x + share * f
        if len(fs) > 1 and residual < 0.5:
            dx, df = np.diff(np.stack(xs, 1), axis=1), np.diff(np.stack(fs, 1), axis=1)
            weights = np.linalg.lstsq(df, f, rcond=1e-8)[0]
            tried = following - (dx + share * df) @ weights
            near = float(np.max(np.abs(tried - x) / np.maximum(np.abs(x), 0.1))) < 0.5
            if near and bool(np.isfinite(tried).all()) and feasible(tried):
                following = tried
        x = following
    return Point(best, False, most, least)


def _feasible(x: Array) -> bool:
    m, q, v = x
    return bool(q > 0 and v > 0 and m * m < q * Q0_UPDATE)


def iterate(
    answer: Callable[[float, float, float], Response],
    begin: State,
    alpha: float | int,
    ridge: float | int,
    *,
    tolerance: float = TOLERANCE,
    most: int = 150,
) -> State:
    """The fixed point from one start.

    Args:
        answer: Averages at (m, q, v).
        begin: Where to begin.
        alpha: N' / d.
        ridge: lambda'.
        tolerance: Largest change of m, q and v (relative for v above 1) at which to stop.
        most: Iterations.

    Returns:
        The last state; its loss is alpha' E l + lambda' q. Never with NaN: a step that leaves the numbers is not taken.
    """
    seen: dict[tuple[float, ...], Response] = {}

    def step(x: Array) -> Array | None:
        m, q, v = (float(value) for value in x)
        if q < SMALLEST:
            return None
        found = answer(_inside(m, q), q, v)
        seen[(m, q, v)] = found
        new = update(found, ridge)
        return None if new is None else np.array(new)

    start = np.array([begin.m, begin.q, begin.v])
    end = fixed_point(step, start, feasible=_feasible, tolerance=tolerance, most=most)
    if end.broken and min(key[1] for key in seen) < 1e-3:
        # The norm shrinks to nothing; say so instead of quoting the direction of a vanishing update.
        last = list(seen.values())[-1]
        v = float(end.x[2])
        return State(0.0, 0.0, v, begin.start, alpha * last.loss, last.jump, True, end.iterations, 0.0)
    m, q, v = (float(value) for value in end.x)
    found = seen.get((m, q, v)) or answer(_inside(m, q), q, v)
    loss = alpha * found.loss + ridge * q
    return State(_inside(m, q), q, v, begin.start, loss, found.jump, end.converged, end.iterations, end.residual)


def _inside(m: float, q: float) -> float:
    limit = math.sqrt(q * Q0_UPDATE * (1 - 1e-9))
    return min(max(m, -limit), limit)


def choose(states: Sequence[State]) -> State:
    """The state of lowest energy (training loss); the first of those within 0.2 %.

    Converged states come first, and of them those beyond `JUMP_LIMIT` last: outside its regime the
    symmetric solution's energy lies below the true one, so that it would win unfairly.
    """
    pool = [state for state in states if state.converged] or list(states)
    pool = [state for state in pool if state.jump <= JUMP_LIMIT] or pool
    lowest = min(state.loss for state in pool)
    return next(state for state in pool if state.loss <= lowest + 2e-3 * max(abs(lowest), 1e-3))
