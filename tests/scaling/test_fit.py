from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iminuit import Minuit
from scipy.optimize import least_squares

from lorascope.core.errors import DataError, InputError
from lorascope.scaling import ScalingFit, additive, fit_scaling_law, multiplicative
from lorascope.scaling.laws import Form, values
from lorascope.scaling.optimum import best_fit, scale_of
from lorascope.scaling.solve import LOSSES, Problem, rho, solve, weight
from lorascope.scaling.starts import bounds
from lorascope.scaling.table import observe
from tests.scaling.synthetic import ADDITIVE, LAWS, MULTIPLICATIVE, grid, middle, runs

TRUTHS = {"additive": ADDITIVE, "multiplicative": MULTIPLICATIVE}
LARGE = {"N": 4e10, "R": 2048, "D": 4e6}


def said(fit: ScalingFit) -> str:
    return " | ".join(fit.warnings)


# Recovery


@pytest.mark.parametrize("floor", [False, True])
@pytest.mark.parametrize("law", list(TRUTHS))
def test_without_noise_the_truth_comes_back_exactly(law: str, floor: bool) -> None:
    truth = {name: value for name, value in {"E": 0.4, **TRUTHS[law]}.items() if floor or name != "E"}
    places = grid(N=3, R=4, D=3)
    fit = fit_scaling_law(runs(law, truth, places), law, "ce", floor=floor)
    assert fit.params == pytest.approx(truth, rel=1e-5)
    assert fit.reference == pytest.approx(middle(places))
    assert fit.r2 == pytest.approx(1.0)
    for name, value in truth.items():
        assert fit.intervals[name][0] <= value <= fit.intervals[name][1]
        assert fit.identified[name]
    assert fit.predict(**LARGE) == pytest.approx(LAWS[law](**LARGE, **truth, reference=fit.reference), rel=1e-5)


@pytest.mark.parametrize("law", list(TRUTHS))
def test_outliers_hardly_move_the_parameters_and_are_named(law: str) -> None:
    places = grid(N=4, R=5, D=5)
    clean = runs(law, TRUTHS[law], places, noise=0.01)
    spoiled = {**clean, "ce": clean["ce"].copy()}
    spoiled["ce"][[3, 40, 77]] *= [3.0, 0.3, 2.0]
    before, after = (fit_scaling_law(table, law, "ce", n_boot=100) for table in (clean, spoiled))
    for name, (low, high) in before.intervals.items():
        assert abs(after.params[name] - before.params[name]) < 0.5 * (high - low)
    assert "3 of 100 runs lie far from the law" in said(after)
    squares = fit_scaling_law(spoiled, law, "ce", n_boot=0, loss="squares")
    miss = [abs(squares.params[k] - TRUTHS[law][k]) - abs(after.params[k] - TRUTHS[law][k]) for k in TRUTHS[law]]
    assert min(miss) > 0


@pytest.mark.parametrize(
    ("law", "noise", "outliers"),
    [("additive", 0.05, 0.1), ("multiplicative", 0.01, 0.0)],
    ids=["outliers", "1 percent"],
)
def test_intervals_cover(law: str, noise: float, outliers: float) -> None:
    # The full table of coverages is in docs/benchmarks/scaling_recovery.md; 40 tables of 6 (5) parameters bound it loosely.
    truth, places = TRUTHS[law], grid(N=3, R=3, D=3)
    covered = []
    for seed in range(40):
        fit = fit_scaling_law(runs(law, truth, places, noise=noise, outliers=outliers, seed=seed), law, "ce", seed=seed)
        covered += [fit.intervals[name][0] <= value <= fit.intervals[name][1] for name, value in truth.items()]
    assert 0.88 <= np.mean(covered) <= 0.995


