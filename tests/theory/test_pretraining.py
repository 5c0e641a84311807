from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from lorascope.core.errors import DataError, InputError
from lorascope.theory import Pretrained, bayes_floor, pretrain

SMALL = {"tokens": 2, "kappa0": 0.5, "noise": 0.5}


def test_the_point_of_the_brief() -> None:
    found = pretrain(alpha=0.1, tokens=3, kappa0=1.0, noise=0.5, ridge=0.1)
    assert found.valid and found.converged
    assert pytest.approx(1.268, abs=5e-4) == found.Q
    assert pytest.approx(1.411, abs=5e-4) == found.M
    assert found.k == pytest.approx(1.885, abs=5e-4)
    assert found.delta_eff == pytest.approx(0.6955, abs=5e-5)
    assert found.delta_reuse == pytest.approx(0.1957, abs=5e-5)
    assert found.error == pytest.approx(4 / 3 * (found.delta_eff - 0.25))


@pytest.mark.parametrize(
    ("alpha", "ridge", "noise", "floor"),
    [(0.1, 0.076, 0.765, 0.676), (0.2, 0.104, 0.467, 0.452), (0.3, 0.123, 0.381, 0.376), (0.6, 0.158, 0.3095, 0.308)],
)
def test_best_nuclear_ridge(alpha: float, ridge: float, noise: float, floor: float) -> None:
    best = optimize.minimize_scalar(
        lambda value: pretrain(alpha=alpha, ridge=float(value), **SMALL).delta_eff, bounds=(0.02, 0.4), method="bounded"
    )
    assert best.x == pytest.approx(ridge, abs=1e-3)
    assert best.fun == pytest.approx(noise, abs=6e-4)
    bound = bayes_floor(alpha=alpha, **SMALL)
    assert bound == pytest.approx(floor, abs=6e-4)
    assert bound < best.fun


@settings(deadline=None, max_examples=40)
@given(st.floats(0.05, 3.0), st.integers(1, 5), st.floats(0.1, 3.0), st.floats(0.05, 2.0))
def test_best_frobenius_ridge(alpha: float, tokens: int, kappa0: float, noise: float) -> None:
    """lF* = Delta / (T^2 Q0) at every alpha, and there M = Q."""
    best = noise / (tokens**2 * (1 + kappa0))
    given = {"alpha": alpha, "tokens": tokens, "kappa0": kappa0, "noise": noise, "penalty": "frobenius"}
    found = pretrain(ridge=best, **given)
    assert pytest.approx(found.Q, rel=1e-9) == found.M
    assert found.beta == pytest.approx(1)
    for factor in (0.8, 1.25):
        assert pretrain(ridge=factor * best, **given).delta_eff > found.delta_eff


@settings(deadline=None, max_examples=10)
@given(st.floats(0.05, 2.0), st.integers(1, 4), st.floats(0.1, 2.0), st.floats(0.0, 1.0), st.floats(0.003, 0.3))
def test_nuclear_solutions_are_consistent(alpha: float, tokens: int, kappa0: float, noise: float, ridge: float) -> None:
    given = {"alpha": alpha, "tokens": tokens, "kappa0": kappa0, "noise": noise}
    found = pretrain(ridge=ridge, **given)
    assert found.converged
    assert all(math.isfinite(value) for value in found.to_dict().values() if isinstance(value, float))
    assert found.M**2 <= found.Q * found.Q0 * (1 + 1e-9)
    assert found.k >= 1 and found.delta_reuse <= found.delta_eff + 1e-12
    assert found.delta_recalibrated <= found.delta_eff + 1e-9
    assert found.delta_eff >= bayes_floor(**given) - 1e-6


