r"""The fixed point of stage 2: three order parameters, whatever the loss of a sequence is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lorascope.theory._prox import Array
from lorascope.theory._record import Q0_UPDATE

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
    gs, gw = float((g * star).sum(1).mean()), float((g * omega).sum(1).mean())
    det = max(Q0_UPDATE * q - m * m, 1e-12)
    return Response(
        mh=alpha * (q * gs - m * gw) / det,
        qh=alpha * float((g * g).sum(1).mean()),
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


def iterate(
    answer: Callable[[float, float, float], Response],
    begin: State,
    alpha: float | int,
    ridge: float | int,
    *,
    tolerance: float = TOLERANCE,
    most: int = 150,
) -> State:
    """Damped iteration from one start, with a smaller step where it swings.

    Args:
        answer: Averages at (m, q, v).
        begin: Where to begin.
        alpha: N' / d.
        ridge: lambda'.
        tolerance: Largest change of m, q and v (relative to v for v above 1) at which to stop.
        most: Iterations.

    Returns:
        The last state; its loss is alpha' E l + lambda' q. Never with NaN: a step that leaves the numbers is not taken.
    """
    m, q, v = begin.m, begin.q, begin.v
    step, last = DAMPING, math.inf
    loss, jump = begin.loss, begin.jump
    for count in range(1, most + 1):
        if m * m > q * Q0_UPDATE * (1 - 1e-9):
            m = math.copysign(math.sqrt(q * Q0_UPDATE * (1 - 1e-9)), m)
        found = answer(m, q, v)
        loss, jump = alpha * found.loss + ridge * q, found.jump
        new = update(found, ridge)
        if new is None:
            return State(m, q, v, begin.start, loss, jump, False, count, last)
        change = max(abs(new[0] - m), abs(new[1] - q), abs(new[2] - v) / max(1.0, v))
        if change < tolerance:
            return State(m, q, v, begin.start, loss, jump, True, count, change)
        if change > 0.95 * last:
            step = max(0.15, 0.8 * step)
        last = change
        m, q, v = (old + step * (value - old) for old, value in zip((m, q, v), new, strict=True))
        if q < SMALLEST:
            return State(0.0, 0.0, v, begin.start, alpha * found.loss, jump, True, count, change)
    return State(m, q, v, begin.start, loss, jump, False, most, last)


def choose(states: Sequence[State]) -> State:
    """The state of lowest energy (the training loss); the first of those that are equal to 0.2 %, converged ones before others."""
    pool = [state for state in states if state.converged] or list(states)
    lowest = min(state.loss for state in pool)
    return next(state for state in pool if state.loss <= lowest + 2e-3 * max(abs(lowest), 1e-3))