@pytest.mark.parametrize("floor", [0.0, 0.7], ids=["no floor", "floor"])
@pytest.mark.parametrize("law", list(TRUTHS))
def test_intervals_cover_whether_there_is_a_floor_or_not(law: str, floor: float) -> None:
    """The default is not told: it must hold on both."""
    truth, places = {**TRUTHS[law], "E": floor}, grid(N=3, R=3, D=3)
    covered = []
    for seed in range(20):
        table = runs(law, truth, places, noise=0.03, seed=seed)
        fit = fit_scaling_law(table, law, "ce", n_boot=100, seed=seed)
        covered += [
            fit.intervals[name][0] <= truth[name] <= fit.intervals[name][1] for name in ("alpha", "beta", "gamma")
        ]
    assert np.mean(covered) >= 0.88


def test_a_floor_is_taken_where_it_shows_and_left_open_where_it_does_not() -> None:
    places = grid(N=4, R=4, D=4)
    there = fit_scaling_law(runs("multiplicative", {**MULTIPLICATIVE, "E": 1.0}, places, noise=0.01), "multiplicative")
    assert there.params["E"] == pytest.approx(1.0, abs=0.2)
    assert there.intervals["E"][0] > 0.5
    assert not len(there.rival)
    table = runs("multiplicative", {"A": 1.0, "alpha": 0.3, "beta": 0.1, "gamma": 0.2}, places, noise=0.03, seed=3)
    fit = fit_scaling_law(table, "multiplicative")
    without, told = (fit_scaling_law(table, "multiplicative", floor=floor) for floor in (False, True))
    assert "the runs do not settle whether there is a floor" in said(fit)
    assert fit.intervals["E"][0] == 0.0
    for name in ("alpha", "beta", "gamma"):
        low, high = fit.intervals[name]
        assert low == pytest.approx(min(without.intervals[name][0], told.intervals[name][0]))
        assert high == pytest.approx(max(without.intervals[name][1], told.intervals[name][1]))
    low, high = fit.predict_interval(**LARGE)
    for each in (without, told):
        ends = each.predict_interval(**LARGE)
        assert low <= ends[0] and ends[1] <= high
    # The law that is reported is one of the two, to the last digit.
    best = min((without, told), key=lambda each: each.aicc)
    assert fit.aicc == best.aicc
    assert fit.predict(**LARGE) == pytest.approx(best.predict(**LARGE))
    # Eq. 8 has no floor: without one in the runs, the additive default has none to report either.
    plain = fit_scaling_law(runs("additive", ADDITIVE, places, noise=0.02))
    assert set(plain.params) == set(ADDITIVE) and len(plain.rival) == len(plain.boot)
    assert len(plain.sample(**LARGE)) == 2 * len(plain.boot)


def test_two_values_of_an_axis_cannot_tell_a_floor_and_the_law_is_as_published() -> None:
    table = runs("multiplicative", {"A": 1.0, "beta": 0.3}, grid(R=2))
    many = {name: np.tile(column, 8) for name, column in table.items()}
    many["ce"] = many["ce"] * (1 + 0.01 * np.cos(7 * np.arange(16)))
    assert fit_scaling_law(many, "multiplicative", n_boot=20).intervals["E"] == (-math.inf, math.inf)
    assert not fit_scaling_law(runs("additive", ADDITIVE, grid(N=2, R=2, D=2), noise=0.01), n_boot=20).floor


def test_a_ceiling_is_found_for_a_metric_that_rises() -> None:
    truth = {"A": -0.1, "alpha": 0.3, "B": -0.1, "beta": 0.5, "C": -0.15, "gamma": 0.3, "E": 0.9}
    fit = fit_scaling_law(
        runs("additive", truth, grid(N=4, R=4, D=4), metric="accuracy"), metric="accuracy", floor=True
    )
    assert fit.params == pytest.approx(truth, rel=1e-4)
    assert fit.noise == "absolute"


