from __future__ import annotations

import numpy as np
import pytest

from lorascope.bridge.noise import effective_noise, logit_distance, relative_distance, residual
from lorascope.core.errors import DataError, InputError


def questions(strength: float, noise: float = 0.0, *, count: int = 300, seed: int = 0) -> list[dict[str, object]]:
    """Four choices; the right one's log-likelihood is higher by `strength`, up to noise and a level of each question."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        answer = int(generator.integers(4))
        values = noise * generator.standard_normal(4) + 10 * generator.standard_normal()
        values[answer] += strength
        found.append({"answer": answer, "log_likelihoods": values.tolist()})
    return found


def test_residual_of_known_models() -> None:
    assert residual({"answer": 2, "log_likelihoods": [-1.0] * 4}) == pytest.approx((0.75**2 + 3 * 0.25**2) / 4)
    assert residual({"answer": 0, "log_likelihoods": [0.0, -900.0, -900.0]}) == pytest.approx(0.0)
    assert residual({"answer": 1, "log_likelihoods": [0.0, -900.0]}) == pytest.approx(1.0)


def test_a_level_shared_by_all_choices_does_not_count() -> None:
    row, moved = ({"answer": 0, "log_likelihoods": [x, x - 1.0, x + 2.0]} for x in (0.0, -40.0))
    assert logit_distance(row, moved) == pytest.approx(0.0, abs=1e-20)
    assert residual(row) == pytest.approx(residual(moved))


def test_noise_is_what_is_left_over_what_was_explained() -> None:
    found = effective_noise(questions(0.0), questions(2.0))
    assert found.frozen == pytest.approx(found.uniform) == pytest.approx(0.1875)
    p = np.exp(2.0) / (np.exp(2.0) + 3)
    left = ((1 - p) ** 2 + 3 * ((1 - p) / 3) ** 2) / 4
    assert found.reference == pytest.approx(left)
    assert found.noise == pytest.approx(left / (0.1875 - left))
    assert found.shift == pytest.approx((1.5**2 + 3 * 0.5**2) / 4)


def test_without_a_gain_there_is_no_estimate() -> None:
    rows = questions(1.0, 1.0)
    assert effective_noise(rows, rows).noise is None
    assert effective_noise(questions(2.0), questions(0.0)).noise is None


def test_relative_distance_is_one_for_the_frozen_model_and_zero_for_the_largest_run() -> None:
    frozen, largest, half = questions(0.0), questions(2.0), questions(1.0)
    assert relative_distance(frozen, frozen, largest) == pytest.approx(1.0)
    assert relative_distance(largest, frozen, largest) == pytest.approx(0.0)
    assert relative_distance(half, frozen, largest) == pytest.approx(0.25)
    with pytest.raises(DataError, match="train it for more steps"):
        relative_distance(half, frozen, frozen)


def test_other_questions_are_refused() -> None:
    with pytest.raises(DataError, match="different questions"):
        effective_noise(questions(0.0), questions(0.0, seed=1))
    with pytest.raises(DataError, match="different questions"):
        effective_noise(questions(0.0), questions(0.0, count=20))
    with pytest.raises(InputError, match="at least two"):
        effective_noise(questions(0.0, count=1), questions(1.0, count=1))
