from __future__ import annotations

import math

import numpy as np
import pytest

from lorascope.core.errors import DataError, InputError
from lorascope.theory import bayes_floor, finetune, pretrain, weak_recovery
from lorascope.theory._rows import best_ridge, flags
from lorascope.theory.prescriptions import (
    Budget,
    Curve,
    Mismatch,
    Point,
    Recalibration,
    Regularisation,
    Selection,
    Setting,
    Thresholds,
    best_pretraining,
    curve,
    mismatch,
    point,
    recalibrate,
    regularise,
    select_active,
    split_budget,
    thresholds,
    weak_threshold,
)
from lorascope.theory.prescriptions_threshold import posterior_squares

FIRST = {"tokens": 2, "kappa0": 0.5, "noise": 0.5}
SMALL = 2**9
BOTH = Setting(alpha=0.3, **FIRST, ridge=0.03, alpha_finetune=3.0, ridge_finetune=0.5, samples=SMALL)


@pytest.mark.parametrize(
    ("alpha", "ridge", "noise", "floor"),
    [(0.1, 0.076, 0.765, 0.676), (0.2, 0.104, 0.467, 0.452), (0.3, 0.123, 0.381, 0.376), (0.6, 0.158, 0.3095, 0.308)],
)
def test_best_nuclear_ridge_is_that_of_the_brief(alpha: float, ridge: float, noise: float, floor: float) -> None:
    found = best_pretraining(alpha=alpha, **FIRST)
    assert found.ridge == pytest.approx(ridge, abs=1e-3)
    assert found.delta_eff == pytest.approx(noise, abs=6e-4)
    assert bayes_floor(alpha=alpha, **FIRST) == pytest.approx(floor, abs=6e-4)
    assert found.delta_eff >= floor - 1e-3


@pytest.mark.parametrize(
    "given",
    [
        {"alpha": 0.15, "tokens": 3, "kappa0": 1.3, "noise": 0.2},
        {"alpha": 2.0, "tokens": 1, "kappa0": 0.2, "noise": 1.5},
        {"alpha": 0.05, "tokens": 5, "kappa0": 0.1, "noise": 0.05},
    ],
)
def test_no_ridge_beats_the_best_one(given: dict) -> None:
    best = best_pretraining(**given)
    assert best.converged
    for factor in (0.2, 0.8, 0.97, 1.03, 1.25, 5.0):
        assert pretrain(**given, ridge=best.ridge * factor).delta_eff > best.delta_eff


def test_without_label_noise_the_best_ridge_vanishes() -> None:
    for alpha in (0.05, 0.1):  # below perfect recovery, where the threshold's constraint binds
        best = best_pretraining(alpha=alpha, tokens=2, kappa0=0.5, noise=0.0)
        assert best.ridge < 1e-5
        assert best.delta_eff <= pretrain(alpha=alpha, tokens=2, kappa0=0.5, noise=0.0, ridge=0.01).delta_eff


def test_frobenius_optimum_is_exact_and_has_m_equal_to_q() -> None:
    best = best_pretraining(alpha=0.4, **FIRST, penalty="frobenius")
    assert best.ridge == pytest.approx(0.5 / (4 * 1.5))
    assert pytest.approx(best.Q) == best.M
    for factor in (0.7, 1.4):
        other = pretrain(alpha=0.4, **FIRST, ridge=best.ridge * factor, penalty="frobenius")
        assert other.delta_eff > best.delta_eff


def test_regularise_says_how_far_one_may_miss() -> None:
    found = regularise(alpha=0.2, **FIRST, ridges=[0.01, 0.05, 0.2, 5.0])
    assert found.near is not None and found.near[0] < found.best_ridge < found.near[1]
    for ridge in found.near:
        noise = pretrain(alpha=0.2, **FIRST, ridge=ridge).delta_eff
        assert noise == pytest.approx(1.05 * found.best["delta_eff"], rel=1e-3)
    assert found.bayes_noise < found.best["delta_eff"] < found.frobenius_noise
    assert [row["ridge"] for row in found.rows] == sorted(row["ridge"] for row in found.rows)
    assert found.warnings == ["1 of 5 points: pre-training collapsed: lower ridge"]  # the flag of ridge 5
    hopeless = regularise(alpha=0.002, **FIRST, ridges=[0.1])
    assert hopeless.near is not None and hopeless.near[1] is None
    frobenius = regularise(alpha=0.2, **FIRST, penalty="frobenius", ridges=[0.05])
    assert frobenius.best["delta_eff"] == pytest.approx(found.frobenius_noise)


