from __future__ import annotations

import subprocess
import sys

import pytest

from lorascope.core.errors import InputError
from lorascope.simulation import simulate_finetune, simulate_pipeline
from lorascope.theory import finetune_after, finite_size, predict, pretrain
from lorascope.theory.comparison import allowance
from lorascope.theory.points import SimulationPoint


def inside(point: SimulationPoint, predicted: dict[str, float], quantity: str) -> bool:
    """Three standard errors and the finite-size allowance, 3.4 / d of the value."""
    error = point.error(quantity)
    assert error is not None
    return abs(point.mean(quantity) - predicted[quantity]) <= allowance(predicted[quantity], error, point.dim)


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_fine_tuning_against_simulation(tokens: int) -> None:
    point = simulate_finetune(alpha=5.0, tokens=tokens, ridge=0.3, noise=0.4, base_error=0.1, dim=200, seeds=6)
    found = predict(point, samples=2**11)
    assert not found.warnings
    assert set(found.values) == {"m", "q", "alignment", "train_loss", "test_error"}
    for quantity in found.values:
        assert inside(point, found.values, quantity), (quantity, point.mean(quantity), found.values[quantity])


@pytest.mark.parametrize("penalty", ["nuclear", "frobenius"])
def test_both_stages_against_simulation(penalty: str) -> None:
    points = simulate_pipeline(
        alpha=0.4,
        tokens=2,
        kappa0=0.5,
        noise=0.3,
        ridge=0.08,
        alpha_finetune=3.0,
        ridge_finetune=0.4,
        penalty=penalty,
        data=["fresh", "recalibrated", "active"],
        dim=60,
        seeds=6,
    )
    for point in points:
        found = predict(point, samples=2**11)
        assert not found.warnings
        for quantity in ("Q", "M", "delta_eff", "delta_reuse", "m", "q", "alignment", "test_error_overlaps"):
            assert inside(point, found.values, quantity), (quantity, point.mean(quantity), found.values[quantity])


def test_softmax_against_simulation() -> None:
    (point,) = simulate_pipeline(
        alpha=0.5,
        tokens=2,
        kappa0=0.5,
        noise=0.2,
        ridge=0.03,
        alpha_finetune=4.0,
        ridge_finetune=0.05,
        activation="softmax",
        data="reused",
        dim=40,
        seeds=6,
        test_sequences=1000,
    )
    found = predict(point, samples=2**10)
    for quantity in ("Q", "M", "m", "q", "alignment", "train_loss", "test_error"):
        assert inside(point, found.values, quantity), (quantity, point.mean(quantity), found.values[quantity])
    # 4 d of .5 d^2 sequences are a fifth at this d: more than the theory describes.
    assert any("reused" in word for word in found.warnings)


def test_finite_size_term() -> None:
    first = pretrain(alpha=0.3, tokens=2, kappa0=0.5, noise=0.5, ridge=0.2)
    second = finetune_after(first, alpha=3.0, ridge=0.5, samples=2**9)
    term = finite_size(first, second, 100)
    # A heavy penalty shrinks both S and the update, so that their shortfalls add to the error.
    assert first.trace < first.kappa0**0.5 and second.q < 1 and term > 0
    assert finite_size(first, second, 400) == pytest.approx(term / 2)
    with pytest.raises(InputError, match="dim"):
        finite_size(first, second, 0)


def test_other_ranks_are_refused() -> None:
    point = SimulationPoint(stage="finetune", settings={"rank": 2}, dim=40, samples={"m": [1.0]})
    with pytest.raises(InputError, match="rank"):
        predict(point)


NONSENSE = """
import numpy as np
from lorascope.core.errors import InputError
from lorascope.theory import bayes_floor, finetune, finetune_after, finite_size, pretrain, weak_recovery

first = dict(alpha=0.3, tokens=2, kappa0=0.5, noise=0.5, ridge=0.1)
second = dict(alpha=3.0, tokens=2, ridge=0.5, noise=0.5, samples=64)
found = pretrain(**first)
floor = {name: first[name] for name in ("alpha", "tokens", "kappa0", "noise")}
values = ["a", None, float("nan"), float("inf"), True, [0.3], np.array([0.3, 0.4]), np.ones((2, 2)), 1 + 1j, {}]
calls = [
    (pretrain, first, ["alpha", "tokens", "kappa0", "noise", "ridge", "kappa", "tolerance", "samples"]),
    (pretrain, first, ["penalty", "activation"]),
    (finetune, second, ["alpha", "tokens", "ridge", "noise", "base_error", "tolerance", "seed"]),
    (lambda **k: finetune_after(found, **k), dict(alpha=3.0, ridge=0.5), ["alpha", "ridge", "fraction", "data"]),
    (lambda **k: finetune_after(found, **k), dict(alpha=3.0, ridge=0.5, data="reused"), ["seed", "tolerance"]),
    (bayes_floor, floor, list(floor)),
    (weak_recovery, dict(tokens=2, noise=0.5), ["tokens", "noise"]),
    (finetune_after, dict(alpha=3.0, ridge=0.5), ["pretrained"]),
]
count = 0
for call, given, names in calls:
    for name in names:
        for value in values:
            try:
                call(**{**given, name: value})
            except InputError as error:
                assert name in str(error) and "\\n" not in str(error) and len(str(error)) < 160, (name, value, error)
                count += 1
            else:
                raise AssertionError(f"{name}={value!r} went through")
assert pretrain(**{**first, "alpha": np.float32(0.3), "tokens": np.int64(2)}).converged
print(count)
"""


def test_what_is_no_number_is_refused_in_one_line() -> None:
    """In a process of its own: the types of arguments are checked at run time in tests, and are not for users."""
    found = subprocess.run([sys.executable, "-c", NONSENSE], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-1000:]
    assert int(found.stdout) == 10 * 30
