"""Differences between runs that share everything but one setting: intervals that hold for a handful of seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lorascope.core.errors import InputError

LEVEL = 0.95
DRAWS = 10_000


@dataclass(frozen=True)
class PairedDifference:
    """A mean difference over pairs.

    Attributes:
        mean: In the metric's unit.
        low: Lower end of the interval.
        high: Upper end.
        t: Student's statistic; None where all differences are equal.
        p: Two-sided probability of that t or a larger one if there were no difference; None without an interval.
        pairs: Their number.
    """

    mean: float
    low: float | None
    high: float | None
    t: float | None
    p: float | None
    pairs: int


def paired_difference(
    differences: Sequence[float], *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0
) -> PairedDifference:
    r"""Mean of paired differences with a bootstrap interval that is wide enough for few pairs.

    The bootstrap resamples the pairs. With n of them its distribution is too narrow by :math:`\sqrt{(n-1)/n}`, and its
    quantiles are those of a known variance. Both are made good: each end's distance from the mean is multiplied by
    :math:`\sqrt{n/(n-1)}\; t_{n-1} / z`. For many pairs this is the percentile interval, for normal differences about
    Student's, whatever their number (coverage for 3 to 10 pairs is measured in the tests).

    Args:
        differences: One for each pair, such as a seed.
        level: Coverage.
        draws: Resamples.
        seed: Of the resampling.

    Returns:
        Mean and interval; a single pair has none, and neither have equal differences other than 0, which accuracies of few
        questions give: they show no spread, and that is not to say there is none.

    Raises:
        InputError: There is no difference, or one is not a number.

    Example:
        >>> found = paired_difference([0.9, 1.0, 1.1])
        >>> bool(found.low < 0.9 and found.high > 1.1)
        True

    References:
        Small samples and the bootstrap: Hesterberg, arXiv 1411.5279, section 4.
    """
    data = np.asarray(differences, dtype=np.float64)
    if not len(data) or not np.isfinite(data).all():
        raise InputError("differences must be finite numbers, at least one")
    n, mean = len(data), float(data.mean())
    if n < 2:
        return PairedDifference(mean, None, None, None, None, n)
    means = data[np.random.default_rng(seed).integers(0, n, size=(draws, n))].mean(axis=1)
    tails = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    factor = math.sqrt(n / (n - 1)) * stats.t.ppf((1 + level) / 2, n - 1) / stats.norm.ppf((1 + level) / 2)
    error = float(data.std(ddof=1)) / math.sqrt(n)
    if not error > 1e-12 * max(abs(mean), 1e-300):  # rounding is their only spread
        return (
            PairedDifference(mean, 0.0, 0.0, None, 1.0, n)
            if mean == 0
            else PairedDifference(mean, None, None, None, None, n)
        )
    t = mean / error
    p = float(2 * stats.t.sf(abs(t), n - 1))
    return PairedDifference(
        mean, mean + factor * (float(tails[0]) - mean), mean + factor * (float(tails[1]) - mean), t, p, n
    )


def holm(probabilities: Sequence[float | None]) -> list[float | None]:
    """Holm's adjustment for several comparisons; unknown ones stay unknown and don't count.

    Example:
        >>> holm([0.01, None, 0.04])
        [0.02, None, 0.04]

    References:
        Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    known = sorted((value, place) for place, value in enumerate(probabilities) if value is not None)
    found: list[float | None] = [None] * len(probabilities)
    largest = 0.0
    for rank, (value, place) in enumerate(known):
        largest = max(largest, min(1.0, value * (len(known) - rank)))
        found[place] = largest
    return found


def verdict(difference: PairedDifference, better: str, noise: float | None) -> str:
    """Whether a change helped beyond noise.

    * ``yes``: the interval lies on the better side of 0.
    * ``no``: it does not, and any help in it is smaller than the noise, the spread of the reference between seeds.
    * ``undecided``: neither.

    Args:
        difference: Of the changed minus the reference runs.
        better: ``higher`` or ``lower``.
        noise: Standard deviation of the reference between seeds; None if unknown.

    Returns:
        The verdict.

    Example:
        >>> verdict(PairedDifference(-0.2, -0.3, -0.1, -9.0, 0.01, 3), "lower", 0.05)
        'yes'
    """
    if difference.low is None or difference.high is None:
        return "undecided"
    low, high = (difference.low, difference.high) if better == "higher" else (-difference.high, -difference.low)
    if low > 0:
        return "yes"
    if high <= 0 or (noise is not None and high < noise):
        return "no"
    return "undecided"
