r"""Stage 2 as order parameters: LoRA of rank 1 on :math:`N' = \alpha' d` sequences (replica symmetric, zero temperature)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import gammainc, gammaincinv

from lorascope.core.errors import InputError
from lorascope.theory._fixed_point import SMALLEST, STARTS, TOLERANCE, Response, State, choose, iterate, respond
from lorascope.theory._prox import Array, prox, sobol_normals, symmetric
from lorascope.theory._record import (
    DATA,
    JUMP_LIMIT,
    JUMP_LIMIT_SOFTMAX,
    Q0_UPDATE,
    above_zero,
    at_least_zero,
    check_samples,
    check_tokens,
    number,
    one_of,
    shown,
    whole,
)
from lorascope.theory._reuse import reuse_warnings, smallest_dim
from lorascope.theory.finetuned import FineTuned
from lorascope.theory.pretraining import Pretrained

COLLAPSE = 1e-3
"""Squared norm over d below which the update counts as collapsed; its direction is then noise."""
COARSE = 2**9
"""Points of the first pass, in which every start runs; the chosen one goes on with all points."""


def finetune(
    *,
    alpha: float | int,
    tokens: int,
    ridge: float | int,
    noise: float | int,
    base_error: float | int = 0.0,
    samples: int | None = None,
    start: FineTuned | str | None = None,
    seed: int = 0,
    tolerance: float = TOLERANCE,
) -> FineTuned:
    r"""Order parameters of LoRA on a frozen matrix whose residual has variance Dn; linear activation.

    :math:`\omega = \sqrt q h`, :math:`\chi^* = (m/\sqrt q) h + \sqrt{q_0 - m^2/q}\, u`,
    :math:`B = \chi^*\chi^{*T} - q_0 I + \nu + q I`, and :math:`\chi` is the exact global minimiser of
    :math:`|\chi - \omega|^2/(2v) + T^{-2} |\chi\chi^T - B|_F^2` (see `lorascope.theory._prox.prox`). With the averages of
    `lorascope.theory._fixed_point.respond`,

    .. math:: v = 1/(\hat v + 2\lambda'), \quad m = \hat m q_0 v, \quad q = (\hat m^2 q_0 + \hat q) v^2,

    .. math:: E' = \tfrac{T+1}{T} [\mathrm{base} + q^2 + q_0^2 - 2m^2], \quad
              \mathrm{train}/d = \alpha' E \ell + \lambda' q.

    Args:
        alpha: N' / d.
        tokens: T.
        ridge: lambda'.
        noise: Dn.
        base_error: Q0 - 2M + Q.
        samples: Quasi-random points, a power of two, each used with h and with -h; by default fewer for long sequences.
        start: A result nearby (then only this start runs), the name of one start, or None for all of them.
        seed: Of the scrambling.
        tolerance: Largest change of m, q and v at which the iteration stops.

    Returns:
        Order parameters with convergence and warnings.

    Raises:
        InputError: A value is out of range.

    Example:
        >>> found = finetune(alpha=4.0, tokens=2, ridge=0.5, noise=0.7)
        >>> round(found.m, 2), round(found.q, 2), round(found.alignment, 2)
        (0.97, 0.98, 0.98)
    """
    check_tokens(tokens)
    _check_numbers(alpha, ridge, samples, start, seed, tolerance)
    at_least_zero(noise=noise, base_error=base_error)
    size = math.sqrt(noise)

    def residual(points: Array) -> Array:
        return size * symmetric(points, tokens)

    settings = _Settings(float(alpha), tokens, float(ridge), float(noise), float(base_error))
    return _linear(settings, residual, samples, start, seed, tolerance)


def finetune_after(
    pretrained: Pretrained,
    *,
    alpha: float | int,
    ridge: float | int,
    data: str = "fresh",
    fraction: float | int = 0.1,
    largest: bool = False,
    dim: int | None = None,
    samples: int | None = None,
    start: FineTuned | str | None = None,
    seed: int = 0,
    tolerance: float = TOLERANCE,
) -> FineTuned:
    r"""LoRA after a pre-training, on one kind of data.

    Linear: ``fresh`` has Dn = Deff; ``reused`` (sequences of stage 1 with the same label noise) Deff / k^2; ``recalibrated``
    (S times beta = M/Q) Delta/2 + Q0 - M^2/Q, also in the test error; ``active`` labels the ``fraction`` of a pool of fresh
    sequences with the smallest frozen logits, :math:`\nu = (M/Q - 1) z + \sqrt{\Delta/2 + Q_0 - M^2/Q}\,` noise with z cut
    to that fraction. Softmax (T = 2): the frozen and the target logits are drawn together, on reused sequences through the
    proximal map of stage 1.

    Args:
        pretrained: Stage 1.
        alpha: N' / d.
        ridge: lambda'.
        data: ``fresh``, ``reused``, ``recalibrated`` or ``active``.
        fraction: Share of the pool that ``active`` labels.
        largest: Let ``active`` take the largest logits, where simulations do not always agree (flagged).
        dim: d, if one is meant: reusing alpha'/(alpha d) of the stage-1 sequences is flagged above 5 %. Without it the
            result says from which d on that is kept (``smallest_dim``), and is flagged if that is above 200.
        samples: Quasi-random points, a power of two.
        start: A result nearby, the name of a start, or None for all of them.
        seed: Of the scrambling.
        tolerance: Largest change at which the iteration stops.

    Returns:
        Order parameters, with the warnings of stage 1 and of this kind of data.

    Raises:
        InputError: A value is out of range or unknown.

    Example:
        >>> from lorascope.theory import pretrain
        >>> first = pretrain(alpha=0.3, tokens=2, kappa0=0.5, noise=0.5, ridge=0.03)
        >>> found = finetune_after(first, alpha=3.0, ridge=0.5, data="reused", samples=1024)
        >>> round(found.alignment, 2), round(found.test_error, 2)
        (0.99, 0.27)
    """
    if not isinstance(pretrained, Pretrained):
        raise InputError(f"pretrained {shown(pretrained)} must be what lorascope.theory.pretrain returned")
    one_of("data", data, DATA)
    _check_numbers(alpha, ridge, samples, start, seed, tolerance)
    if not 0 < number("fraction", fraction) <= 1:
        raise InputError(f"fraction {fraction} must be above 0 and at most 1")
    words = _warnings_of(pretrained, data, float(alpha), largest, dim)
    tokens = pretrained.tokens
    base = pretrained.base_recalibrated if data == "recalibrated" else pretrained.base_error
    settings = _Settings(float(alpha), tokens, float(ridge), 0.0, base, pretrained.activation, data, words=words)
    if data == "active":
        settings = settings.but(fraction=float(fraction), largest=largest)
    if data == "reused":
        settings = settings.but(smallest_dim=smallest_dim(pretrained.alpha, alpha))
    if pretrained.activation == "softmax":
        from lorascope.theory._softmax_finetuning import solve

        return solve(settings, pretrained, samples, start, seed, tolerance)
    noises = {
        "fresh": pretrained.delta_eff,
        "reused": pretrained.delta_reuse,
        "recalibrated": pretrained.delta_recalibrated,
    }
    pairs = tokens * (tokens + 1) // 2
    if data == "active":
        rest = math.sqrt(pretrained.delta_recalibrated)
        pull = (pretrained.beta - 1) * math.sqrt(pretrained.Q)
        settings = settings.but(noise=rest**2 + pull**2 * _kept_square(pairs, float(fraction), largest))

        def residual(points: Array) -> Array:
            z = truncate(points[:, pairs:], float(fraction), largest)
            return pull * symmetric(z, tokens) + rest * symmetric(points[:, :pairs], tokens)

        return _linear(settings, residual, samples, start, seed, tolerance, extra=pairs)
    size = math.sqrt(noises[data])

    def plain(points: Array) -> Array:
        return size * symmetric(points, tokens)

    return _linear(settings.but(noise=noises[data]), plain, samples, start, seed, tolerance)


def _check_numbers(alpha: Any, ridge: Any, samples: Any, start: Any, seed: Any, tolerance: Any) -> None:
    """Refuse what both ways of asking have in common."""
    above_zero(alpha=alpha, ridge=ridge, tolerance=tolerance)
    if samples is not None:
        check_samples(samples)
    if not (start is None or isinstance(start, FineTuned)):
        one_of("start", start, list(STARTS))
    if whole("seed", seed) < 0:
        raise InputError(f"seed {seed} must be at least 0")


def truncate(z: Array, fraction: float | int, largest: bool = False) -> Array:
    """Normals of (n, p) moved along their directions into the ``fraction`` with the smallest (largest) norm.

    Example:
        >>> z = truncate(np.array([[3.0, 4.0]]), 0.5)
        >>> round(float(np.hypot(*z[0])), 3), round(float(z[0, 1] / z[0, 0]), 3)
        (1.177, 1.333)
    """
    half = z.shape[1] / 2
    square = (z * z).sum(1)
    share = gammainc(half, square / 2)
    kept = 1 - fraction + fraction * share if largest else fraction * share
    wanted = 2 * gammaincinv(half, np.clip(kept, 0.0, 1 - 1e-15))
    moved: Array = z * np.sqrt(wanted / np.maximum(square, 1e-300))[:, None]
    return moved


def _kept_square(count: int, fraction: float, largest: bool) -> float:
    """Mean square of a component of `count` normals cut to a fraction by their norm."""
    half = count / 2
    if largest:
        return float((1 - gammainc(half + 1, gammaincinv(half, 1 - fraction))) / fraction)
    return float(gammainc(half + 1, gammaincinv(half, fraction)) / fraction)


@dataclass(frozen=True)
class _Settings:
    """What a result says about its question."""

    alpha: float
    tokens: int
    ridge: float
    noise: float
    base_error: float
    activation: str = "linear"
    data: str = "fresh"
    fraction: float = 1.0
    largest: bool = False
    smallest_dim: int | None = None
    words: tuple[str, ...] = ()

    def but(self, **changes: float | int | bool | None) -> _Settings:
        """The same with some values changed."""
        return replace(self, **changes)  # type: ignore[arg-type]


def _warnings_of(first: Pretrained, data: str, alpha: float, largest: bool, dim: int | None) -> tuple[str, ...]:
    words = [f"stage 1: {word}" for word in first.warnings]
    if data == "active" and largest:
        words.append("choosing the largest logits: simulations do not always agree")
    if data == "reused":
        words += reuse_warnings(first.alpha, alpha, dim)
    return tuple(words)


def default_samples(tokens: int) -> int:
    """Quasi-random points by the length of a sequence: what keeps a point of both stages under 3 s."""
    return 2**14 if tokens <= 2 else 2**13 if tokens == 3 else 2**12 if tokens <= 6 else 2**11


def _linear(
    settings: _Settings,
    residual: Callable[[Array], Array],
    samples: int | None,
    start: FineTuned | str | None,
    seed: int,
    tolerance: float,
    extra: int = 0,
) -> FineTuned:
    tokens = settings.tokens
    count = default_samples(tokens) if samples is None else samples
    width = 2 * tokens + tokens * (tokens + 1) // 2 + extra

    def problem(points: int) -> Callable[[float, float, float], Response]:
        z = sobol_normals(width, points, seed)
        h, u, nu = z[:, :tokens], z[:, tokens : 2 * tokens], residual(z[:, 2 * tokens :])
        h, u, nu = np.concatenate([h, -h]), np.concatenate([u, u]), np.concatenate([nu, nu])
        return _LinearSequences(settings.alpha, h, u, nu).respond

    return solve_from(settings, problem, count, start, tolerance)


@dataclass(frozen=True)
class _LinearSequences:
    """Sequences of the linear model: h, u and the residual nu, over which the averages are taken."""

    alpha: float
    h: Array
    u: Array
    nu: Array

    def respond(self, m: float, q: float, v: float) -> Response:
        """Averages at order parameters."""
        tokens = self.h.shape[1]
        omega = math.sqrt(q) * self.h
        star = (m / math.sqrt(q)) * self.h + math.sqrt(max(Q0_UPDATE - m * m / q, 0.0)) * self.u
        b = star[:, :, None] * star[:, None, :] + self.nu + (q - Q0_UPDATE) * np.eye(tokens)
        k4 = 4 * v / tokens**2
        chi, top = prox(omega, b, k4)
        gap = chi[:, :, None] * chi[:, None, :] - b
        loss = np.einsum("nij,nij->n", gap, gap) / tokens**2
        slope = -2 / tokens**2 * np.einsum("nii->n", gap)
        return respond(self.alpha, m, q, omega, star, chi, v, loss, slope, float((k4 * top > 1).mean()))


def solve_from(
    settings: _Settings,
    problem: Callable[[int], Callable[[float, float, float], Response]],
    samples: int,
    start: FineTuned | str | None,
    tolerance: float,
    error: Callable[[State], float] | None = None,
    jump: Callable[[State], float] | None = None,
) -> FineTuned:
    """Every start on few points, then the one of lowest energy on all of them.

    Args:
        settings: The question.
        problem: Number of points -> averages at (m, q, v).
        samples: Points.
        start: See `finetune`.
        tolerance: Of the iteration.
        error: Test error of a state; the linear one by default.
        jump: Diagnostic of a state, if `problem` does not give it.
    """
    fine = problem(samples)
    alpha, ridge = settings.alpha, settings.ridge
    energies: dict[str, float] = {}
    if isinstance(start, FineTuned) and start.q > SMALLEST:
        begin = State(start.m, start.q, max(start.v, 1e-6), start.start)
    else:
        names = [start] if isinstance(start, str) else list(STARTS)
        coarse = problem(min(COARSE, samples))
        tried = [
            iterate(coarse, State(*STARTS[name], name), alpha, ridge, tolerance=max(tolerance, 5e-4), most=60)
            for name in names
        ]
        energies = {state.start: state.loss for state in tried}
        begin = choose(tried)
        if begin.q <= SMALLEST:
            begin = State(*STARTS[begin.start], begin.start)
    found = iterate(fine, begin, alpha, ridge, tolerance=tolerance, most=60)
    if jump is not None:
        found = replace(found, jump=jump(found))
    energies = energies or {found.start: found.loss}
    factor = (settings.tokens + 1) / settings.tokens
    if error is None:
        test = factor * (settings.base_error + found.q**2 + Q0_UPDATE**2 - 2 * found.m**2)
    else:
        test = error(found)
    return FineTuned(
        alpha=alpha,
        tokens=settings.tokens,
        ridge=ridge,
        noise=settings.noise,
        base_error=settings.base_error,
        activation=settings.activation,
        data=settings.data,
        fraction=settings.fraction,
        largest=settings.largest,
        smallest_dim=settings.smallest_dim,
        m=found.m,
        q=found.q,
        v=found.v,
        alignment=found.alignment(),
        test_error=test,
        train_loss=found.loss,
        jump=found.jump,
        start=found.start,
        energies=energies,
        converged=found.converged,
        iterations=found.iterations,
        residual=found.residual,
        warnings=[*settings.words, *_words(found, settings.activation)],
    )


def _words(found: State, activation: str) -> list[str]:
    words = []
    limit = JUMP_LIMIT if activation == "linear" else JUMP_LIMIT_SOFTMAX
    if found.q < COLLAPSE:
        words.append(f"the update collapsed (q {found.q:.1g}): raise alpha or lower ridge")
    if not found.converged:
        words.append(f"not converged after {found.iterations} iterations (last change {found.residual:.1e})")
    if found.jump > limit:
        words.append(
            f"jump {found.jump:.2f} is above {limit}: near the recovery threshold replica symmetry is doubtful"
        )
    return words