def test_a_metric_that_grows_without_end_has_a_negative_exponent() -> None:
    truth = {"B": 0.02, "beta": -0.6, "C": 0.01, "gamma": 0.2}
    fit = fit_scaling_law(runs("additive", truth, grid(R=4, D=4), metric="miub_js"), metric="miub_js")
    assert fit.params == pytest.approx(truth, rel=1e-4)


def test_a_metric_below_zero_is_the_mirror_image() -> None:
    table = runs("additive", ADDITIVE, grid(N=3, R=3, D=3), noise=0.02)
    up = fit_scaling_law(table, metric="ce")
    down = fit_scaling_law({**table, "ce": -table["ce"]}, metric="ce")
    for name in ("A", "B", "C"):
        assert down.params[name] == pytest.approx(-up.params[name])
        assert down.intervals[name] == pytest.approx((-up.intervals[name][1], -up.intervals[name][0]))
    assert down.params["alpha"] == pytest.approx(up.params["alpha"])


def test_a_metric_of_both_signs_needs_a_floor() -> None:
    table = runs("multiplicative", {"A": 1.0, "beta": 0.5, "E": -0.8}, grid(R=8), metric="delta")
    assert (table["delta"] > 0).any() and (table["delta"] < 0).any()
    fit = fit_scaling_law(table, "multiplicative", "delta", n_boot=50)
    assert fit.params == pytest.approx({"A": 1.0, "beta": 0.5, "E": -0.8}, rel=1e-4)
    assert fit.noise == "absolute"
    assert "both signs" in said(fit_scaling_law(table, "multiplicative", "delta", floor=False, n_boot=50))


def test_an_accuracy_that_rises_without_bend_has_no_ceiling_to_tell() -> None:
    R = np.tile(np.geomspace(4, 64, 5), 3)
    table = {"R": R, "accuracy": 0.5 + 0.02 * np.log(R) + 0.004 * np.random.default_rng(0).standard_normal(15)}
    fit = fit_scaling_law(table, "multiplicative", "accuracy", n_boot=50)
    assert fit.params["A"] < 0 < fit.params["E"] <= 1.0
    assert 0.6 < fit.predict(R=1e30) <= 1.0
    grows = fit_scaling_law(table, "multiplicative", "accuracy", floor=False, n_boot=50)
    assert grows.params["A"] > 0 > grows.params["beta"]
    assert grows.predict(R=1e30) > 1.0


def test_signs_can_be_given() -> None:
    table = runs("additive", {"B": -0.2, "beta": 0.5, "E": 0.9}, grid(R=8), noise=0.01, metric="score")
    assert fit_scaling_law(table, "multiplicative", "score", signs="ceiling", n_boot=0).params["A"] < 0
    assert fit_scaling_law(table, "multiplicative", "score", signs="positive", n_boot=0).params["A"] >= 0
    assert fit_scaling_law(table, "multiplicative", "score", n_boot=0).params["A"] < 0
    with pytest.raises(InputError, match="needs a law with a floor"):
        fit_scaling_law(table, "additive", "score", signs="ceiling", floor=False)
    assert fit_scaling_law(table, "additive", "score", signs="ceiling", n_boot=0).params["B"] < 0


# Invariances


@settings(max_examples=8, deadline=None)
@given(scales=st.tuples(*[st.floats(1e-3, 1e3)] * 3), law=st.sampled_from(list(TRUTHS)))
def test_units_of_the_axes_leave_everything_but_the_reference(scales: tuple[float, float, float], law: str) -> None:
    table = runs(law, TRUTHS[law], grid(N=3, R=3, D=3), noise=0.02)
    moved = {**table, **{axis: table[axis] * scale for axis, scale in zip("NRD", scales, strict=True)}}
    first, second = (fit_scaling_law(each, law, "ce", n_boot=30) for each in (table, moved))
    assert second.params == pytest.approx(first.params, rel=1e-4)
    assert second.reference == pytest.approx(
        {axis: first.reference[axis] * s for axis, s in zip("NRD", scales, strict=True)}
    )


