from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from lorascope.core.errors import DataError, InputError
from lorascope.simulation import simulate_finetune
from lorascope.theory import finetune
from lorascope.theory.comparison import allowance
from lorascope.theory.extension_rank import RankFineTuning, finetune_rank, prox

POINT = {"alpha": 6.0, "tokens": 2, "ridge": 0.5, "noise": 0.7, "rank": 2, "samples": 1024}


def energy(x: np.ndarray, omega: np.ndarray, b: np.ndarray, k4: float) -> float:
    return float(((x - omega) ** 2).sum() + k4 / 2 * ((x @ x.T - b) ** 2).sum())


def symmetric(generator: np.random.Generator, tokens: int, scale: float) -> np.ndarray:
    g = generator.standard_normal((tokens, tokens))
    return scale * (g + g.T) / 2


@pytest.mark.parametrize(("tokens", "rank"), [(1, 1), (2, 2), (2, 3), (3, 3)])
def test_prox_is_the_global_minimum(tokens: int, rank: int) -> None:
    generator = np.random.default_rng(tokens + 10 * rank)
    for k4 in (0.05, 0.5, 3.0):  # the last ones make I - k4 B indefinite: several local minima
        omega = 0.7 * generator.standard_normal((tokens, rank))
        b = symmetric(generator, tokens, 2.0)
        found = energy(prox(omega[None], b[None], k4)[0][0], omega, b, k4)
        tried = [
            optimize.minimize(
                lambda x, omega=omega, b=b, k4=k4: energy(x.reshape(tokens, rank), omega, b, k4),
                2 * generator.standard_normal(tokens * rank),
            ).fun
            for _ in range(12)
        ]
        assert found == pytest.approx(min(tried), rel=1e-6, abs=1e-8)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**20), k4=st.floats(1e-3, 30.0), scale=st.floats(0.01, 20.0))
def test_prox_is_stationary_and_has_no_duality_gap(seed: int, k4: float, scale: float) -> None:
    generator = np.random.default_rng(seed)
    omega = generator.standard_normal((4, 3, 4))
    b = np.stack([symmetric(generator, 3, scale) for _ in range(4)])
    x, a = prox(omega, b, k4)
    assert np.linalg.eigvalsh(a).min() > 0
    gradient = x - omega + k4 * (x @ x.transpose(0, 2, 1) - b) @ x
    assert np.abs(gradient).max() < 1e-6 * max(1.0, k4 * scale)
    again, _ = prox(omega, b, k4, start=a)
    np.testing.assert_allclose(again, x, rtol=1e-6, atol=1e-8)


def test_prox_does_not_depend_on_the_frame() -> None:
    generator = np.random.default_rng(3)
    omega, b = generator.standard_normal((1, 2, 3)), symmetric(generator, 2, 2.0)[None]
    turn, _ = np.linalg.qr(generator.standard_normal((3, 3)))
    swap, _ = np.linalg.qr(generator.standard_normal((2, 2)))
    x, _ = prox(omega, b, 0.8)
    turned, _ = prox(swap @ omega @ turn, swap @ b @ swap.T, 0.8)
    np.testing.assert_allclose(turned, swap @ x @ turn, atol=1e-8)


def test_rank_one_and_one_token_is_the_theory_of_rank_one() -> None:
    settings = {"alpha": 8.0, "tokens": 1, "ridge": 0.5, "noise": 0.3, "samples": 2**12}
    expected = finetune(**settings)
    found = finetune_rank(**settings, rank=1)
    for quantity in ("m", "q", "v", "alignment", "train_loss", "test_error", "jump"):
        assert getattr(found, quantity) == pytest.approx(getattr(expected, quantity), rel=5e-3, abs=1e-3), quantity


def test_perfect_data_give_the_target() -> None:
    found = finetune_rank(**{**POINT, "noise": 0.0, "ridge": 1e-4, "alpha": 8.0})
    assert found.converged
    assert found.alignment == pytest.approx(1.0, abs=1e-4)
    assert found.test_error == pytest.approx(0.0, abs=1e-3)


def test_with_many_data_the_misalignment_falls_as_one_over_data() -> None:
    points = [finetune_rank(**{**POINT, "ridge": 1e-3, "alpha": alpha}) for alpha in (40.0, 80.0)]
    lost = [1 - point.alignment**2 for point in points]
    assert lost[0] / lost[1] == pytest.approx(2.0, rel=0.05)


def test_simulation_agrees() -> None:
    found = finetune_rank(**POINT)
    names = {"alpha", "tokens", "ridge", "noise", "rank"}
    point = simulate_finetune(**{key: POINT[key] for key in names}, dim=120, seeds=12)
    for quantity in ("m", "q", "alignment", "test_error", "train_loss"):
        error, theory = point.error(quantity), getattr(found, quantity)
        assert error is not None
        assert abs(point.mean(quantity) - theory) <= allowance(theory, error, point.dim), quantity


def test_outside_its_regime_a_result_says_so() -> None:
    low = finetune_rank(**{**POINT, "alpha": 1.0, "ridge": 0.1, "samples": 128, "most": 20})
    assert low.jump > 0.2
    assert any("replica symmetry" in line for line in low.warnings)
    assert not low.valid
    collapsed = finetune_rank(**{**POINT, "ridge": 200.0})
    assert any("collapsed" in line for line in collapsed.warnings)
    assert all(math.isfinite(value) for value in (collapsed.m, collapsed.q, collapsed.test_error, low.test_error))


def test_round_trip() -> None:
    found = finetune_rank(**POINT)
    assert RankFineTuning.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    with pytest.raises(DataError, match="schema_version"):
        RankFineTuning.from_dict({**found.to_dict(), "schema_version": 9})


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"rank": 1}, "rank 1 is below tokens 2"),
        ({"alpha": 0.0}, "alpha 0.0"),
        ({"ridge": math.nan}, "ridge nan"),
        ({"noise": -1.0}, "noise -1.0"),
        ({"tokens": 0}, "tokens 0"),
        ({"rank": 40}, "over 64"),
        ({"samples": 1000}, "power of two"),
    ],
)
def test_bad_values_are_named(change: dict[str, float], line: str) -> None:
    with pytest.raises(InputError, match=line):
        finetune_rank(**{**POINT, **change})
