from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.core.errors import InputError
from lorascope.initialization import spectrum
from lorascope.initialization.budget import directions_for, effective_directions, water_fill
from lorascope.initialization.spectrum import power, quadratic_forms, spectrum_of_matrix, spectrum_of_sketch

values_of_layers = st.lists(
    st.lists(st.floats(0.01, 10), min_size=1, max_size=3).map(lambda v: sorted(v, reverse=True)), min_size=1, max_size=3
)


@settings(max_examples=60, deadline=None)
@given(values=values_of_layers, cost=st.integers(1, 7), spare=st.integers(0, 6))
def test_equal_costs_make_water_filling_the_best_of_all(values: list[list[float]], cost: int, spare: int) -> None:
    named = {str(i): v for i, v in enumerate(values)}
    budget = spare * cost
    found = water_fill(named, dict.fromkeys(named, cost), budget, minimum=0)
    assert sum(found.values()) * cost <= budget
    held = sum(sum(named[name][:rank]) for name, rank in found.items())
    choices = itertools.product(*(range(len(v) + 1) for v in values))
    best = max(
        sum(sum(v[:r]) for v, r in zip(values, ranks, strict=True)) for ranks in choices if sum(ranks) * cost <= budget
    )
    assert held == pytest.approx(best)


@settings(max_examples=60, deadline=None)
@given(values=values_of_layers, costs=st.lists(st.integers(1, 9), min_size=3, max_size=3), budget=st.integers(0, 40))
def test_one_level_separates_what_is_taken(values: list[list[float]], costs: list[int], budget: int) -> None:
    """Whatever was left out is worth no more per parameter than what was taken, unless it did not fit."""
    named = {str(i): v for i, v in enumerate(values)}
    prices = dict(zip(named, costs, strict=False))
    found = water_fill(named, prices, budget, minimum=0)
    left = budget - sum(rank * prices[name] for name, rank in found.items())
    assert left >= 0
    for name, rank in found.items():
        if rank < len(named[name]) and prices[name] <= left:
            pytest.fail("a direction that still fits was left out")


def test_bounds_and_refusals() -> None:
    values, costs = {"a": [9.0, 8.0, 7.0], "b": [1.0]}, {"a": 10, "b": 10}
    assert water_fill(values, costs, 100) == {"a": 3, "b": 1}
    assert water_fill(values, costs, 100, maximum=2) == {"a": 2, "b": 1}
    assert water_fill(values, costs, 20) == {"a": 1, "b": 1}
    with pytest.raises(InputError, match="a budget of 15 parameters is below the 20 of rank 1 in all 2 layers"):
        water_fill(values, costs, 15)


def test_how_many_directions() -> None:
    assert effective_directions([1.0] * 8, 8.0, 8) == pytest.approx(8.0)
    assert effective_directions([1.0], 1.0, 100) == pytest.approx(1.0)
    assert effective_directions([1.0] * 4, 8.0, 8) == pytest.approx(8.0), "the unknown half is spread evenly"
    assert directions_for([5.0, 4.0], 10.0, 0.9) == 2
    assert directions_for([5.0], 10.0, 0.9) is None


def decaying(size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3 * size, size, generator=generator) * torch.arange(1, size + 1).pow(-1.0)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator)).Q
    return (x @ basis).T @ (x @ basis)


@pytest.mark.parametrize("leading", [True, False])
def test_leading_directions_are_those_of_the_whole_decomposition(
    leading: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where few are wanted, and where the matrix is too wide for all: both go without the whole decomposition."""
    monkeypatch.setattr(spectrum, "FULL_EIGEN_WIDTH", 256)
    monkeypatch.setattr(spectrum, "KEPT", 20)
    matrix = decaying(300)
    found = spectrum_of_matrix(matrix, 8, trace=float(matrix.trace()), leading=leading)
    assert found.vectors.shape == (300, 8 if leading else 20)
    values, vectors = (part.flip(-1) for part in torch.linalg.eigh(matrix.double()))
    assert np.allclose(found.values[:8].numpy(), values[:8].numpy(), rtol=1e-4)
    assert float((found.vectors[:, :8].double().T @ vectors[:, :8]).square().sum()) > 8 - 1e-3
    left = float(matrix.trace() - found.values.sum()) / (300 - len(found.values))
    assert found.tail == pytest.approx(left, rel=1e-2)


def test_a_sketch_finds_the_leading_part_and_the_rest_is_one_level() -> None:
    matrix = decaying(200)
    probe = torch.linalg.qr(torch.randn(200, 40, generator=torch.Generator().manual_seed(1))).Q
    found = spectrum_of_sketch(matrix @ probe, probe, trace=float(matrix.trace()))
    whole = spectrum_of_matrix(matrix, 200, trace=float(matrix.trace()))
    assert float((found.vectors[:, :4].T @ whole.vectors[:, :4]).square().sum()) > 3.8
    assert np.allclose(found.values[:4].numpy(), whole.values[:4].numpy(), rtol=0.1)
    assert spectrum_of_sketch(torch.zeros(20, 4), probe[:20, :4], trace=0.0).values.tolist() == [0.0] * 4


def test_powers_and_forms() -> None:
    matrix = decaying(60)
    whole = spectrum_of_matrix(matrix, 60, trace=float(matrix.trace()))
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(2))
    damped = matrix.double() + 0.01 * matrix.double().trace() / 60 * torch.eye(60)
    twice = power(whole, 0.5, power(whole, 0.5, x))
    assert torch.allclose(twice.double(), damped @ x.double(), rtol=1e-3, atol=1e-3)
    back = power(whole, -0.5, power(whole, 0.5, x))
    assert torch.allclose(back, x, atol=1e-3)
    wanted = (x.double() * (matrix.double() @ x.double())).sum(0)
    assert torch.allclose(quadratic_forms(whole, x).double(), wanted, rtol=1e-3)
