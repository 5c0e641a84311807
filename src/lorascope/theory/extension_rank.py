"""Extension: fine-tuning with an update of rank r of at least T; ours, see docs/science/theory_extension.md."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from lorascope.core.errors import InputError, unknown_name
from lorascope.theory._fixed_point import (
    SMALLEST,
    STARTS,
    TOLERANCE,
    Response,
    State,
    choose,
    iterate,
    respond,
)
from lorascope.theory._prox import Array, sobol_normals, symmetric
from lorascope.theory._record import (
    JUMP_LIMIT,
    Q0_UPDATE,
    Record,
    above_zero,
    at_least_zero,
    check_samples,
    check_tokens,
    whole,
)

COARSE = 2**8
"""Points of the first pass, in which every start runs; the chosen one goes on with all points."""
COLLAPSED = 1e-3
"""Squared norm of a column over d below which its direction says nothing."""
MOST_FIELDS = 64
"""Largest T r: the average is over 2 T r + T(T+1)/2 dimensions."""


@dataclass(frozen=True, kw_only=True)
class RankFineTuning(Record):
    """Order parameters of stage 2 with r columns, student and target alike.

    Attributes:
        alpha: N' / d.
        tokens: T.
        ridge: lambda'.
        noise: Dn.
        rank: r.
        base_error: What pre-training adds to the test error before the factor (T+1)/T.
        m: Overlap of each column of W with its column of W*, over d, in the frame where W^T W* is positive.
        q: Squared norm of a column over d.
        v: Susceptibility.
        alignment: m / sqrt(q q0).
        train_loss: Over d, penalty included.
        test_error: Of the noiseless target, with the base error.
        jump: Share of the samples at which I - k4 B has a negative eigenvalue, where the minimiser of a sample's energy is
            one of several local minima.
        start: The start whose solution has the lowest energy.
        converged: Whether the last change was below the tolerance.
        iterations: Of the fixed point.
        warnings: Why the number is not to be trusted; empty if nothing is known against it.
        schema_version: Version of this layout.
    """

    alpha: float
    tokens: int
    ridge: float
    noise: float
    rank: int
    base_error: float
    m: float
    q: float
    v: float
    alignment: float
    train_loss: float
    test_error: float
    jump: float
    start: str
    converged: bool
    iterations: int
    warnings: list[str] = field(default_factory=list)
    schema_version: int = 1

    kind: ClassVar[str] = "rank_fine_tuning"

    @property
    def valid(self) -> bool:
        """Whether there is no warning."""
        return not self.warnings


def prox(omega: Array, b: Array, k4: float, *, start: Array | None = None, most: int = 60) -> tuple[Array, Array]:
    r"""The X that minimises :math:`|X - \Omega|_F^2 + (k_4/2) |X X^T - B|_F^2`, exactly, for r >= T.

    :math:`|XX^T|^2 = \max_\Lambda 2\,\mathrm{tr}\,\Lambda X X^T - |\Lambda|^2` turns the quartic into a quadratic in X with
    the matrix :math:`A = I + k_4 (\Lambda - B)`, to be kept positive. Its dual is the convex problem

    .. math:: \min_{A > 0}\; \mathrm{tr}\, \Omega\Omega^T A^{-1} + \tfrac{1}{2 k_4} |A - C|_F^2, \qquad C = I - k_4 B.

    With r >= T, :math:`\Omega\Omega^T` has full rank (almost surely), which keeps its minimiser off the border; there
    :math:`\Lambda = X X^T` with :math:`X = A^{-1} \Omega`, the duality gap is zero, and X is the global minimiser.

    Args:
        omega: Omega of (n, T, r).
        b: B of (n, T, T), symmetric.
        k4: 4 v / T^2, positive.
        start: Positive matrices of (n, T, T) to begin Newton's method at, for instance the A of a similar problem.
        most: Newton steps.

    Returns:
        X of (n, T, r), and A of (n, T, T).

    Example:
        >>> x, _ = prox(np.array([[[2.0]]]), np.array([[[1.0]]]), 1.0)
        >>> round(float(x[0, 0, 0] + x[0, 0, 0] * (x[0, 0, 0] ** 2 - 1.0)), 6)
        2.0
    """
    count, tokens, _ = omega.shape
    eye = np.eye(tokens)
    weight = np.asarray(omega @ omega.transpose(0, 2, 1))
    c = eye - k4 * b
    a = _first_guess(c, weight, k4) if start is None else start
    inverse = np.asarray(np.linalg.inv(a), dtype=np.float64)
    energy = _dual(a, inverse, weight, c, k4)
    for _ in range(most):
        pulled = inverse @ weight @ inverse
        gradient = (a - c) / k4 - pulled
        hessian = _kron(inverse, pulled) + _kron(pulled, inverse) + np.eye(tokens**2) / k4
        step = -np.linalg.solve(hessian, gradient.reshape(count, -1, 1)).reshape(a.shape)
        step = (step + step.transpose(0, 2, 1)) / 2
        decrement = -(gradient * step).sum((1, 2))
        if float(decrement.max()) < 1e-18 * max(1.0, float(np.abs(energy).max())):
            break
        length = np.ones(count)
        for _ in range(50):
            tried = a + length[:, None, None] * step
            positive = np.linalg.eigvalsh(tried)[:, 0] > 0
            tried = np.where(positive[:, None, None], tried, a)
            new_inverse = np.asarray(np.linalg.inv(tried), dtype=np.float64)
            new_energy = _dual(tried, new_inverse, weight, c, k4)
            fine = positive & (new_energy <= energy - 1e-4 * length * decrement + 1e-13 * np.abs(energy))
            if fine.all():
                break
            length = np.where(fine, length, length / 2)
        keep = fine[:, None, None]
        a, inverse = np.where(keep, tried, a), np.where(keep, new_inverse, inverse)
        energy = np.where(fine, new_energy, energy)
        if not fine.any():
            break
    return inverse @ omega, a


def _first_guess(c: Array, weight: Array, k4: float) -> Array:
    """The positive part of C, lifted off the border by what a single token's equation gives."""
    values, vectors = np.linalg.eigh(c)
    lift = np.cbrt(k4 * np.trace(weight, axis1=1, axis2=2))[:, None] + 1e-9
    found: Array = (vectors * (np.maximum(values, 0) + lift)[:, None, :]) @ vectors.transpose(0, 2, 1)
    return found