def test_recalibration_removes_what_the_formula_says() -> None:
    found = recalibrate(alpha=0.3, **FIRST, ridge=0.3, alpha_finetune=3.0, points=5, samples=SMALL)
    plain = found.plain
    assert found.beta == pytest.approx(plain["M"] / plain["Q"])
    assert found.removed == pytest.approx((plain["Q"] - plain["M"]) ** 2 / plain["Q"])
    assert found.recalibrated["test_error"] < plain["test_error"]
    assert found.best_plain["test_error"] < plain["test_error"]
    spread = [max(row[name] for row in found.rows[:3]) for name in ("delta_eff", "delta_recalibrated")]
    assert spread[0] > spread[1]


def test_posterior_by_contour_is_that_of_a_grid() -> None:
    a = np.array([[-1.0, 2.5], [0.3, 0.4], [-0.5, 6.0]])
    grid = np.linspace(-7, 7, 1401)
    x, y = np.meshgrid(grid, grid, indexing="ij")
    for noise in (0.1, 0.7, 3.0):
        for row, found in zip(a, posterior_squares(a, noise), strict=True):
            logs = -(x**2 + y**2) / 2 + (row[0] * x**2 + row[1] * y**2) / (2 * noise) - (x**2 + y**2) ** 2 / (4 * noise)
            weight = np.exp(logs - logs.max())
            expected = [float((weight * z**2).sum() / weight.sum()) for z in (x, y)]
            assert found == pytest.approx(expected, rel=1e-6)


def test_weak_recovery_agrees_with_its_limits_and_with_the_sum_over_a_grid() -> None:
    for tokens in (1, 2, 5):  # without noise the field is seen up to its sign: E |chi chi^T - I|^2 = T (T + 1)
        value, error = weak_threshold(tokens=tokens, noise=1e-4, samples=2**12)
        assert value == pytest.approx(1 / (tokens * (tokens + 1)), rel=0.05)
        assert error < 0.05 * value
    for tokens, noise in ((1, 0.5), (2, 0.7)):
        value, error = weak_threshold(tokens=tokens, noise=noise, samples=2**12)
        assert value == pytest.approx(weak_recovery(tokens=tokens, noise=noise, samples=2**12), abs=4 * error + 0.005)
    assert weak_threshold(tokens=2, noise=0.7)[0] > weak_threshold(tokens=2, noise=0.4)[0] + 0.01


def test_thresholds_are_ordered_and_flagged() -> None:
    found = thresholds(tokens=2, noise=0.7, targets=(0.95, 0.8, 0.9999), points=9, samples=SMALL)
    assert [row["alignment"] for row in found.reached] == [0.8, 0.95, 0.9999]
    low, good, never = found.reached
    assert found.weak < low["alpha_finetune"] < good["alpha_finetune"]
    assert good["alpha_finetune"] == pytest.approx(2.0, abs=0.15) and not good["warnings"]
    assert any("jump" in word for word in low["warnings"])  # 0.8 lies where replica symmetry is doubtful
    assert never["alpha_finetune"] is None and "not reached" in never["warnings"][0]
    assert found.trusted is not None
    assert all(not row["warnings"] for row in found.rows if row["alpha_finetune"] >= found.trusted)
    assert any("jump is above" in word for word in found.warnings)


def test_curve_follows_the_function_and_keeps_flags() -> None:
    found = curve(BOTH, "alpha_finetune", [6.0, 0.5, 3.0])
    assert [row["alpha_finetune"] for row in found.rows] == [0.5, 3.0, 6.0]
    alone = finetune(
        alpha=3.0,
        tokens=2,
        ridge=0.5,
        noise=found.rows[1]["delta_eff"],
        base_error=found.rows[1]["error"] / 1.5,
        samples=SMALL,
    )
    assert found.rows[1]["alignment"] == pytest.approx(alone.alignment, abs=1e-3)
    assert found.rows[1]["test_error"] == pytest.approx(alone.test_error, abs=3e-3)
    assert found.rows[0]["warnings"] and not found.rows[2]["warnings"]
    first = curve(BOTH.but(alpha_finetune=None), "noise", [0.1, 1.0])
    assert "alignment" not in first.rows[0] and first.rows[0]["delta_eff"] < first.rows[1]["delta_eff"]


