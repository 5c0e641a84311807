"""The statistics behind the verdicts: exact shares, a bootstrap that is wide enough for few units, Kendall's tau."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

LEVEL = 0.95
FEWEST = 6  # with five units, five of five still has a two-sided probability of 1/16 under a fair coin


def share_interval(count: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Exact (Clopper-Pearson) interval of a share.

    It excludes a reference value exactly when the exact binomial test with equal tails rejects it.

    Args:
        count: Units for which something holds.
        n: All units, at least 1.
        level: Coverage.

    Returns:
        Lower and upper end, in [0, 1].

    Example:
        >>> low, high = share_interval(6, 10)
        >>> round(low, 3), round(high, 3)
        (0.262, 0.878)

    References:
        Clopper and Pearson 1934.
    """
    found = stats.binomtest(count, n).proportion_ci(confidence_level=level, method="exact")
    return float(found.low), float(found.high)


def mean_interval(
    values: Sequence[float], *, n_boot: int = 10_000, seed: int = 0, level: float = LEVEL
) -> tuple[float, float]:
    """Expanded percentile bootstrap interval of a mean.

    Quantiles of resampled means at the level ``Phi(-sqrt(n / (n - 1)) t)`` with the t quantile of n - 1 degrees of
    freedom, in place of ``alpha / 2``: the plain percentile interval is too narrow for few values.

    Args:
        values: At least two finite numbers, one a unit.
        n_boot: Resamples.
        seed: Of the resampling.
        level: Coverage.

    Returns:
        Lower and upper end, in the unit of the values.

    Example:
        >>> mean_interval([1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
        (1.0, 1.0)

    References:
        Hesterberg, arXiv 1411.5279, section 4.
    """
    data = np.asarray(values, dtype=np.float64)
    n = len(data)
    tail = expanded_tail(n, level)
    means = data[np.random.default_rng(seed).integers(0, n, size=(n_boot, n))].mean(axis=1)
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def expanded_tail(n: int, level: float = LEVEL) -> float:
    """The share of resamples to cut from each tail so that the interval of n units is wide enough.

    Example:
        >>> expanded_tail(6) < expanded_tail(100) < 0.025
        True
    """
    t = stats.t.ppf(0.5 + level / 2, n - 1)
    return float(stats.norm.cdf(-math.sqrt(n / (n - 1)) * t))


def student_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Student's t interval of a mean, for at least two values.

    Example:
        >>> student_interval([0.5, 0.5, 0.5])
        (0.5, 0.5)
    """
    data = np.asarray(values, dtype=np.float64)
    half = float(stats.t.ppf(0.5 + level / 2, len(data) - 1) * data.std(ddof=1) / math.sqrt(len(data)))
    return float(data.mean()) - half, float(data.mean()) + half


def fewest_to_decide(chance: float, level: float = LEVEL) -> int:
    """How many units, all agreeing, exclude a chance in an exact test.

    Example:
        >>> fewest_to_decide(1 / 6), fewest_to_decide(1 / 2)
        (3, 6)
    """
    n = 1
    while chance**n >= (1 - level) / 2:
        n += 1
    return n


def units_to_tell(value: float, low: float, high: float, n: int, reference: float = 0.0) -> int | None:
    """About how many units like these would put the reference outside the interval; None if the value is on it.

    The half-width shrinks with the square root of the number of units.

    Example:
        >>> units_to_tell(0.1, -0.1, 0.3, 10)
        40
    """
    distance = abs(value - reference)
    half = (high - low) / 2
    if distance <= 1e-9 * max(1.0, half) or half <= 0:
        return None
    return max(n + 1, math.ceil(n * (half / distance) ** 2 - 1e-9))


def following(target: Sequence[float], metric: Sequence[float]) -> float:
    """Kendall's tau-b of a target with the negated metric: +1 where the target always rises as the metric falls.

    Args:
        target: What should be followed, for example the accuracy at each rank.
        metric: A metric of which less is better, in the same order.

    Returns:
        A number in [-1, 1]; 0 for a metric that does not vary (it orders nothing); NaN where the target does not vary, or
        fewer than two places have both.

    Example:
        >>> following([0.1, 0.2, 0.3], [3.0, 2.0, 1.0]), following([0.1, 0.2], [1.0, 1.0])
        (1.0, 0.0)

    References:
        Kendall 1945 (tau-b, the treatment of ties).
    """
    first, second = np.asarray(target, dtype=np.float64), np.asarray(metric, dtype=np.float64)
    both = np.isfinite(first) & np.isfinite(second)
    first, second = first[both], second[both]
    if len(first) < 2 or np.ptp(first) == 0:
        return math.nan
    if np.ptp(second) == 0:
        return 0.0
    return float(stats.kendalltau(first, -second).statistic)


def moves_steadily(values: Sequence[float], *, falls: bool) -> bool | None:
    """Whether a sequence falls (or rises) and never turns back; None for fewer than two finite values.

    Level steps are allowed (printed numbers are rounded), a sequence that is level throughout is not. Differences below
    1e-12 of the largest magnitude count as level.

    Example:
        >>> moves_steadily([3.0, 3.0, 1.0], falls=True), moves_steadily([1.0, 1.0], falls=True)
        (True, False)
    """
    data = np.asarray(values, dtype=np.float64)
    data = data[np.isfinite(data)]
    if len(data) < 2:
        return None
    steps = -np.diff(data) if falls else np.diff(data)
    tiny = 1e-12 * np.abs(data).max()
    return bool((steps >= -tiny).all() and (steps > tiny).any())


def chance_of_steady(values: Sequence[float]) -> float:
    """The probability that the same values in random order would fall and never turn back.

    k different values: 1 / k!. Equal values can change places: with groups of m equal values, the product of m! over k!;
    0 if all are equal.

    Example:
        >>> chance_of_steady([1.0, 2.0, 3.0]) == 1 / 6, chance_of_steady([1.0, 1.0, 3.0]) == 1 / 3
        (True, True)
    """
    _, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    if len(counts) < 2:
        return 0.0
    return math.prod(math.factorial(int(count)) for count in counts) / math.factorial(len(values))


def relative_spread(values: Sequence[float]) -> float:
    """Standard deviation over the magnitude of the mean; NaN for fewer than two finite values or mean 0.

    Example:
        >>> relative_spread([1.0, 3.0])
        0.5
    """
    data = np.asarray(values, dtype=np.float64)
    data = data[np.isfinite(data)]
    if len(data) < 2 or data.mean() == 0:
        return math.nan
    return float(data.std() / abs(data.mean()))