def _dual(a: Array, inverse: Array, weight: Array, c: Array, k4: float) -> Array:
    found: Array = (weight * inverse).sum((1, 2)) + ((a - c) ** 2).sum((1, 2)) / (2 * k4)
    return found


def _kron(left: Array, right: Array) -> Array:
    count, size, _ = left.shape
    found: Array = np.einsum("nij,nkl->nikjl", left, right).reshape(count, size**2, size**2)
    return found


def finetune_rank(
    *,
    alpha: float | int,
    tokens: int,
    ridge: float | int,
    noise: float | int,
    rank: int,
    base_error: float | int = 0.0,
    samples: int | None = None,
    start: str | None = None,
    seed: int = 0,
    tolerance: float = TOLERANCE,
    most: int = 80,
) -> RankFineTuning:
    r"""Stage 2 for an update of rank r >= T on a frozen matrix that pre-training left with residual variance Dn.

    Student and target have r columns each; by the rotational symmetry of target, prior and data all overlap matrices are
    multiples of the identity in the frame where :math:`W^T W^*` is positive. The fields are :math:`T \times r` matrices:
    :math:`\Omega = \sqrt q\, h`, :math:`X^* = (m/\sqrt q) h + \sqrt{q_0 - m^2/q}\, u`,
    :math:`B = X^* X^{*T} - r q_0 I + \nu + r q I`, and X is the exact `prox`.

    Args:
        alpha: N' / d.
        tokens: T.
        ridge: lambda'.
        noise: Dn.
        rank: r, at least T (below that the prox has no exact form that we know; r = 1 is `lorascope.theory.finetune`).
        base_error: Q0 - 2M + Q, what pre-training adds to the test error.
        samples: Quasi-random points, a power of two, each used with h and with -h; by default more for more fields.
        start: Name of one start; None for all of them, of which the solution of lowest energy counts.
        seed: Of the scrambling.
        tolerance: Largest change of m, q and v at which the iteration stops.
        most: Iterations.

    Returns:
        The order parameters, with warnings where they are not to be trusted.

    Raises:
        InputError: A value is out of range.

    Example:
        >>> found = finetune_rank(alpha=6.0, tokens=2, ridge=0.5, noise=0.7, rank=2, samples=512)
        >>> found.converged, round(found.alignment, 2)
        (True, 0.99)
    """
    _check(alpha, tokens, ridge, noise, rank, base_error)
    count = default_samples(tokens, rank) if samples is None else samples
    check_samples(count)
    names = list(STARTS) if start is None else [start]
    if start is not None and start not in STARTS:
        raise unknown_name("start", start, STARTS)

    def solve(points: int, begin: State, accuracy: float) -> State:
        sequences = _Sequences(float(alpha), rank, *_draw(tokens, rank, points, float(noise), seed))
        # Per column: iterate() adds ridge * q, so that the energy is that of one column.
        return iterate(sequences.respond, begin, alpha / rank, ridge, tolerance=accuracy, most=most)

    begins = {name: State(*STARTS[name], name) for name in names}
    if len(names) > 1:
        tried = [solve(min(COARSE, count), begin, max(tolerance, 5e-4)) for begin in begins.values()]
        chosen = choose(tried)
        begin = chosen if chosen.q > SMALLEST and chosen.converged else begins[chosen.start]
    else:
        begin = begins[names[0]]
    found = solve(count, begin, tolerance)
    gap = found.q**2 + Q0_UPDATE**2 - 2 * found.m**2
    return RankFineTuning(
        alpha=float(alpha),
        tokens=tokens,
        ridge=float(ridge),
        noise=float(noise),
        rank=rank,
        base_error=float(base_error),
        m=found.m,
        q=found.q,
        v=found.v,
        alignment=found.alignment(),
        train_loss=rank * found.loss,
        test_error=(tokens + 1) / tokens * (base_error + rank * gap),
        jump=found.jump,
        start=found.start,
        converged=found.converged,
        iterations=found.iterations,
        warnings=_words(found),
    )