def test_best_ridges_are_at_least_as_good_as_any_of_a_grid() -> None:
    fixed = curve(BOTH, "ridge_finetune", [0.03, 0.1, 0.3, 0.5, 1.0])
    best = curve(BOTH.but(ridge_finetune=None), "alpha_finetune", [3.0]).rows[0]
    assert best["test_error"] <= min(row["test_error"] for row in fixed.rows) + 1e-4
    tuned = curve(BOTH.but(ridge=None), "alpha_finetune", [3.0]).rows[0]
    assert tuned["ridge"] == pytest.approx(0.1224, abs=1e-3)
    assert tuned["test_error"] < curve(BOTH, "alpha_finetune", [3.0]).rows[0]["test_error"]
    value, found = best_ridge(
        lambda ridge, start: finetune(alpha=3.0, tokens=2, ridge=ridge, noise=0.5, samples=SMALL, start=start)
    )
    assert 0.1 < value < 1.0 and math.isclose(found.ridge, value)


def test_mismatch_is_found_on_reused_data_only() -> None:
    setting = BOTH.but(alpha=0.1, alpha_finetune=1.5)
    found = mismatch(setting, ridges=[0.01, 0.07, 0.1, 0.4])
    assert found.differ == {"reused": True, "fresh": False}
    reused = {row["ridge"]: row for row in found.rows if row["data"] == "reused"}
    # The brief: alignment .9907 / .9829 / .9450, error 1.242 / .927 / 1.487 at ridge .01 / .1 / .4.
    for ridge, alignment, error in ((0.01, 0.9907, 1.242), (0.1, 0.9829, 0.927), (0.4, 0.9450, 1.487)):
        assert reused[ridge]["alignment"] == pytest.approx(alignment, abs=3e-3)
        assert reused[ridge]["test_error"] == pytest.approx(error, abs=0.02)
    flagged = mismatch(setting.but(dim=100), ridges=[0.05], data=["reused"])
    assert any("5%" in word for word in flagged.warnings)


def test_budget_has_its_best_split_inside_and_flags_the_ends() -> None:
    found = split_budget(BOTH.but(ridge=None), budget=0.3, dim=100, shares=[0.3, 0.85, 0.97, 0.999])
    assert found.best is not None and found.best["share"] == 0.85
    for row in found.rows:
        assert row["alpha"] * 100**2 + row["alpha_finetune"] * 100 == pytest.approx(0.3 * 100**2)
    assert found.rows[-1]["warnings"]
    assert any("fine-tuning sequences at d = 100" in word for word in found.rows[-1]["warnings"])
    dear = split_budget(BOTH.but(ridge=None), budget=0.3, dim=100, price=4.0, shares=[0.3, 0.85])
    assert dear.rows[1]["alpha_finetune"] == pytest.approx(found.rows[1]["alpha_finetune"] / 4)
    aligned = split_budget(BOTH.but(ridge=None), budget=0.3, dim=100, shares=[0.5, 0.85], aim="alignment")
    assert aligned.best is not None and aligned.best["share"] == 0.5