@settings(max_examples=8, deadline=None)
@given(scale=st.floats(1e-4, 1e4), law=st.sampled_from(list(TRUTHS)))
def test_the_unit_of_the_metric_scales_amplitudes_and_floor_only(scale: float, law: str) -> None:
    table = runs(law, TRUTHS[law], grid(N=3, R=3, D=3), noise=0.02)
    first, second = (
        fit_scaling_law({**table, "ce": table["ce"] * s}, law, "ce", n_boot=30) for s in (1.0, scale)
    )  # fmt: skip
    for name in first.params:
        factor = scale if len(name) == 1 else 1.0
        assert second.params[name] == pytest.approx(first.params[name] * factor, rel=1e-4)
        assert second.intervals[name] == pytest.approx([end * factor for end in first.intervals[name]], rel=1e-3)
    # Only the unit's Jacobian: differences between laws stay.
    assert second.aicc - first.aicc == pytest.approx(2 * 27 * math.log(scale), abs=1e-3)


def test_the_order_of_the_runs_does_not_matter() -> None:
    table = pd.DataFrame(runs("additive", ADDITIVE, grid(N=3, R=3, D=3), noise=0.02))
    mixed = table.sample(frac=1, random_state=1)
    assert fit_scaling_law(mixed, n_boot=0).params == pytest.approx(fit_scaling_law(table, n_boot=0).params, rel=1e-6)


def test_the_seed_decides_the_bootstrap_and_nothing_else() -> None:
    table = runs("additive", ADDITIVE, grid(N=3, R=3, D=3), noise=0.02)
    first, same, other = (fit_scaling_law(table, seed=seed, n_boot=50) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.boot, same.boot)
    assert first.params == other.params
    assert not np.array_equal(first.boot, other.boot)


# Oracles


def objective(found, y: np.ndarray, loss: str):
    problem = found.problem

    def cost(*theta: float) -> float:
        fitted = values(problem.form, np.array([theta]), problem.x)[0]
        return float(rho((y - fitted) / problem.scale, loss).sum())

    return cost


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("law", list(TRUTHS))
def test_the_minimum_is_that_of_iminuit(law: str, loss: str) -> None:
    seen = observe(pd.DataFrame(runs(law, TRUTHS[law], grid(N=4, R=4, D=4), noise=0.05, outliers=0.1)), "ce")
    form = Form(law, seen.axes, "E" in TRUTHS[law])
    y = seen.y / np.median(seen.y)
    found = best_fit(form, seen.x, y, loss=loss, relative=True, signs="positive")
    truth = np.array([TRUTHS[law][name] / (np.median(seen.y) if len(name) == 1 else 1) for name in form.names])
    minuit = Minuit(objective(found, y, loss), *truth, name=form.names)
    minuit.errordef = Minuit.LIKELIHOOD
    minuit.strategy = 2
    minuit.migrad(ncall=20000)
    assert found.loss == pytest.approx(minuit.fval, rel=1e-5)
    assert found.theta == pytest.approx(np.array(minuit.values), rel=2e-2, abs=1e-3)


