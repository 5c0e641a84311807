r"""How much fine-tuning data is needed before any method can find the update at all (weak recovery)."""

from __future__ import annotations

import math

import numpy as np

from lorascope.core.errors import InputError
from lorascope.theory._prox import Array, sobol_normals, symmetric
from lorascope.theory._record import check_samples, number, whole

SAMPLES = {1: 2**14, 2: 2**13, 3: 2**9}
"""Quasi-random observations by the number of tokens."""
REACH = 5.5
SMALLEST_NOISE = {1: 1e-3, 2: 0.01, 3: 0.1}
"""Below this the posterior is narrower than a grid that is worth its time."""


def weak_recovery(*, tokens: int, noise: float | int, samples: int | None = None, seed: int = 0) -> float:
    r"""The smallest alpha' at which the Bayes-optimal update has any overlap with the target.

    One sequence shows :math:`y = \chi\chi^T - I + \nu` with normal fields :math:`\chi` and a residual of variance
    :math:`(1+\delta_{ab}) D_n`; zero overlap becomes unstable at

    .. math:: \alpha'_c = 1 / E\,|E[\chi\chi^T - I \mid y]|_F^2.

    Args:
        tokens: T, at most 3.
        noise: Dn.
        samples: Quasi-random y, a power of two; by default fewer for longer sequences.
        seed: Of their scrambling.

    Returns:
        alpha'_c = N' / d.

    Raises:
        InputError: A value is out of range.

    Example:
        >>> round(weak_recovery(tokens=2, noise=0.7, samples=1024), 1)
        0.2
    """
    if whole("tokens", tokens) not in SAMPLES:
        raise InputError(
            f"tokens {tokens} must be from 1 to 3: the posterior is summed on a grid of as many dimensions"
        )
    count = SAMPLES[tokens] if samples is None else samples
    check_samples(count)
    if not number("noise", noise) >= SMALLEST_NOISE[tokens]:
        raise InputError(f"noise {noise} must be a number of at least {SMALLEST_NOISE[tokens]} with tokens {tokens}")
    pairs = tokens * (tokens + 1) // 2
    z = sobol_normals(tokens + pairs, count, seed)
    chi = z[:, :tokens]
    y = chi[:, :, None] * chi[:, None, :] - np.eye(tokens) + math.sqrt(noise) * symmetric(z[:, tokens:], tokens)
    # The posterior of a field of size 4 has this width; the trapezoidal rule is exact to rounding at that spacing.
    spacing = min(0.25, math.sqrt(noise / 2) / 4)
    half = math.ceil(REACH / spacing)
    axis = spacing * np.arange(-half, half + 1)
    # The features of the fields are symmetric under chi -> -chi, so that half of the grid is enough.
    axes = [axis[axis >= 0]] + [axis] * (tokens - 1)
    grid = np.stack([part.ravel() for part in np.meshgrid(*axes, indexing="ij")], 1)
    grid = grid[(grid * grid).sum(1) <= REACH**2]
    weight = np.exp(-(grid * grid).sum(1) / 2) * np.where(grid[:, 0] > 0, 2.0, 1.0)
    rows, columns = np.triu_indices(tokens)
    features = grid[:, rows] * grid[:, columns] - (rows == columns)
    scale = 1 / (2 * noise * np.where(rows == columns, 2.0, 1.0))
    counted = np.where(rows == columns, 1.0, 2.0)
    seen = y[:, rows, columns]
    total = 0.0
    for part in np.array_split(np.arange(count), max(1, count * len(grid) // 2**21)):
        total += float((_posterior(seen[part], features, weight, scale) ** 2 * counted).sum())
    return count / total


def _posterior(seen: Array, features: Array, weight: Array, scale: Array) -> Array:
    """Posterior means of the features given what was seen: (n, p)."""
    exponent = 2 * (seen * scale) @ features.T - (features * features) @ scale
    exponent -= exponent.max(1, keepdims=True)
    likelihood = np.exp(exponent) * weight
    means: Array = likelihood @ features / likelihood.sum(1, keepdims=True)
    return means