def test_active_choice_flags_the_largest_and_names_the_best() -> None:
    setting = Setting(alpha=0.5, tokens=2, kappa0=0.5, noise=0.0, ridge=0.03, activation="softmax", samples=SMALL)
    setting = setting.but(alpha_finetune=3.0, ridge_finetune=0.05)
    found = select_active(setting, fractions=[0.1])
    kinds = {row["choice"]: row for row in found.rows}
    assert kinds["smallest"]["test_error"] < kinds["uniform"]["test_error"] < kinds["largest"]["test_error"]
    assert any("largest" in word for word in kinds["largest"]["warnings"])
    assert found.best == kinds["smallest"] and found.error_ratio is not None
    assert found.error_ratio == kinds["smallest"]["test_error"] / kinds["uniform"]["test_error"] < 1
    linear = select_active(BOTH, fractions=[0.1], choices=["uniform", "smallest"])
    assert linear.error_ratio == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"fractions": [2.0]}, "fraction 2.0"),
        ({"fractions": [0.1, 0.0]}, "fraction 0.0"),
        ({"fractions": []}, "at least one"),
        ({"choices": ["middle"]}, "choice"),
        ({"setting": BOTH.but(alpha_finetune=None)}, "alpha_finetune"),
    ],
)
def test_active_choice_refuses_wrong_values_before_it_computes(
    monkeypatch: pytest.MonkeyPatch, more: dict, word: str
) -> None:
    monkeypatch.setattr(Setting, "first", lambda *_: pytest.fail("stage 1 was computed"))
    with pytest.raises(InputError, match=word):
        select_active(**{"setting": BOTH, **more})


def test_point_has_every_kind_of_data() -> None:
    found = point(BOTH.but(dim=60), ["fresh", "reused"])
    assert list(found.finetuned) == ["fresh", "reused"]
    assert found.warnings == ["reused: " + found.finetuned["reused"]["warnings"][0]]
    assert point(BOTH.but(alpha_finetune=None)).finetuned == {}


def test_results_survive_json() -> None:
    import json

    made = [
        regularise(alpha=0.2, **FIRST, ridges=[0.05, 0.2]),
        recalibrate(alpha=0.3, **FIRST, ridge=0.3, alpha_finetune=3.0, points=2, samples=SMALL),
        thresholds(tokens=2, noise=0.7, points=2, lowest=3.0, samples=SMALL),
        curve(BOTH, "ridge", [0.03]),
        mismatch(BOTH, ridges=[0.03], data=["fresh"]),
        split_budget(BOTH, budget=0.3, dim=100, shares=[0.8]),
        select_active(BOTH, fractions=[0.5], choices=["smallest"]),
        point(BOTH),
    ]
    kinds = [Regularisation, Recalibration, Thresholds, Curve, Mismatch, Budget, Selection, Point]
    for result, kind in zip(made, kinds, strict=True):
        text = json.dumps(result.to_dict(), allow_nan=False)
        assert kind.from_dict(json.loads(text)) == result
        with pytest.raises(DataError):
            kind.from_dict({**result.to_dict(), "schema_version": 99})


def test_flags_count_rows() -> None:
    rows = [{"warnings": ["jump 0.31 is above"]}, {"warnings": ["jump 0.41 is above", "odd"]}, {"warnings": []}]
    words = flags(rows)
    assert words[0] == "2 of 3 points: jump is above"
    assert words[1] == "1 of 3 points: odd"
    assert flags(rows[1:2])[1] == "odd"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: curve(BOTH, "beta", [1.0]), "unknown over 'beta'"),
        (lambda: curve(BOTH, "ridge", []), "values is empty"),
        (lambda: curve(BOTH.but(alpha_finetune=None), "fraction", [0.1]), "alpha_finetune"),
        (lambda: curve(BOTH, "alpha", [-1.0]), "alpha -1.0"),
        (lambda: split_budget(BOTH, budget=0.3, dim=100, shares=[1.0]), "share 1.0"),
        (lambda: split_budget(BOTH, budget=-1.0, dim=100), "budget -1.0"),
        (lambda: split_budget(BOTH, budget=0.3, dim=1), "dim 1"),
        (lambda: split_budget(BOTH, budget=0.3, dim=100, aim="loss"), "unknown aim 'loss'"),
        (lambda: select_active(BOTH, choices=["oldest"]), "unknown choice 'oldest'"),
        (lambda: thresholds(tokens=2, noise=0.7, targets=[1.2]), "target 1.2"),
        (lambda: thresholds(tokens=2, noise=0.0), "noise 0.0"),
        (lambda: best_pretraining(alpha=0.3, **FIRST, penalty="l1"), "unknown penalty 'l1'"),
        (lambda: recalibrate(alpha=0.3, **FIRST, ridge=0.0, alpha_finetune=3.0), "ridge 0.0"),
    ],
)
def test_wrong_values_are_named(call, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()
