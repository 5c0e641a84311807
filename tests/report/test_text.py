from __future__ import annotations

import math

import pytest

from lorascope.report.text import (
    listing,
    plural,
    show,
    show_alike,
    show_change,
    show_metric,
    show_metrics,
    unit_of,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0, "0"),
        (2.5, "2.5"),
        (31.5512, "31.55"),
        (1234567.0, "1,234,567"),
        (0.00001234, "1.234e−5"),
        (-0.5, "−0.5"),
        (5e13, "5.000e+13"),
        (None, "–"),
        (math.nan, "–"),
        (-math.inf, "–"),
        ("text", "–"),
        (True, "–"),
    ],
)
def test_numbers(value: object, text: str) -> None:
    assert show(value) == text


def test_numbers_side_by_side_have_the_same_decimals() -> None:
    assert show_alike([21.4, 22.0, 25.31, None]) == ["21.40", "22.00", "25.31", "–"]
    assert show_alike([0.0031, 0.0085, 0.0392, 0.0]) == ["0.0031", "0.0085", "0.0392", "0"]
    assert show_alike([80.0, 80.0]) == ["80", "80"]
    assert show_alike([1234.5, -3.0]) == ["1,234", "−3"]
    assert show_alike([1.0, 1e-7]) == ["1", "1.000e−7"]
    assert show_alike([None, math.inf]) == ["–", "–"]
    assert show_alike([0.0]) == ["0"]


def test_fractions_are_percent() -> None:
    assert show_metric("accuracy", 0.66) == "66.0%"
    assert show_metric("accuracy", math.nan) == "–"
    assert show_metric("ce", 2.34567) == "2.346"
    assert show_metrics("accuracy", [0.5, None]) == ["50.0%", "–"]
    assert show_change("accuracy", -0.031) == "−3.1"
    assert show_change("ce", 0.25) == "+0.25"
    assert (unit_of("accuracy"), unit_of("ce"), unit_of("mine")) == ("", "nats", "")


def test_phrases() -> None:
    assert [listing(items) for items in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]
    assert listing(["a", "b"], "in") == "a in b"
    assert (plural(1, "run"), plural(1200, "run"), plural(2, "pass", "passes")) == ("1 run", "1,200 runs", "2 passes")
