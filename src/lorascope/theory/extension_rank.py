"""Extension, ours: updates of rank r of at least T, as order parameters (docs/science/theory_extension.md)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lorascope.core.errors import DataError, InputError

Array = NDArray[np.float64]
SCHEMA_VERSION = 1
JUMP_LIMIT = 0.2
Q0_UPDATE = 1.0


@dataclass(frozen=True, kw_only=True)
class RankFineTuning:
    """Order parameters of stage 2 with r columns, student and target alike.

    Attributes:
        rank: r.
        m: Overlap of each column of W with its column of W*, over d, in the frame where W^T W* is positive.
        q: Squared norm of a column over d.
        v: Susceptibility.
        alignment: m / sqrt(q q0).
        train_loss: Over d, penalty included.
        test_error: Of the noiseless target, with the base error.
        jump: Share of the samples at which I - k4 B has a negative eigenvalue, where the minimiser of a sample's energy is
            one of several local minima.
        converged: Whether the last change was below the tolerance.
        iterations: Of the fixed point.
        warnings: Why the number is not to be trusted; empty if nothing is known against it.
        schema_version: Version of this layout.
    """

    rank: int
    m: float
    q: float
    v: float
    alignment: float
    train_loss: float
    test_error: float
    jump: float
    converged: bool
    iterations: int
    warnings: list[str] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION

    kind: ClassVar[str] = "rank_fine_tuning"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return {"kind": self.kind, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RankFineTuning:
        """Build a result from what `to_dict` made.

        Raises:
            DataError: It is something else, or of another version.
        """
        if values.get("kind") != cls.kind or values.get("schema_version") != SCHEMA_VERSION:
            raise DataError(f"no {cls.kind} of schema_version {SCHEMA_VERSION}: make it again")
        return cls(**{name: value for name, value in values.items() if name != "kind"})


def prox(omega: Array, b: Array, k4: float, *, most: int = 60) -> tuple[Array, Array]:
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
        most: Newton steps.

    Returns:
        X of (n, T, r), and A of (n, T, T).

    Example:
        >>> x, _ = prox(np.array([[[2.0]]]), np.array([[[1.0]]]), 1.0)
        >>> round(float(x[0, 0, 0] + x[0, 0, 0] * (x[0, 0, 0] ** 2 - 1.0)), 9)
        2.0
    """
    count, tokens, _ = omega.shape
    eye = np.eye(tokens)
    weight = omega @ omega.transpose(0, 2, 1)
    c = eye - k4 * b
    values, vectors = np.linalg.eigh(c)
    lift = np.cbrt(k4 * np.trace(weight, axis1=1, axis2=2))[:, None] + 1e-9
    a = (vectors * (np.maximum(values, 0) + lift)[:, None, :]) @ vectors.transpose(0, 2, 1)
    inverse = np.linalg.inv(a)
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
            new_inverse = np.linalg.inv(tried)
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
    samples: int = 2**12,
    tolerance: float = 5e-5,
    most: int = 300,
    seed: int = 0,
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
        samples: Quasi-random points, a power of two, each used with h and with -h.
        tolerance: Largest change of m, q and v at which the iteration stops.
        most: Iterations.
        seed: Of the scrambling.

    Returns:
        The order parameters, with warnings where they are not to be trusted.

    Raises:
        InputError: A value is out of range.

    Example:
        >>> found = finetune_rank(alpha=6.0, tokens=2, ridge=0.5, noise=0.7, rank=2, samples=512)
        >>> found.converged, round(found.alignment, 2)
        (True, 0.99)
    """
    _check(alpha, tokens, ridge, noise, rank, base_error, samples)
    c, q0 = 1 / tokens**2, Q0_UPDATE
    h, u, nu = _draw(tokens, rank, samples, float(noise), seed)
    eye = np.eye(tokens)
    m, q, v = 0.9, 1.0, 0.1
    converged, iterations, jump, loss = False, 0, 0.0, 0.0
    for iterations in range(1, most + 1):  # noqa: B007 - the count is part of the result
        omega = math.sqrt(q) * h
        star = (m / math.sqrt(q)) * h + math.sqrt(max(q0 - m * m / q, 0.0)) * u
        b = star @ star.transpose(0, 2, 1) + nu + rank * (q - q0) * eye
        k4 = 4 * v * c
        x, _ = prox(omega, b, k4)
        gap = x @ x.transpose(0, 2, 1) - b
        g = (x - omega) / v
        gs, gw = float((g * star).sum((1, 2)).mean()) / rank, float((g * omega).sum((1, 2)).mean()) / rank
        det = max(q0 * q - m * m, 1e-12)
        mh = alpha * (q * gs - m * gw) / det
        qh = alpha * float((g * g).sum((1, 2)).mean()) / rank
        vh = -alpha * (q0 * gw - m * gs) / det - 4 * alpha * c * float(np.trace(gap, axis1=1, axis2=2).mean())
        stiffness = vh + 2 * ridge
        if not math.isfinite(stiffness) or stiffness <= 0:
            break
        v_new = 1 / stiffness
        m_new, q_new = mh * q0 * v_new, (mh * mh * q0 + qh) * v_new**2
        change = max(abs(m_new - m), abs(q_new - q), abs(v_new - v))
        m, q, v = (0.3 * old + 0.7 * new for old, new in ((m, m_new), (q, q_new), (v, v_new)))
        loss = alpha * c * float((gap * gap).sum((1, 2)).mean()) + ridge * rank * q
        jump = float((np.linalg.eigvalsh(eye - k4 * b)[:, 0] < 0).mean())
        if m * m > q * q0:  # rounding at the very start of a good fit
            m = math.sqrt(q * q0) * (1 - 1e-9)
        if change < tolerance:
            converged = True
            break
        if q < 1e-6:
            break
    factor = (tokens + 1) / tokens
    alignment = m / math.sqrt(q * q0) if q > 1e-6 else 0.0
    error = factor * (base_error + rank * (q * q + q0 * q0 - 2 * m * m))
    return RankFineTuning(
        rank=rank,
        m=m,
        q=q,
        v=v,
        alignment=alignment,
        train_loss=loss,
        test_error=error,
        jump=jump,
        converged=converged,
        iterations=iterations,
        warnings=_warnings(converged, jump, iterations, q),
    )


def _draw(tokens: int, rank: int, samples: int, noise: float, seed: int) -> tuple[Array, Array, Array]:
    """h, u of (2n, T, r) and nu of (2n, T, T): quasi-random normals, each point also with h reversed."""
    width, pairs = tokens * rank, tokens * (tokens + 1) // 2
    points = stats.qmc.Sobol(2 * width + pairs, scramble=True, rng=np.random.default_rng(seed)).random(samples)
    z = stats.norm.ppf(np.clip(points, 1e-12, 1 - 1e-12))
    h, u = (z[:, start : start + width].reshape(-1, tokens, rank) for start in (0, width))
    nu = np.zeros((samples, tokens, tokens))
    rows, columns = np.triu_indices(tokens)
    nu[:, rows, columns] = z[:, 2 * width :] * np.sqrt(noise * (1 + (rows == columns)))
    nu[:, columns, rows] = nu[:, rows, columns]
    return np.concatenate([h, -h]), np.concatenate([u, u]), np.concatenate([nu, nu])


def _warnings(converged: bool, jump: float, iterations: int, q: float) -> list[str]:
    found = []
    if q < 1e-3:
        found.append("the update collapsed to zero: too little data, or ridge too large")
    if not converged:
        found.append(f"not converged after {iterations} iterations")
    if jump > JUMP_LIMIT:
        found.append(f"jump {jump:.2f} is above {JUMP_LIMIT}: replica symmetry is doubtful here")
    return found


def _check(
    alpha: float | int,
    tokens: int,
    ridge: float | int,
    noise: float | int,
    rank: int,
    base_error: float | int,
    samples: int,
) -> None:
    for name, value in {"alpha": alpha, "ridge": ridge}.items():
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} {value} must be a number above 0")
    for name, value in {"noise": noise, "base_error": base_error}.items():
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"{name} {value} must be a number of at least 0")
    if tokens < 1:
        raise InputError(f"tokens {tokens} must be at least 1")
    if rank < tokens:
        raise InputError(
            f"rank {rank} is below tokens {tokens}: the extension holds for rank >= tokens; rank 1 is theory.finetune"
        )
    if tokens * rank > 64:
        raise InputError(
            f"tokens {tokens} times rank {rank} is over 64: the quasi-random average has too many dimensions"
        )
    if samples < 2 or samples & (samples - 1):
        raise InputError(f"samples {samples} must be a power of two")
