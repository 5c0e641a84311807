from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorascope.core.errors import InputError
from lorascope.scaling import additive, multiplicative
from lorascope.scaling.laws import AXES, Form, default_floor, derivatives, places, positive, values

FORMS = [
    Form(law, axes, floor)
    for law in ("additive", "multiplicative")
    for axes in (AXES, ("N", "D"), ("R",))
    for floor in (False, True)
]


def test_additive_is_a_sum_of_one_term_an_axis() -> None:
    found = additive([1.0, 4.0], 9.0, 8.0, A=2, alpha=0.5, B=3, beta=-0.5, C=4, gamma=1 / 3, E=0.25)
    assert found == pytest.approx([2 + 9 + 2 + 0.25, 1 + 9 + 2 + 0.25])


def test_multiplicative_is_a_product_of_one_factor_an_axis() -> None:
    found = multiplicative([1.0, 4.0], 9.0, 8.0, A=2, alpha=0.5, beta=-0.5, gamma=1 / 3, E=0.25)
    assert found == pytest.approx([2 * 3 / 2 + 0.25, 3 / 2 + 0.25])


@pytest.mark.parametrize("law", [additive, multiplicative])
def test_a_positive_exponent_and_amplitude_fall_to_the_floor(law) -> None:
    found = law(N=[1.0, 10.0, 1e30], A=1.0, alpha=0.5, E=0.3)
    assert found[0] > found[1] > found[2]
    assert found[2] == pytest.approx(0.3)


@given(scale=st.floats(1e-6, 1e6), alpha=st.floats(-2, 2))
def test_a_reference_only_rescales_the_amplitude(scale: float, alpha: float) -> None:
    N = np.array([1e-3, 1.0, 1e3])
    moved = additive(N=N, A=scale**-alpha, alpha=alpha, reference={"N": scale})
    assert moved == pytest.approx(additive(N=N, A=1.0, alpha=alpha), rel=1e-9)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_batch_is_the_named_law(form: Form) -> None:
    rng = np.random.default_rng(0)
    theta = rng.uniform(0.2, 1.0, size=(4, form.size))
    x = rng.uniform(-2, 2, size=(5, len(form.axes)))
    law = {"additive": additive, "multiplicative": multiplicative}[form.law]
    where = {axis: np.exp(x[:, i]) for i, axis in enumerate(form.axes)}
    for row, vector in zip(values(form, theta, x), theta, strict=True):
        assert row == pytest.approx(law(**where, **dict(zip(form.names, vector, strict=True))))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_derivatives_are_those_of_the_values(form: Form) -> None:
    rng = np.random.default_rng(1)
    theta = rng.uniform(-1, 1, size=(3, form.size))
    x = rng.uniform(-2, 2, size=(6, len(form.axes)))
    found, slopes = derivatives(form, theta, x)
    assert found == pytest.approx(values(form, theta, x))
    for place in range(form.size):
        step = np.zeros(form.size)
        step[place] = 1e-6
        numeric = (values(form, theta + step, x) - values(form, theta - step, x)) / 2e-6
        assert slopes[:, place] == pytest.approx(numeric, abs=1e-7)


def test_names_and_linear_places() -> None:
    form = Form("additive", ("N", "D"), True)
    assert form.names == ("A", "C", "alpha", "gamma", "E")
    assert form.linear == (0, 1, 4)
    assert Form("multiplicative", AXES, False).names == ("A", "alpha", "beta", "gamma")
    assert not default_floor("additive")
    assert default_floor("multiplicative")


@pytest.mark.parametrize("bad", [0, -1.0, np.nan, np.inf, [4, 0]])
def test_values_that_have_no_power_are_named(bad) -> None:
    with pytest.raises(InputError, match=r"R is .*greater than 0"):
        additive(R=bad, B=1.0, beta=0.5)


def test_text_is_no_number() -> None:
    with pytest.raises(InputError, match="D is 'many'"):
        positive("D", "many")


def test_places_broadcast_and_say_what_is_missing() -> None:
    reference = {"N": 1e9, "R": 16.0}
    assert places(("N", "R"), reference, {"N": np.ones((3, 1)), "R": np.ones(2)}).shape == (3, 2, 2)
    with pytest.raises(InputError, match="give R= too"):
        places(("N", "R"), reference, {"N": 1e9, "R": None})
    with pytest.raises(InputError, match="do not go together"):
        places(("N", "R"), reference, {"N": np.ones(3), "R": np.ones(2)})