@pytest.mark.parametrize("law", list(TRUTHS))
def test_every_fit_of_a_batch_is_that_of_scipy(law: str) -> None:
    seen = observe(pd.DataFrame(runs(law, TRUTHS[law], grid(N=4, R=4, D=4), noise=0.03)), "ce")
    form = Form(law, seen.axes, "E" in TRUTHS[law])
    y = seen.y / np.median(seen.y)
    low, high = bounds(form, "positive")
    found = best_fit(form, seen.x, y, loss="squares", relative=True, signs="positive")
    problem = Problem(form, seen.x, found.problem.scale, "squares", low, high)
    counts = np.random.default_rng(0).multinomial(len(y), np.full(len(y), 1 / len(y)), size=12).astype(float)
    batch, cost = solve(problem, np.tile(y, (12, 1)), np.tile(found.theta, (12, 1)), counts=counts)
    for row in range(12):

        def residuals(theta: np.ndarray, row: int = row) -> np.ndarray:
            return np.sqrt(counts[row]) * (y - values(form, theta[None], seen.x)[0]) / problem.scale

        peer = least_squares(residuals, found.theta.clip(low + 1e-9, high), bounds=(low, high), xtol=1e-14, ftol=1e-14)
        assert cost[row] <= peer.cost * (1 + 1e-6)
        assert batch[row] == pytest.approx(peer.x, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_weight_is_the_slope_of_the_loss(loss: str) -> None:
    u = np.linspace(-8, 8, 401)
    slope = (rho(u + 1e-6, loss) - rho(u - 1e-6, loss)) / 2e-6
    assert weight(u, loss) * u == pytest.approx(slope, abs=1e-4)
    assert rho(np.array([0.1]), loss) == pytest.approx(0.005, rel=1e-3)


def test_a_batch_in_pieces_is_the_same_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    table = runs("additive", ADDITIVE, grid(N=3, R=3, D=3), noise=0.02)
    whole = fit_scaling_law(table, n_boot=40)
    monkeypatch.setattr("lorascope.scaling.solve._CHUNK", 1000)
    np.testing.assert_allclose(fit_scaling_law(table, n_boot=40).boot, whole.boot, rtol=1e-6)


def test_scale_is_the_standard_deviation_of_gaussian_residuals_whatever_the_outliers() -> None:
    noise = np.random.default_rng(0).standard_normal(20000) * 3
    assert scale_of(noise, 0) == pytest.approx(3, rel=0.03)
    noise[:1000] *= 10
    assert scale_of(noise, 0) == pytest.approx(3, rel=0.1)
    assert scale_of(np.array([0.0, 0.0, 0.0, 1.0]), 0) > 0


# Predictions


def test_predictions_take_numbers_and_arrays_and_need_only_the_axes_that_vary() -> None:
    fit = fit_scaling_law(runs("additive", {"B": 1.0, "beta": 0.5, "C": 1.0, "gamma": 0.1}, grid(R=4, D=4), noise=0.01))
    assert isinstance(fit.predict(R=8, D=1000), float)
    assert fit.predict(N=7e9, R=8, D=1000) == fit.predict(R=8, D=1000)
    found = fit.predict(R=np.array([[4], [8]]), D=np.array([10, 100, 1000]))
    assert found.shape == (2, 3)
    assert found[1, 2] == pytest.approx(fit.predict(R=8, D=1000))
    assert len(fit.boot) == 200
    assert fit.sample(R=[4, 8], D=10).shape == (200 + len(fit.rival), 2)
    with pytest.raises(InputError, match="give D= too"):
        fit.predict(R=8)
    with pytest.raises(InputError, match="R is 0"):
        fit.predict(R=0, D=10)


def test_intervals_of_predictions_widen_with_level_with_distance_and_for_a_new_run() -> None:
    fit = fit_scaling_law(runs("additive", ADDITIVE, grid(N=3, R=3, D=3), noise=0.03))
    width = {
        level: np.subtract(*fit.predict_interval(N=1e9, R=32, D=3e4, level=level)[::-1]) for level in (0.5, 0.8, 0.95)
    }
    assert 0 < width[0.5] < width[0.8] < width[0.95]
    low, high = fit.predict_interval(N=[1e9, 1e12], R=[32, 8192], D=[3e4, 1e8])
    assert low.shape == high.shape == (2,)
    at = {"N": 1e9, "R": 32, "D": 3e4}
    one_low, one_high = fit.predict_interval(**at, new_run=True)
    expected = 2 * 1.96 * fit.sigma * fit.predict(**at)
    assert one_high - one_low == pytest.approx(np.hypot(expected, width[0.95]), rel=0.25)
    with pytest.raises(InputError, match="between 0 and 1"):
        fit.predict_interval(**at, level=95)


def test_predictions_far_away_cover_the_truth() -> None:
    hits = []
    for seed in range(30):
        fit = fit_scaling_law(
            runs("multiplicative", MULTIPLICATIVE, grid(N=3, R=4, D=4), noise=0.02, seed=seed), "multiplicative"
        )
        truth = float(multiplicative(**LARGE, **MULTIPLICATIVE, reference=fit.reference))
        low, high = fit.predict_interval(**LARGE)
        assert fit.predict(**LARGE) == pytest.approx(truth, rel=0.1)
        hits.append(low <= truth <= high)
    assert np.mean(hits) >= 0.83


def test_without_a_bootstrap_there_are_no_ends() -> None:
    fit = fit_scaling_law(runs("additive", ADDITIVE, grid(N=3, R=3, D=3), noise=0.02), n_boot=0)
    assert set(fit.intervals.values()) == {(-math.inf, math.inf)}
    with pytest.raises(InputError, match="no bootstrap"):
        fit.sample(N=1e9, R=4, D=100)


# Groups


def test_runs_of_a_group_are_drawn_together() -> None:
    # Three copies of each run hold no more than one; only a bootstrap by cell can know.
    table = runs("multiplicative", MULTIPLICATIVE, grid(N=3, R=3, D=3), noise=0.05)
    copies = {name: np.tile(column, 3) for name, column in table.items()} | {"cell": np.tile(np.arange(27), 3)}
    alone, by_cell = (fit_scaling_law(copies, "multiplicative", group=group) for group in (None, "cell"))
    width = {name: np.subtract(*by_cell.intervals[name][::-1]) for name in by_cell.params}
    ratio = [np.subtract(*alone.intervals[name][::-1]) / width[name] for name in by_cell.params]
    assert 0.25 < np.median(ratio) < 0.75  # one over the square root of three, or less: few cells make wide intervals
    few = fit_scaling_law({**table, "seed": np.arange(27) % 3}, "multiplicative", group="seed")
    assert "only 3 values of 'seed'" in said(few)


# What cannot be told


def test_one_rank_has_no_term() -> None:
    places = {**grid(N=4, D=4), "R": np.full(16, 16.0)}
    truth = {name: ADDITIVE[name] for name in ("A", "alpha", "C", "gamma")}
    fit = fit_scaling_law(runs("additive", truth, places, noise=0.01))
    assert set(fit.params) == set(truth)
    assert fit.axes == ("N", "D")
    assert not fit.identified["beta"] and not fit.identified["B"]
    assert fit.identified["alpha"] and fit.identified["gamma"]
    assert "rank R is 16 in all runs: the law has no term for it; run R = 4 and R = 64" in fit.warnings


@pytest.mark.parametrize("law", list(TRUTHS))
def test_two_points_tell_nothing_and_say_so(law: str) -> None:
    fit = fit_scaling_law({"R": [4, 64], "ce": [2.0, 1.5]}, law)
    assert fit.predict(R=[4, 64]) == pytest.approx([2.0, 1.5], rel=1e-3)
    assert not any(fit.identified.values())
    assert set(fit.intervals.values()) == {(-math.inf, math.inf)}
    assert f"2 runs for {len(fit.params)} parameters" in said(fit)
    assert fit.predict_interval(R=16) == (-math.inf, math.inf)


@pytest.mark.parametrize("law", list(TRUTHS))
@pytest.mark.parametrize("axes", [{"R": 4}, {"N": 3, "R": 3, "D": 3}], ids=["one axis", "three axes"])
@pytest.mark.parametrize("noise", [0.0, 0.01], ids=["constant", "noisy"])
def test_a_flat_curve_has_no_exponents(law: str, axes: dict[str, int], noise: float) -> None:
    places = {axis: np.tile(column, 4) for axis, column in grid(**axes).items()}
    count = len(places["R"])
    fit = fit_scaling_law({**places, "ce": 1.7 * (1 + noise * np.random.default_rng(1).standard_normal(count))}, law)
    assert not any(fit.identified[name] for name in ("alpha", "beta", "gamma"))
    assert ("the same in all runs" if noise == 0 else "ce is flat") in said(fit)
    assert fit.predict(**fit.reference) == pytest.approx(1.7, rel=0.02)
    assert all(np.isfinite(value) for value in fit.params.values())


def test_an_axis_without_effect_is_said() -> None:
    truth = {name: ADDITIVE[name] for name in ("A", "alpha", "C", "gamma")}
    table = runs("additive", truth, grid(N=4, R=4, D=4), noise=0.01)
    fit = fit_scaling_law(table)
    assert "no effect of rank R beyond the noise over R = 4 to 512" in said(fit)
    assert fit.identified["alpha"]
    power = fit_scaling_law(
        runs("multiplicative", {"A": 1.0, "alpha": 0.3}, grid(N=4, R=4), noise=0.01, seed=1), "multiplicative"
    )
    assert "no effect of rank R" in said(power)
    assert power.intervals["beta"][0] < 0 < power.intervals["beta"][1]


def test_too_few_values_of_an_axis_are_said_with_what_to_run() -> None:
    fit = fit_scaling_law(runs("additive", ADDITIVE, grid(N=2, R=2, D=2), noise=0.01))
    assert "rank R has only 2 values, too few for B and beta: run R = 1 and R = 2,048" in fit.warnings
    assert not any(fit.identified.values())
    # A product needs two values only: what the floor needs is a third somewhere.
    table = runs("multiplicative", {"A": 1.0, "alpha": 0.3, "beta": 0.1}, grid(N=2, R=2))
    product = fit_scaling_law(
        {name: np.tile(column, 3) for name, column in table.items()}, "multiplicative", floor=False
    )
    assert product.params == pytest.approx({"A": 1.0, "alpha": 0.3, "beta": 0.1}, rel=1e-4)
    assert product.identified["alpha"]


def test_axes_that_change_together_are_said() -> None:
    N = np.geomspace(1e8, 1e10, 8)
    table = {"N": N, "D": N / 1e5, "ce": (1e9 / N) ** 0.3}
    fit = fit_scaling_law(table, "multiplicative")
    assert "N and D change together in all runs" in said(fit)
    assert not fit.identified["alpha"] and not fit.identified["gamma"]
    assert fit.intervals["alpha"] == (-math.inf, math.inf)


def test_a_floor_that_trades_off_against_the_exponents_is_said() -> None:
    # Nearly a straight line in ln R: any floor goes with some exponent.
    R = np.tile(np.geomspace(4, 64, 5), 3)
    acc = 0.5 + 0.02 * np.log(R) + 0.004 * np.random.default_rng(0).standard_normal(15)
    fit = fit_scaling_law({"R": R, "accuracy": acc}, metric="accuracy", floor=True)
    assert not fit.identified["E"]
    assert "the floor E trades off against the exponents" in said(fit)
    assert fit.intervals["E"][1] == 1.0  # no accuracy is higher, and the runs do not say more


def test_more_parameters_than_settings_and_duplicates_are_said() -> None:
    table = {"N": [1e8, 1e9] * 6, "R": [4, 8] * 6, "D": [10, 20] * 6, "ce": np.linspace(2, 1, 12)}
    fit = fit_scaling_law(table)
    assert not any(fit.identified.values())
    assert fit.warnings


def test_few_bootstrap_fits_and_few_runs_are_said() -> None:
    table = runs("additive", {"B": 1.0, "beta": 0.5}, grid(R=4), noise=0.01)
    fit = fit_scaling_law(table, n_boot=20)
    assert "20 bootstrap fits are few" in said(fit)
    assert "only 4 runs for 2 parameters" in said(fit)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"law": "linear"}, "unknown law 'linear'"),
        ({"metric": "acc"}, "no column 'acc'"),
        ({"loss": "l1"}, "unknown loss 'l1'"),
        ({"noise": "poisson"}, "unknown noise"),
        ({"signs": "negative"}, "unknown signs"),
        ({"n_boot": -5}, "n_boot is -5"),
        ({"level": 95}, "level is 95"),
        ({"group": "seed"}, "no column 'seed'"),
    ],
)
def test_wrong_options_are_said_in_one_line(options: dict, match: str) -> None:
    with pytest.raises(InputError, match=match) as error:
        fit_scaling_law({"R": [4, 8, 16, 32], "ce": [3.0, 2.5, 2.2, 2.1]}, **options)
    assert "\n" not in str(error.value)


