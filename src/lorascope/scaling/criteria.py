"""How well a law accounts for the runs, as one number that laws can be compared by."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

TAILS = 4.0  # degrees of freedom of the t distribution that the noise is judged by


def aicc(residuals: Float[np.ndarray, " n"], spread: Float[np.ndarray, " n"], parameters: int) -> float:
    """Corrected Akaike criterion of a fit, under noise with heavy tails; smaller is better.

    Formula: -2 ln L + 2 k + 2 k (k + 1) / (n - k - 1), with k = parameters + 1 for the scale, and L the likelihood of
    r_i / (s spread_i) under Student's t with 4 degrees of freedom at its best scale s. A Gaussian likelihood would let a
    single outlier choose the law; the t likelihood grows with the logarithm of its distance only. The spread is part of
    the likelihood, so that relative and absolute noise can be compared too.

    Args:
        residuals: Metric minus law, in the metric's unit.
        spread: Standard deviation of each run's noise up to a common factor, in the metric's unit.
        parameters: Number of fitted parameters.

    Returns:
        The criterion; infinite where there are too few runs for the correction (n <= parameters + 2).

    Example:
        >>> worse = np.array([0.4, -0.3, 0.2, -0.5, 0.3, -0.1])
        >>> bool(aicc(worse / 10, np.ones(6), 1) < aicc(worse, np.ones(6), 1))
        True

    References:
        Hurvich & Tsai (1989), Biometrika 76; Lange, Little & Taylor (1989), JASA 84.
    """
    n, k = len(residuals), parameters + 1
    if n - k - 1 <= 0:
        return math.inf
    u = residuals / spread
    # A law that passes through every run has no scale; rounding is taken as its noise.
    scale = max(float(np.sqrt((u * u).mean())), 1e-12)
    for _ in range(200):
        weights = (TAILS + 1) / (TAILS + (u / scale) ** 2)
        new = max(float(np.sqrt((weights * u * u).mean())), 1e-12)
        if abs(new - scale) <= 1e-12 * scale:
            break
        scale = new
    constant = math.lgamma((TAILS + 1) / 2) - math.lgamma(TAILS / 2) - math.log(TAILS * math.pi) / 2
    each = constant - np.log(scale * spread) - (TAILS + 1) / 2 * np.log1p((u / scale) ** 2 / TAILS)
    return float(-2 * each.sum() + 2 * k + 2 * k * (k + 1) / (n - k - 1))


def aicc_of_constant(y: Float[np.ndarray, " n"], relative: bool) -> float:
    """The criterion of the law that says nothing moves: one number for all runs.

    Example:
        >>> y = np.array([1.0, 1.1, 0.9, 1.0, 1.05])
        >>> aicc_of_constant(y, relative=False) < 5
        True
    """
    level = float(np.median(y))
    spread = np.full(len(y), max(abs(level), 1e-3) if relative else 1.0)
    return aicc(y - level, spread, 1)