class _Sequences:
    """Sequences with T x r fields, over which the averages are taken; keeps the last A of each to start from."""

    def __init__(self, alpha: float, rank: int, h: Array, u: Array, nu: Array) -> None:
        self.alpha, self.rank, self.h, self.u, self.nu = alpha, rank, h, u, nu
        self.last: Array | None = None

    def respond(self, m: float, q: float, v: float) -> Response:
        """Averages at order parameters, for one of the r equal columns."""
        count, tokens, rank = self.h.shape
        omega = math.sqrt(q) * self.h
        star = (m / math.sqrt(q)) * self.h + math.sqrt(max(Q0_UPDATE - m * m / q, 0.0)) * self.u
        eye = np.eye(tokens)
        b = star @ star.transpose(0, 2, 1) + self.nu + rank * (q - Q0_UPDATE) * eye
        k4 = 4 * v / tokens**2
        x, self.last = prox(omega, b, k4, start=self.last)
        gap = x @ x.transpose(0, 2, 1) - b
        loss = (gap * gap).sum((1, 2)) / tokens**2
        # |W|^2/d is r q, so that the derivative by the q of one column is that by the whole; alpha / r divides it again.
        slope = -2 * rank / tokens**2 * np.trace(gap, axis1=1, axis2=2)
        jump = float((np.linalg.eigvalsh(eye - k4 * b)[:, 0] < 0).mean())
        fields, target, answer = (array.reshape(count, -1) for array in (omega, star, x))
        return respond(self.alpha / rank, m, q, fields, target, answer, v, loss, slope, jump)


def default_samples(tokens: int, rank: int) -> int:
    """Quasi-random points by the number of fields: the error of the average grows with their dimensions."""
    fields = tokens * rank
    return 2**12 if fields <= 9 else 2**13


def _draw(tokens: int, rank: int, samples: int, noise: float, seed: int) -> tuple[Array, Array, Array]:
    """h, u of (2n, T, r) and nu of (2n, T, T): quasi-random normals, each point also with h reversed."""
    width, pairs = tokens * rank, tokens * (tokens + 1) // 2
    z = sobol_normals(2 * width + pairs, samples, seed)
    h, u = (z[:, start : start + width].reshape(-1, tokens, rank) for start in (0, width))
    nu = math.sqrt(noise) * symmetric(z[:, 2 * width :], tokens)
    return np.concatenate([h, -h]), np.concatenate([u, u]), np.concatenate([nu, nu])


def _words(found: State) -> list[str]:
    words = []
    if found.q <= COLLAPSED:
        words.append("the update collapsed to zero: raise alpha or lower ridge")
    if not found.converged:
        words.append(f"not converged after {found.iterations} iterations (last change {found.residual:.1e})")
    if found.jump > JUMP_LIMIT:
        words.append(
            f"jump {found.jump:.2f} is above {JUMP_LIMIT}: replica symmetry is doubtful near and below the threshold"
        )
    return words


def _check(
    alpha: float | int, tokens: int, ridge: float | int, noise: float | int, rank: int, base_error: float | int
) -> None:
    above_zero(alpha=alpha, ridge=ridge)
    at_least_zero(noise=noise, base_error=base_error)
    check_tokens(tokens)
    if whole("rank", rank) < tokens:
        raise InputError(
            f"rank {rank} is below tokens {tokens}: the extension holds for rank >= tokens; rank 1 is theory.finetune"
        )
    if tokens * rank > MOST_FIELDS:
        raise InputError(
            f"tokens {tokens} times rank {rank} is over {MOST_FIELDS}: the average has too many dimensions, lower the rank"
        )
