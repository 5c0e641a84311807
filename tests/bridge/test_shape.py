from __future__ import annotations

import math

import pytest

from lorascope.bridge.findings import findings_of
from lorascope.bridge.noise import EffectiveNoise
from lorascope.bridge.plan import BridgePlan
from lorascope.bridge.shape import CurvePoint, check_curve, error_at_overlap, fit_shape, theory_curve
from lorascope.core.errors import InputError
from lorascope.theory import finetune

NOISE = EffectiveNoise(
    frozen=0.18,
    frozen_error=0.01,
    reference=0.12,
    reference_error=0.01,
    signal=0.06,
    signal_error=0.01,
    noise=2.0,
    uniform=0.1875,
    shift=1.0,
    questions=100,
)


def curve(*, threshold: float = 0.0) -> list[CurvePoint]:
    """1 - 1/x, not valid below a threshold."""
    places = [1.0 * 1.3**i for i in range(25)]
    return [CurvePoint(data=x, overlap=1 - 1 / x, error=1 / x, jump=0.0, valid=x > threshold, why=[]) for x in places]


def test_theory_curve_is_the_theory() -> None:
    (point,) = theory_curve(noise=0.7, rank=1, ridge=0.5, data=[4.0], samples=2**12)
    expected = finetune(alpha=4.0, tokens=2, ridge=0.5, noise=0.7)
    assert point.overlap == pytest.approx(expected.alignment**2, abs=2e-3)
    assert point.error == pytest.approx(expected.test_error / 1.5, abs=3e-3)
    assert point.valid


def test_theory_curve_rises_and_ends_at_the_threshold() -> None:
    points = theory_curve(noise=0.7, rank=2, data=[0.2, 0.4, 1.2, 2.0, 8.0], samples=128)
    assert points[0].jump > 0.5
    assert not points[0].valid
    assert points[0].data == 0.4, "what is below it is not computed"
    good = [point for point in points if point.valid]
    assert [point.overlap for point in good] == sorted(point.overlap for point in good)
    assert [point.error for point in good] == sorted((point.error for point in good), reverse=True)


def test_a_measurement_of_the_theory_itself_fits() -> None:
    data = [0.002, 0.006, 0.02]
    means = [1 - 1 / (1000 * x) for x in data]
    found = fit_shape(curve(), "overlap", data, means, [0.02] * 3)
    assert found.factor == pytest.approx(1000, rel=0.05)
    assert found.within == 3
    assert found.outside == 0
    assert found.rms < 0.02 < found.constant_rms
    errors = fit_shape(curve(), "error", data, [1 / (1000 * x) for x in data], [0.02] * 3)
    assert errors.factor == pytest.approx(found.factor, rel=0.1)
    assert errors.theory_change < 0 < found.theory_change


def test_places_without_theory_are_counted() -> None:
    data = [0.002, 0.006, 0.02]
    found = fit_shape(curve(threshold=10.0), "overlap", data, [1 - 1 / (1000 * x) for x in data], [0.02] * 3)
    assert found.outside == 2
    flat = fit_shape(curve(), "overlap", data, [0.3, 0.3, 0.3], [0.01] * 3)
    assert flat.rms > flat.constant_rms == pytest.approx(0.0)


def test_error_at_an_overlap_stays_in_the_valid_range() -> None:
    assert error_at_overlap(curve(), 0.5) == pytest.approx(0.5, abs=0.01)
    assert error_at_overlap(curve(threshold=5.0), 0.5) is None


def rows(overlaps: list[float], errors: list[float], spread: float | None) -> list[dict[str, object]]:
    return [
        {
            "rows": 10 * 4**i,
            "column_above": o,
            "column_above_error": spread,
            "update": o,
            "update_error": spread,
            "relative_error": e,
            "relative_error_error": spread,
        }
        for i, (o, e) in enumerate(zip(overlaps, errors, strict=True))
    ]


def said(overlaps: list[float], errors: list[float], spread: float | None = 0.02) -> str:
    sizes = rows(overlaps, errors, spread)
    data = [0.002 * 4**i for i in range(len(sizes))]
    line = curve()
    given = [math.nan if spread is None else spread] * len(sizes)
    shapes = [
        fit_shape(line, "overlap", data, overlaps, given, measured="column_above"),
        fit_shape(line, "error", data, errors, given, measured="relative_error"),
    ]
    relations = [
        {
            "rows": row["rows"],
            "overlap": row["column_above"],
            "relative_error": row["relative_error"],
            "theory_error": error_at_overlap(line, float(str(row["column_above"]))),
            "between": None,
            "theory_between": 0.0,
        }
        for row in sizes
    ]
    return "\n".join(findings_of(NOISE, sizes, shapes, relations, line))


def test_findings_say_what_holds_and_what_does_not() -> None:
    data = [0.002, 0.008, 0.032]
    good = said([1 - 1 / (1000 * x) for x in data], [1 / (1000 * x) for x in data])
    assert good.count("is compatible with the theory's curve") == 2
    assert good.count("as the theory's direction") == 3
    assert "one place on the theory's axis would describe both" in good
    assert "Dn is at most 2.0" in good
    assert "Overlap at the same error: at" in good
    bad = said([0.10, 0.11, 0.10], [0.9, 0.95, 1.2])
    assert "is compatible" not in bad
    assert "no change beyond two standard errors" in bad
    assert "against the theory's direction" in bad
    alone = said([0.1, 0.2, 0.5], [0.9, 0.8, 0.4], None)
    assert "compatible" not in alone
    assert "with one seed" in alone


@pytest.mark.parametrize(
    ("plan", "tokens", "ridge", "line"),
    [
        ({}, 0, 0.1, "tokens 0"),
        ({}, 2, math.inf, "ridge inf"),
        ({"rank": 2}, 3, 0.1, "rank 2 lies between 1 and tokens 3"),
        ({"sizes": (16,)}, 2, 0.1, "16 rows is one data size"),
    ],
)
def test_bad_settings_of_the_curve_are_named(plan: dict[str, object], tokens: int, ridge: float, line: str) -> None:
    with pytest.raises(InputError, match=line):
        check_curve(BridgePlan.from_dict(plan), tokens, ridge)
