r"""Stage 2 with softmax, T = 2: frozen and target logits are drawn together, as the loss depends on both."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from scipy import optimize
from scipy.special import expit

from lorascope.theory._fixed_point import Response, State, respond
from lorascope.theory._prox import Array, sobol_normals
from lorascope.theory._record import Q0_UPDATE
from lorascope.theory._softmax import C_ROOT, bistable, finetuning_prox, logit_loss, pretraining_prox

if TYPE_CHECKING:
    from lorascope.theory.finetuned import FineTuned
    from lorascope.theory.finetuning import _Settings
    from lorascope.theory.pretraining import Pretrained

SAMPLES = 2**12
JUMP_SAMPLES = 2**10


def update_fields(chi: Array, q: float | int) -> Array:
    r""":math:`(\chi_1^2 - \chi_1\chi_2 - q,\ \chi_2^2 - \chi_1\chi_2 - q)` of (n, 2)."""
    cross = chi[:, 0] * chi[:, 1]
    return np.stack([chi[:, 0] ** 2 - cross, chi[:, 1] ** 2 - cross], 1) - q


def truncated_logits(z: Array, fraction: float | int, largest: bool = False) -> Array:
    r"""Normals of covariance C, cut to the ``fraction`` with the smallest (largest) :math:`u_1^2 + u_2^2`.

    In the eigenbasis of C the norm is 4 a^2 + 2 b^2, so that the radius is cut at an ellipse. The angle is moved by its
    distribution within the cut, then the radius.

    Args:
        z: Normals of (n, 2).
        fraction: Share that is kept.
        largest: Keep the outside.

    Example:
        >>> u = truncated_logits(sobol_normals(2, 4096, 0), 0.1)
        >>> bool(((u**2).sum(1) < 0.7).all())
        True
    """
    if fraction >= 1:
        return z @ C_ROOT
    grid = np.linspace(0, 2 * math.pi, 4097)
    shape = 1 / (4 * np.cos(grid) ** 2 + 2 * np.sin(grid) ** 2)
    inside = 1 - fraction if largest else fraction

    def gap(level: float) -> float:
        return float((1 - np.exp(-level * shape[:-1] / 2)).mean()) - inside

    level = optimize.brentq(gap, 0.0, 1e4)
    outside_weight = np.exp(-level * shape / 2)
    weight = outside_weight if largest else 1 - outside_weight
    total = np.concatenate([[0.0], np.cumsum((weight[1:] + weight[:-1]) / 2)])
    turn = (np.arctan2(z[:, 1], z[:, 0]) / (2 * math.pi)) % 1.0
    angle = np.interp(turn * total[-1], total, grid)
    cut = np.exp(-level / (4 * np.cos(angle) ** 2 + 2 * np.sin(angle) ** 2) / 2)
    tail = np.exp(-(z * z).sum(1) / 2)
    kept = tail * cut if largest else 1 - (1 - tail) * (1 - cut)
    radius = np.sqrt(-2 * np.log(np.maximum(kept, 1e-300)))
    a, b = radius * np.cos(angle), radius * np.sin(angle)
    half = math.sqrt(0.5)
    return np.stack([half * (a + b), half * (a - b)], 1) @ C_ROOT


def fields(h: Array, u: Array, m: float | int, q: float | int) -> tuple[Array, Array]:
    r""":math:`\omega = \sqrt q h` and :math:`\chi^* = (m/\sqrt q) h + \sqrt{q_0 - m^2/q}\, u`."""
    root = math.sqrt(q)
    return root * h, (m / root) * h + math.sqrt(max(Q0_UPDATE - m * m / q, 0.0)) * u


@dataclass
class _Sequences:
    """Sequences of the softmax model; remembers the last minimisers as starts of the next proximal maps."""

    alpha: float
    h: Array
    u: Array
    frozen: Array
    target: Array
    near: list[Array] = field(default_factory=list)

    def respond(self, m: float, q: float, v: float) -> Response:
        """Averages at order parameters."""
        omega, star = fields(self.h, self.u, m, q)
        target = expit(self.target + update_fields(star, Q0_UPDATE))
        chi, loss, slope = finetuning_prox(omega, self.frozen, target, v, q, self.near or [star])
        self.near = [chi]
        return respond(self.alpha, m, q, omega, star, chi, v, loss, slope, 0.0)


def solve(
    settings: _Settings,
    first: Pretrained,
    samples: int | None,
    start: FineTuned | str | None,
    seed: int,
    tolerance: float,
) -> FineTuned:
    """Stage 2 after a pre-training with softmax."""
    from lorascope.theory.finetuning import solve_from

    slope = first.M / first.Q if first.Q > 0 else 0.0
    left = first.M * slope
    beta = first.beta if settings.data == "recalibrated" else 1.0
    whole = first.Q0 + first.noise / 2

    def logits(z: Array, target: float, *, chosen: bool) -> tuple[Array, Array]:
        active = chosen and settings.data == "active"
        u = truncated_logits(z[:, :2], settings.fraction, settings.largest) if active else z[:, :2] @ C_ROOT
        omega = math.sqrt(first.Q) * u
        star = slope * omega + math.sqrt(max(target - left, 0.0)) * z[:, 2:4] @ C_ROOT
        if chosen and settings.data == "reused" and first.V > 0:
            omega = pretraining_prox(omega, expit(star), first.V)
        return beta * omega, star

    def problem(points: int) -> Callable[[float, float, float], Response]:
        z = sobol_normals(8, points, seed)
        frozen, target = logits(z, whole, chosen=True)
        h = np.concatenate([z[:, 4:6], -z[:, 4:6]])
        u = np.concatenate([z[:, 6:8], z[:, 6:8]])
        twice = (np.concatenate([frozen, frozen]), np.concatenate([target, target]))
        return _Sequences(settings.alpha, h, u, *twice).respond

    def error(found: State) -> float:
        z = sobol_normals(8, max(samples or 0, 2**14), seed + 1)
        frozen, clean = logits(z, first.Q0, chosen=False)
        chi, star = fields(z[:, 4:6], z[:, 6:8], found.m, max(found.q, 1e-12))
        student = frozen + update_fields(chi, found.q)
        return float(logit_loss(student, expit(clean + update_fields(star, Q0_UPDATE))).mean())

    def jump(found: State) -> float:
        z = sobol_normals(8, JUMP_SAMPLES, seed)
        if found.q <= 0:
            return 0.0
        frozen, target = logits(z, whole, chosen=True)
        omega, star = fields(z[:, 4:6], z[:, 6:8], found.m, found.q)
        return bistable(omega, frozen, expit(target + update_fields(star, Q0_UPDATE)), found.v, found.q)

    noises = {"reused": first.delta_reuse, "recalibrated": first.delta_recalibrated}
    settings = settings.but(noise=noises.get(settings.data, first.delta_eff))
    return solve_from(settings, problem, SAMPLES if samples is None else samples, start, tolerance, error, jump)
