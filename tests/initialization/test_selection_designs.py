from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.core.errors import InputError
from lorascope.initialization.selection_designs import (
    at_random,
    greedy_d_optimal,
    largest,
    log_det_information,
    relative_ridge,
)


def features(seed: int, rows: int = 8, vectors: int = 1, size: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, vectors, size))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), vectors=st.integers(1, 3), ridge=st.sampled_from([1e-3, 1.0, 30.0]))
def test_each_step_takes_the_row_that_adds_most_by_the_definition(seed: int, vectors: int, ridge: float) -> None:
    block = features(seed, vectors=vectors)
    found = greedy_d_optimal(block, 5, ridge=ridge)
    chosen: list[int] = []
    for row, gain in zip(found.order.tolist(), found.gains.tolist(), strict=True):
        before = log_det_information(block, chosen, ridge=ridge)
        added = {i: log_det_information(block, [*chosen, i], ridge=ridge) - before for i in range(8) if i not in chosen}
        assert gain == pytest.approx(added[row], rel=1e-8, abs=1e-9)
        assert added[row] >= max(added.values()) - 1e-9
        chosen.append(row)
    assert found.first_gains[0] == pytest.approx(log_det_information(block, [0], ridge=ridge), rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), vectors=st.integers(1, 2))
def test_greedy_is_within_its_guarantee_of_the_best_of_all_designs(seed: int, vectors: int) -> None:
    block = features(seed, rows=9, vectors=vectors)
    for count in (2, 3):
        best = max(log_det_information(block, list(s)) for s in itertools.combinations(range(9), count))
        value = greedy_d_optimal(block, count).gains.sum()
        assert (1 - 1 / math.e) * best <= value <= best + 1e-9
        assert value >= 0.9 * best  # far better than guaranteed on such pools


def test_orthogonal_rows_make_greedy_exact() -> None:
    block = np.diag([5.0, 4.0, 3.0, 2.0])[:, None, :]
    assert greedy_d_optimal(block, 3).order.tolist() == [0, 1, 2]
    best = max(itertools.combinations(range(4), 3), key=lambda s: log_det_information(block, list(s)))
    assert best == (0, 1, 2)


def test_a_copy_of_a_chosen_row_is_left_for_something_new() -> None:
    block = np.array([[[3.0, 0.0]], [[3.0, 0.0]], [[0.0, 1.0]]])
    assert greedy_d_optimal(block, 3, ridge=0.1).order.tolist() == [0, 2, 1]
    assert largest(np.square(block).sum((1, 2)), 2).tolist() == [0, 1]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-6, 1e6))
def test_designs_do_not_change_with_order_scale_or_rotation(seed: int, scale: float) -> None:
    block = features(seed, rows=10, vectors=2, size=5)
    found = greedy_d_optimal(block, 4)
    rng = np.random.default_rng(seed + 1)
    order = rng.permutation(10)
    assert order[greedy_d_optimal(block[order], 4).order].tolist() == found.order.tolist()
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    for other in (block * scale, block @ rotation, block[:, ::-1]):
        again = greedy_d_optimal(other, 4)
        assert again.order.tolist() == found.order.tolist()
        np.testing.assert_allclose(again.gains, found.gains, rtol=1e-6)


def test_gains_fall_and_a_smaller_budget_is_the_beginning_of_a_larger() -> None:
    block = features(3, rows=40, vectors=2, size=9)
    whole = greedy_d_optimal(block, 40)
    assert sorted(whole.order.tolist()) == list(range(40))
    assert (np.diff(whole.gains) <= 1e-9).all()
    assert greedy_d_optimal(block, 7).order.tolist() == whole.order[:7].tolist()
    assert whole.gains.sum() == pytest.approx(log_det_information(block, list(range(40))), rel=1e-9)


def test_filling_with_zero_vectors_changes_nothing() -> None:
    block = features(5, rows=7, vectors=2)
    wide = np.concatenate([block, np.zeros((7, 3, 4))], axis=1)
    assert greedy_d_optimal(wide, 4).order.tolist() == greedy_d_optimal(block, 4).order.tolist()


def test_rows_without_any_gradient_are_taken_in_their_order() -> None:
    found = greedy_d_optimal(np.zeros((4, 1, 3)), 2)
    assert found.order.tolist() == [0, 1]
    assert found.gains.tolist() == [0.0, 0.0]


def test_largest_and_random() -> None:
    assert largest(np.array([1.0, np.inf, 2.0, 2.0]), 3).tolist() == [1, 2, 3]
    assert sorted(at_random(20, 20, 1).tolist()) == list(range(20))
    assert at_random(20, 5, 1).tolist() == at_random(20, 5, 1).tolist() == at_random(20, 9, 1)[:5].tolist()
    assert at_random(20, 9, 1).tolist() != at_random(20, 9, 2).tolist()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: greedy_d_optimal(features(0), 9), "budget 9 does not fit a pool of 8"),
        (lambda: greedy_d_optimal(features(0), 0), "budget 0"),
        (lambda: greedy_d_optimal(features(0), True), "budget True"),
        (lambda: greedy_d_optimal(np.full((2, 1, 2), np.nan), 1), "row 0 hold NaN"),
        (lambda: greedy_d_optimal(np.zeros((0, 1, 2)), 1), "at least one row"),
        (lambda: greedy_d_optimal(features(0), 2, ridge=0.0), "ridge 0.0 must be a number above 0"),
        (lambda: relative_ridge(features(0), math.nan), "ridge nan"),
        (lambda: largest(np.array([1.0, np.nan]), 1), "row 1 is NaN"),
    ],
)
def test_bad_input_is_named(call: object, words: str) -> None:
    assert callable(call)
    with pytest.raises(InputError, match=words):
        call()