@settings(deadline=None, max_examples=5)
@given(st.floats(0.1, 1.0), st.integers(2, 3), st.floats(0.3, 1.5), st.floats(0.1, 1.0), st.floats(0.02, 0.2))
def test_the_trace_is_the_derivative_of_the_minimum(
    alpha: float, tokens: int, kappa0: float, noise: float, ridge: float
) -> None:
    """Training loss over d^2: alpha (T+1)/T Dreuse + lambda Tr S / d; its derivative by lambda is Tr S / d there."""

    def loss(value: float) -> float:
        found = pretrain(alpha=alpha, tokens=tokens, kappa0=kappa0, noise=noise, ridge=value)
        return alpha * (tokens + 1) / tokens * found.delta_reuse + value * found.trace

    step = 1e-3 * ridge
    slope = (loss(ridge + step) - loss(ridge - step)) / (2 * step)
    found = pretrain(alpha=alpha, tokens=tokens, kappa0=kappa0, noise=noise, ridge=ridge)
    assert found.trace == pytest.approx(slope, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("penalty", ["nuclear", "frobenius"])
def test_limits(penalty: str) -> None:
    plenty = pretrain(alpha=1e4, ridge=0.1, penalty=penalty, **SMALL)
    assert pytest.approx(1.5, rel=1e-3) == plenty.Q and pytest.approx(1.5, rel=1e-3) == plenty.M
    assert plenty.delta_eff == pytest.approx(0.25, rel=1e-3) and plenty.k == pytest.approx(1, rel=1e-3)
    heavy = pretrain(alpha=0.2, ridge=1e4, penalty=penalty, **SMALL)
    assert pytest.approx(0, abs=1e-6) == heavy.Q and heavy.delta_eff == pytest.approx(1.75, abs=1e-3)
    assert heavy.k == pytest.approx(1, abs=1e-3)
    assert any("collapsed" in word for word in heavy.warnings) and not heavy.valid


def test_without_noise_enough_data_recover_the_target() -> None:
    found = pretrain(alpha=2.0, tokens=2, kappa0=0.5, noise=0.0, ridge=1e-4)
    assert found.converged and found.delta_eff < 1e-6
    assert bayes_floor(alpha=2.0, tokens=2, kappa0=0.5, noise=0.0) < 1e-6
    # Below the threshold the floor stays up.
    assert bayes_floor(alpha=0.1, tokens=2, kappa0=0.5, noise=0.0) > 0.05


def test_more_data_leave_less_noise() -> None:
    found = [pretrain(alpha=alpha, ridge=0.1, **SMALL).delta_eff for alpha in (0.1, 0.2, 0.4, 0.8)]
    assert all(before > after for before, after in pairwise(found))


def test_a_vanishing_penalty_is_flagged_where_it_interpolates() -> None:
    found = pretrain(alpha=0.1, ridge=0, **SMALL)
    assert math.isfinite(found.k) and any("interpolated" in word for word in found.warnings)
    assert pretrain(alpha=1.0, ridge=0, **SMALL).valid


def test_kappa_scales_the_penalty() -> None:
    assert pretrain(alpha=0.3, ridge=0.05, kappa=4.0, **SMALL).Q == pretrain(alpha=0.3, ridge=0.1, **SMALL).Q


def test_softmax_of_the_brief() -> None:
    found = pretrain(alpha=0.5, ridge=0.03, activation="softmax", **SMALL)
    assert found.valid and found.converged
    assert pytest.approx(1.0446, abs=0.003) == found.Q
    assert pytest.approx(1.176, abs=0.003) == found.M
    near = pretrain(alpha=0.5, ridge=0.03, activation="softmax", start=found, **SMALL)
    assert near.iterations <= 2 and pytest.approx(found.Q, abs=1e-4) == near.Q
    # Collapse is said, not hidden.
    heavy = pretrain(alpha=0.5, ridge=5.0, activation="softmax", samples=256, **SMALL)
    assert heavy.Q == 0 and heavy.collapsed and heavy.warnings


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"tokens": 0}, "tokens"),
        ({"tokens": 17}, "tokens"),
        ({"kappa0": -1.0}, "kappa0"),
        ({"noise": -0.1}, "noise"),
        ({"noise": float("inf")}, "noise"),
        ({"ridge": -1.0}, "ridge"),
        ({"penalty": "l2"}, "penalty"),
        ({"activation": "relu"}, "activation"),
        ({"activation": "softmax", "tokens": 3}, "tokens"),
        ({"activation": "softmax", "penalty": "frobenius"}, "frobenius"),
        ({"penalty": "frobenius", "ridge": 0.0}, "ridge"),
        ({"kappa": 0.5}, "kappa"),
        ({"samples": 1000}, "samples"),
    ],
)
def test_nonsense_is_refused_by_name(change: dict, word: str) -> None:
    with pytest.raises(InputError, match=word):
        pretrain(**{"alpha": 0.3, "ridge": 0.1, **SMALL, **change})


def test_results_survive_json() -> None:
    import json

    found = pretrain(alpha=0.3, ridge=0.1, **SMALL)
    assert Pretrained.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    for change in ({"kind": "other"}, {"schema_version": 9}, {"extra": 1}):
        with pytest.raises(DataError):
            Pretrained.from_dict({**found.to_dict(), **change})
