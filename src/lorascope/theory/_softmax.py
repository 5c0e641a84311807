r"""Sequences of two tokens under a softmax: their loss, and the proximal maps of both stages.

Only :math:`u = (z_{11} - z_{12}, z_{22} - z_{12})` matters; its covariance is Q C with C = [[3, 1], [1, 3]], and the
loss of a sequence is :math:`\ell = 2 \sum_k (s(u_k) - s(u^*_k))^2` with the logistic s. Neither proximal map is convex:
both run a damped Newton descent from several points of each sequence and keep the lowest end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from lorascope.theory._prox import Array

C = np.array([[3.0, 1.0], [1.0, 3.0]])
C_INVERSE = np.linalg.inv(C)
# Eigenvalues 4 and 2 with the directions (1, 1) and (1, -1).
C_ROOT = np.array([[2 + math.sqrt(2), 2 - math.sqrt(2)], [2 - math.sqrt(2), 2 + math.sqrt(2)]]) / 2
C_ROOT_INVERSE = np.linalg.inv(C_ROOT)

WIDE = 1.0
"""Susceptibility above which four starts around omega miss minima of stage 2 and a grid is searched."""
Fields = tuple[Array, Array]
"""The two components of points, each (k, n)."""
Terms = tuple[Array, Array, Array, Array, Array, Array]
"""Value, gradient (2) and Hessian (11, 12, 22), each (k, n)."""
Objective = Callable[[Array, Array, slice | NDArray[np.intp]], Terms]
"""Components of points of some sequences and which sequences -> terms."""


def logit_loss(u: Array, target: Array) -> Array:
    r""":math:`2 \sum_k (s(u_k) - p_k)^2` with p = s(u*).

    Example:
        >>> round(float(logit_loss(np.array([[50.0, 0.0]]), np.array([[0.0, 0.5]]))[0]), 6)
        2.0
    """
    gap = expit(u) - target
    total: Array = 2 * (gap * gap).sum(-1)
    return total


def _term(u: Array, target: Array) -> tuple[Array, Array, Array]:
    """One summand of the loss, and its first and second derivative."""
    s = expit(u)
    gap, slope = s - target, s * (1 - s)
    return 2 * gap * gap, 4 * gap * slope, 4 * slope * (slope + gap * (1 - 2 * s))


def pretraining_prox(omega: Array, target: Array, v: float | int, near: Array | None = None) -> Array:
    r"""The u that minimises :math:`(u - \omega)^T C^{-1} (u - \omega) / (2V) + \ell(u, u^*)`.

    Args:
        omega: (n, 2).
        target: s(u*) of (n, 2).
        v: V.
        near: The minimisers at parameters nearby, as one more start.

    Returns:
        u of (n, 2).
    """
    p, r = C_INVERSE[0, 0] / v, C_INVERSE[0, 1] / v
    w1, w2 = np.ascontiguousarray(omega[:, 0]), np.ascontiguousarray(omega[:, 1])
    t1, t2 = np.ascontiguousarray(target[:, 0]), np.ascontiguousarray(target[:, 1])

    def objective(x: Array, y: Array, which: slice | NDArray[np.intp]) -> Terms:
        l1, f1, s1 = _term(x, t1[which])
        l2, f2, s2 = _term(y, t2[which])
        a, b = x - w1[which], y - w2[which]
        g1, g2 = p * a + r * b, r * a + p * b
        return l1 + l2 + (g1 * a + g2 * b) / 2, g1 + f1, g2 + f2, p + s1, np.full_like(a, r), p + s2

    sure = np.clip(target, 1e-6, 1 - 1e-6)
    aim = np.log(sure / (1 - sure))
    starts = [omega, (omega + aim) / 2] + ([aim] if near is None else [near])
    return _lowest(objective, starts)


def _finetuning_objective(omega: Array, frozen: Array, target: Array, v: float | int, q: float | int) -> Objective:
    w1, w2 = np.ascontiguousarray(omega[:, 0]), np.ascontiguousarray(omega[:, 1])
    t1, t2 = np.ascontiguousarray(target[:, 0]), np.ascontiguousarray(target[:, 1])
    o1, o2 = frozen[:, 0] - q, frozen[:, 1] - q

    def objective(x: Array, y: Array, which: slice | NDArray[np.intp]) -> Terms:
        xy = x * y
        l1, f1, s1 = _term(x * x - xy + o1[which], t1[which])
        l2, f2, s2 = _term(y * y - xy + o2[which], t2[which])
        # du1 = (2x - y, -x), du2 = (-y, 2y - x); their second derivatives are constant.
        a, b = 2 * x - y, 2 * y - x
        c, d = x - w1[which], y - w2[which]
        return (
            l1 + l2 + (c * c + d * d) / (2 * v),
            c / v + f1 * a - f2 * y,
            d / v - f1 * x + f2 * b,
            1 / v + 2 * f1 + s1 * a * a + s2 * y * y,
            -(f1 + f2) - s1 * a * x - s2 * b * y,
            1 / v + 2 * f2 + s1 * x * x + s2 * b * b,
        )

    return objective


def finetuning_prox(
    omega: Array, frozen: Array, target: Array, v: float | int, q: float | int, near: Sequence[Array]
) -> tuple[Array, Array, Array]:
    r"""The chi that minimises :math:`|\chi - \omega|^2/(2v) + \ell(u(\chi), u^*)`.

    The student's logits are :math:`u_k = o_k + \chi_k^2 - \chi_1\chi_2 - q`.

    Args:
        omega: (n, 2).
        frozen: Logits o of the frozen matrix, (n, 2).
        target: s(u*) of (n, 2).
        v: Susceptibility.
        q: Squared norm of the update.
        near: More starts, for instance the target's fields.

    Returns:
        chi, the loss, and its derivative by q at fixed chi.
    """
    starts = [omega, *near]
    if v <= WIDE:
        reach = math.sqrt(v)
        starts += [omega + reach * np.array(step) for step in ((1, 1), (-1, -1), (1, -1), (-1, 1))]
    else:
        starts += _lowest_of_grid(omega, frozen, target, v, q)
    chi = _lowest(_finetuning_objective(omega, frozen, target, v, q), starts)
    x, y = chi[:, 0], chi[:, 1]
    l1, f1, _ = _term(x * x - x * y + frozen[:, 0] - q, target[:, 0])
    l2, f2, _ = _term(y * y - x * y + frozen[:, 1] - q, target[:, 1])
    return chi, l1 + l2, -(f1 + f2)


def _lowest_of_grid(omega: Array, frozen: Array, target: Array, v: float | int, q: float | int) -> list[Array]:
    """The two lowest points of each sequence on a grid over the disc outside which the quadratic alone is above l(omega)."""

    def loss(x: Array, y: Array) -> Array:
        xy = x * y
        a, b = (
            expit(x * x - xy + (frozen[:, 0] - q)) - target[:, 0],
            expit(y * y - xy + (frozen[:, 1] - q)) - target[:, 1],
        )
        found: Array = 2 * (a * a + b * b)
        return found

    x, y = omega[:, 0], omega[:, 1]
    radius = np.sqrt(2 * v * loss(x, y))
    axis = np.linspace(-1, 1, 9)
    steps = [(a, b) for a in axis for b in axis if a * a + b * b <= 1]
    values = np.stack([loss(x + a * radius, y + b * radius) + (a * a + b * b) * radius**2 / (2 * v) for a, b in steps])
    best = np.argpartition(values, 1, axis=0)[:2]
    moves = np.array(steps)
    return [omega + radius[:, None] * moves[row] for row in best]


def bistable(omega: Array, frozen: Array, target: Array, v: float | int, q: float | int) -> float:
    """Share of the sequences whose proximal map has several local minima, by descent from twelve starts around omega."""
    objective = _finetuning_objective(omega, frozen, target, v, q)
    turns = np.arange(12) * (2 * math.pi / 5.5)
    radius = np.sqrt(v) * np.linspace(0.0, 2.5, 12)
    x = omega[:, 0] + (radius * np.cos(turns))[:, None]
    y = omega[:, 1] + (radius * np.sin(turns))[:, None]
    x, y, _ = _descend(objective, x, y, slice(None), 60)
    spread = np.maximum(np.ptp(x, axis=0), np.ptp(y, axis=0))
    return float((spread > 1e-2).mean())


def _lowest(objective: Objective, starts: Sequence[Array], *, rough: int = 3, most: int = 40) -> Array:
    """A few steps from every start, then from the best of each sequence to the end."""
    x, y = np.stack([start[:, 0] for start in starts]), np.stack([start[:, 1] for start in starts])
    x, y, value = _descend(objective, x, y, slice(None), rough)
    best, rows = value.argmin(0), np.arange(x.shape[1])
    x, y = x[best, rows], y[best, rows]
    # Most sequences are done after a few steps; the others go on without them.
    active = rows.astype(np.intp)
    for steps in (6, 10, most):
        moved_x, moved_y, _ = _descend(objective, x[active], y[active], active, steps)
        x[active], y[active] = moved_x, moved_y
        _, g1, g2, *_ = objective(moved_x, moved_y, active)
        active = active[np.hypot(g1, g2) > 1e-8]
        if not len(active):
            break
    return np.stack([x, y], -1)


def _descend(
    objective: Objective, x: Array, y: Array, which: slice | NDArray[np.intp], most: int
) -> tuple[Array, Array, Array]:
    """Newton's method with a multiple of the identity where the Hessian is not positive or a step does not help."""
    value, g1, g2, a, b, c = objective(x, y, which)
    damping = np.zeros(value.shape)
    for _ in range(most):
        smallest = (a + c) / 2 - np.hypot((a - c) / 2, b)
        size = np.abs(a) + np.abs(c) + 1e-12
        shift = damping + np.maximum(1e-3 * size - smallest, 0)
        p, r = a + shift, c + shift
        det = p * r - b * b
        new_x, new_y = x - (r * g1 - b * g2) / det, y - (p * g2 - b * g1) / det
        new = objective(new_x, new_y, which)
        fine = new[0] <= value + 1e-15
        x, y = np.where(fine, new_x, x), np.where(fine, new_y, y)
        value, g1, g2, a, b, c = (
            np.where(fine, after, before) for after, before in zip(new, (value, g1, g2, a, b, c), strict=True)
        )
        damping = np.where(fine, np.where(damping > 1e-8 * size, 0.2 * damping, 0), np.maximum(4 * damping, 0.3 * size))
    return x, y, value