def test_huge_tiny_and_repeated_numbers_do_not_break_it() -> None:
    for scale in (1e-12, 1e12):
        fit = fit_scaling_law(runs("additive", {"B": scale, "beta": 0.5}, grid(R=6), noise=0.01), n_boot=50)
        assert fit.params["beta"] == pytest.approx(0.5, abs=0.05)
    repeated = {
        name: np.repeat(column, 5) for name, column in runs("additive", {"B": 1.0, "beta": 0.5}, grid(R=5)).items()
    }
    assert fit_scaling_law(repeated, n_boot=50).params["beta"] == pytest.approx(0.5, rel=1e-4)


# Storage


@pytest.mark.parametrize("table", ["whole", "two points"])
def test_a_fit_survives_its_file(tmp_path: Path, table: str) -> None:
    rows = runs("multiplicative", MULTIPLICATIVE, grid(N=3, R=3, D=3), noise=0.02)
    fit = fit_scaling_law(rows if table == "whole" else {"R": [4, 64], "ce": [2.0, 1.5]}, "multiplicative", n_boot=30)
    again = ScalingFit.load(fit.save(tmp_path / "fit.json"))
    assert again.to_dict() == fit.to_dict()
    assert again.params == fit.params
    assert again.intervals == fit.intervals
    assert again.identified == fit.identified
    np.testing.assert_array_equal(again.boot, fit.boot)
    np.testing.assert_array_equal(again.residuals, fit.residuals)
    assert again.predict(N=1e9, R=9, D=100) == fit.predict(N=1e9, R=9, D=100)
    assert again.predict_interval(N=1e9, R=9, D=100) == fit.predict_interval(N=1e9, R=9, D=100)
    json.loads((tmp_path / "fit.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_foreign_and_broken_files_are_said(tmp_path: Path) -> None:
    fit = fit_scaling_law(runs("additive", {"B": 1.0, "beta": 0.5}, grid(R=6), noise=0.01), n_boot=10)
    whole = fit.to_dict()
    for broken, match in [
        ({"kind": "run"}, "no fitted scaling law"),
        ({**whole, "schema_version": 99}, "schema_version 99"),
        ({key: value for key, value in whole.items() if key != "boot"}, "not a whole"),
        ({**whole, "params": {"A": 1.0}}, "not a whole"),
        ({**whole, "intervals": {"B": 3}}, "not a whole"),
        ({**whole, "boot": [[1.0]]}, "not a whole"),
    ]:
        with pytest.raises(DataError, match=match):
            ScalingFit.from_dict(broken)
    (tmp_path / "half.json").write_text(json.dumps(whole)[:100])
    with pytest.raises(DataError, match="not valid JSON"):
        ScalingFit.load(tmp_path / "half.json")


def test_paths_are_tables(tmp_path: Path) -> None:
    pd.DataFrame(runs("additive", {"B": 1.0, "beta": 0.5}, grid(R=6))).to_csv(tmp_path / "table.csv", index=False)
    assert fit_scaling_law(tmp_path, n_boot=10).params["beta"] == pytest.approx(0.5, rel=1e-4)
    assert float(additive(R=4.0, B=1.0, beta=0.5, reference={"R": 16})) == pytest.approx(2.0)
