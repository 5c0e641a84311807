from __future__ import annotations

import json
import math

import numpy as np
import pytest

from lorascope.core.errors import InputError
from lorascope.scaling import compare_laws
from lorascope.scaling.criteria import aicc, aicc_of_constant
from tests.scaling.synthetic import ADDITIVE, MULTIPLICATIVE, grid, runs


@pytest.mark.parametrize(("law", "truth"), [("additive", ADDITIVE), ("multiplicative", MULTIPLICATIVE)])
def test_the_law_that_made_the_runs_wins(law: str, truth: dict[str, float]) -> None:
    found = compare_laws(runs(law, truth, grid(N=4, R=4, D=4), noise=0.02))
    assert found.best.law == law
    assert found.best.delta == 0
    assert len(found.candidates) == 4
    rival = next(candidate for candidate in found.candidates if candidate.law != law)
    assert rival.delta > 20
    assert rival.held_out > found.best.held_out
    assert set(found.best.by_axis) == {"N", "R", "D"}
    assert found.statement.startswith(f"the {law} law")
    assert "lower" in found.statement


def test_outliers_do_not_change_the_choice() -> None:
    table = runs("multiplicative", MULTIPLICATIVE, grid(N=4, R=4, D=4), noise=0.02, outliers=0.1)
    assert compare_laws(table).best.law == "multiplicative"


def test_a_floor_that_is_not_needed_is_not_clear() -> None:
    table = runs("multiplicative", {"A": 1.0, "alpha": 0.3, "beta": 0.1}, grid(N=4, R=4), noise=0.02)
    found = compare_laws(table, laws=("multiplicative",))
    assert not found.best.floor
    assert not found.decided
    assert "do not tell these laws apart" in found.statement


def test_a_floor_that_is_needed_is_clear() -> None:
    table = runs("multiplicative", MULTIPLICATIVE | {"E": 2.0}, grid(N=4, R=4, D=4), noise=0.01)
    found = compare_laws(table, laws=("multiplicative",))
    assert found.best.floor
    assert found.decided


def test_with_few_values_the_largest_cannot_be_held_out() -> None:
    found = compare_laws(runs("additive", ADDITIVE, grid(N=2, R=5, D=2), noise=0.01))
    assert any("N and D: too few values" in note for note in found.warnings)
    assert "N" not in found.best.by_axis


def test_three_values_are_enough_for_laws_without_an_additive_floor() -> None:
    found = {
        (c.law, c.floor): c
        for c in compare_laws(runs("additive", ADDITIVE, grid(N=3, R=3, D=3), noise=0.01)).candidates
    }
    assert found["additive", True].held_out is None
    assert found["additive", False].held_out < 0.2


def test_too_few_runs_to_choose_are_said() -> None:
    found = compare_laws({"R": [4, 8, 16], "ce": [3.0, 2.5, 2.2]})
    assert not found.decided
    assert "too few runs" in found.statement
    assert math.isinf(found.best.aicc)
    assert found.to_dict()["candidates"][0]["aicc"] is None


def test_it_is_json() -> None:
    found = compare_laws(runs("additive", {"B": 1.0, "beta": 0.5}, grid(R=8), noise=0.01)).to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize("options", [{"laws": ()}, {"laws": ("cubic",)}, {"loss": "x"}, {"floors": ()}])
def test_wrong_options_are_said(options: dict) -> None:
    with pytest.raises(InputError):
        compare_laws({"R": [4, 8, 16], "ce": [3.0, 2.5, 2.2]}, **options)


def test_a_flat_or_constant_metric_can_be_compared() -> None:
    assert not compare_laws({"R": [4, 8, 16, 32] * 3, "ce": [1.0] * 12}).decided


def test_aicc_of_gaussian_noise_is_near_the_closed_form() -> None:
    # For a wide sample the best t with 4 degrees of freedom costs 0.024 nats a run more than the Gaussian itself.
    r = np.random.default_rng(0).standard_normal(50000)
    gauss = -2 * (-len(r) / 2 * (math.log(2 * math.pi * (r**2).mean()) + 1))
    assert (aicc(r, np.ones_like(r), 1) - gauss) / (2 * len(r)) == pytest.approx(0.024, abs=0.006)


def test_aicc_counts_parameters_and_the_unit() -> None:
    r = np.random.default_rng(0).standard_normal(30)
    assert aicc(r, np.ones(30), 3) - aicc(r, np.ones(30), 2) == pytest.approx(
        2 + 2 * 4 * 5 / (30 - 5) - 2 * 3 * 4 / (30 - 4)
    )
    assert aicc(10 * r, np.ones(30), 2) - aicc(r, np.ones(30), 2) == pytest.approx(60 * math.log(10))
    assert aicc(10 * r, np.full(30, 10.0), 2) == pytest.approx(aicc(r, np.ones(30), 2) + 60 * math.log(10))
    assert math.isinf(aicc(r[:4], np.ones(4), 2))


def test_a_constant_beats_a_law_on_noise_only() -> None:
    rng = np.random.default_rng(0)
    assert aicc_of_constant(1 + 0.01 * rng.standard_normal(40), relative=True) < aicc_of_constant(
        np.linspace(1, 2, 40), relative=True
    )
