from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lorascope.core.errors import InputError
from lorascope.sweeps.paired import PairedDifference, holm, paired_difference, verdict


@pytest.mark.parametrize("pairs", [3, 5, 10])
def test_intervals_cover_as_often_as_they_say(pairs: int) -> None:
    rng = np.random.default_rng(pairs)
    hits = 0
    for _ in range(600):
        found = paired_difference(rng.normal(0.3, 1.0, pairs).tolist(), draws=400)
        assert found.low is not None and found.high is not None
        hits += found.low <= 0.3 <= found.high
    assert 0.91 <= hits / 600 <= 0.99, "95 % within what 600 draws allow"


def test_statistic_and_p_are_students() -> None:
    values = [0.1, 0.4, -0.2, 0.3]
    found, wanted = paired_difference(values), stats.ttest_1samp(values, 0.0)
    assert found.mean == pytest.approx(0.15)
    assert found.t == pytest.approx(wanted.statistic)
    assert found.p == pytest.approx(wanted.pvalue)


def test_many_pairs_give_the_percentile_interval() -> None:
    values = np.random.default_rng(0).normal(size=2000)
    found = paired_difference(values.tolist())
    half = 1.96 / math.sqrt(2000) * values.std()
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_signs_scales_and_order() -> None:
    values = [0.5, 0.1, 0.9, 0.2]
    one, scaled = paired_difference(values), paired_difference([10 * v for v in values])
    assert scaled.low == pytest.approx(10 * (one.low or 0))
    minus = paired_difference([-v for v in values], draws=200_000)
    many = paired_difference(values, draws=200_000)
    assert minus.low == pytest.approx(-(many.high or 0), rel=0.02)


def test_degenerate_pairs() -> None:
    one = paired_difference([0.4])
    assert (one.mean, one.low, one.p, one.pairs) == (0.4, None, None, 1)
    same = paired_difference([0.2, 0.2, 0.2])
    assert (same.mean, same.low, same.high, same.t, same.p) == (pytest.approx(0.2), None, None, None, None)
    assert verdict(same, "higher", 0.01) == "undecided"
    assert paired_difference([0.0, 0.0]).p == 1.0
    for bad in ([], [1.0, math.nan], [math.inf]):
        with pytest.raises(InputError, match="finite"):
            paired_difference(bad)


def test_holm_by_hand_and_against_bonferroni() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    values = np.random.default_rng(1).uniform(size=9).tolist()
    adjusted = [value or 0.0 for value in holm(values)]
    assert all(a >= v for a, v in zip(adjusted, values, strict=True))
    assert all(a <= min(1.0, 9 * v) + 1e-12 for a, v in zip(adjusted, values, strict=True))
    assert adjusted[int(np.argmin(values))] == min(adjusted)
    assert holm([None, None]) == [None, None]


@pytest.mark.parametrize(
    ("low", "high", "noise", "lower", "higher"),
    [
        (-0.3, -0.1, 0.05, "yes", "no"),
        (0.1, 0.3, 0.05, "no", "yes"),
        (-0.02, 0.02, 0.05, "no", "no"),
        (-0.2, 0.2, 0.05, "undecided", "undecided"),
        (-0.2, 0.01, 0.05, "undecided", "no"),
        (-0.2, 0.2, None, "undecided", "undecided"),
    ],
)
def test_verdicts(low: float, high: float, noise: float | None, lower: str, higher: str) -> None:
    found = PairedDifference((low + high) / 2, low, high, 1.0, 0.5, 3)
    assert verdict(found, "lower", noise) == lower
    assert verdict(found, "higher", noise) == higher


def test_a_single_seed_decides_nothing() -> None:
    assert verdict(paired_difference([-5.0]), "lower", 0.1) == "undecided"
