r"""The proximal map of one sequence of stage 2, and the quasi-random points that it is averaged over."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

Array = NDArray[np.float64]


@functools.lru_cache(maxsize=4)
def sobol_normals(width: int, samples: int, seed: int) -> Array:
    """Quasi-random standard normals of (samples, width): a scrambled Sobol sequence. Read-only."""
    from scipy.stats import qmc

    points = qmc.Sobol(width, scramble=True, rng=np.random.default_rng(seed)).random(samples)
    z: Array = ndtri(np.clip(points, 1e-12, 1 - 1e-12))
    z.flags.writeable = False
    return z


def symmetric(z: Array, tokens: int) -> Array:
    r"""Symmetric matrices of (n, T, T) with variance :math:`1 + \delta_{ab}`, from normals of (n, T(T+1)/2)."""
    out = np.empty((len(z), tokens, tokens))
    rows, columns = np.triu_indices(tokens)
    out[:, rows, columns] = z * np.where(rows == columns, math.sqrt(2), 1.0)
    out[:, columns, rows] = out[:, rows, columns]
    return out


def eigh(b: Array) -> tuple[Array, Array]:
    """Eigenvalues (ascending) and eigenvectors of symmetric matrices; for T up to 2 in closed form, ten times faster."""
    if b.shape[-1] == 1:
        return b[:, 0], np.ones_like(b)
    if b.shape[-1] > 2:
        return np.linalg.eigh(b)
    mean, gap, off = (b[:, 0, 0] + b[:, 1, 1]) / 2, (b[:, 0, 0] - b[:, 1, 1]) / 2, b[:, 0, 1]
    radius, angle = np.hypot(gap, off), np.arctan2(off, gap) / 2
    cos, sin = np.cos(angle), np.sin(angle)
    values = np.stack([mean - radius, mean + radius], 1)
    vectors = np.stack([np.stack([-sin, cos], 1), np.stack([cos, sin], 1)], 1)
    return values, vectors


def prox(omega: Array, b: Array, k4: float, *, most: int = 40) -> tuple[Array, Array]:
    r"""The global minimiser of :math:`|\chi - \omega|^2 + (k_4/2) |\chi\chi^T - B|_F^2`.

    With B = O diag(b) O^T and :math:`\tilde w = O^T \omega`, :math:`s = |\chi|^2` is the one root of

    .. math:: s = \sum_i \tilde w_i^2 / (1 + k_4 (s - b_i))^2 \quad\text{on}\quad s \ge \max(0, b_{\max} - 1/k_4),

    and :math:`\chi_i = \tilde w_i / (1 + k_4 (s - b_i))` in the eigenbasis. The left side minus the right is concave and
    increasing there, so that Newton's steps from a lower bound of the root go up to it without passing it.

    Args:
        omega: (n, T).
        b: (n, T, T), symmetric.
        k4: 4 v / T^2, positive.
        most: Newton steps.

    Returns:
        chi of (n, T), and the largest eigenvalue of each B.

    Example:
        >>> chi, _ = prox(np.array([[2.0]]), np.array([[[1.0]]]), 1.0)
        >>> round(float(chi[0, 0] + chi[0, 0] * (chi[0, 0] ** 2 - 1.0)), 9)
        2.0
    """
    values, vectors = eigh(b)
    w = np.einsum("nij,ni->nj", vectors, omega)
    # Components first: numpy sums long rows far faster than many short ones.
    square = np.ascontiguousarray((w * w).T)
    top = values[:, -1].copy()
    # t = 1 + k4 (s - b_max) > max(0, 1 - k4 b_max); the term of b_max alone gives a lower bound of the root.
    edge = top - 1 / k4
    last = np.maximum(square[-1], 1e-300)
    low = np.where(
        edge > 0,
        np.minimum(np.cbrt(k4 * last / 2), np.sqrt(last / (2 * np.maximum(edge, 1e-300)))),
        np.maximum(np.cbrt(k4 * last), -k4 * edge),
    )
    low = np.maximum(low, 1e-150)
    depth = np.ascontiguousarray((k4 * (top[:, None] - values)).T)
    t = low
    for _ in range(most):
        inverse = 1 / (t + depth)
        parts = square * inverse * inverse
        value = edge + t / k4 - parts.sum(0)
        slope = 1 / k4 + 2 * (parts * inverse).sum(0)
        step = -value / slope
        t = np.maximum(t + step, low)
        if float(np.max(np.abs(step) / t)) < 1e-12:
            break
    chi = np.einsum("nij,nj->ni", vectors, w / (t + depth).T)
    return chi, top
