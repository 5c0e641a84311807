"""Ranks, matrix entropy and CKA: closed forms, direct references, invariances, degenerate inputs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.core import InputError
from lorascope.information import (
    effective_rank,
    linear_cka,
    linear_cka_from_moments,
    low_rank_singular_values,
    matrix_entropy,
    stable_rank,
)

SEEDS = st.integers(0, 100_000)
MANY = settings(max_examples=50, deadline=None)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_ranks_closed_form(scale: float) -> None:
    s = scale * torch.tensor([3.0, 1.0, 0.0])
    assert effective_rank(s) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)), rel=1e-6)
    assert stable_rank(s) == pytest.approx(10 / 9, rel=1e-6)
    assert effective_rank(scale * torch.ones(5)) == pytest.approx(5, rel=1e-12)
    assert stable_rank(scale * torch.ones(5)) == pytest.approx(5, rel=1e-12)


def test_ranks_of_nothing_and_refusals() -> None:
    for zero in (torch.zeros(4), torch.zeros(0)):
        assert effective_rank(zero) == stable_rank(zero) == 0.0
    for bad in ([math.nan, 1.0], [-1.0, 1.0], [math.inf]):
        with pytest.raises(InputError, match="singular values"):
            effective_rank(torch.tensor(bad))


@given(SEEDS, st.integers(1, 8), st.integers(1, 12), st.integers(1, 12), st.floats(-4, 4))
@MANY
def test_low_rank_spectrum_is_that_of_the_product(seed: int, r: int, d_in: int, d_out: int, scaling: float) -> None:
    a, b = normal(seed, r, d_in), normal(seed + 1, d_out, r)
    values = low_rank_singular_values(a, b, scaling)
    expected = torch.linalg.svdvals(scaling * b @ a)[:r]
    assert values.shape == (r,)
    torch.testing.assert_close(values[: len(expected)], expected, rtol=1e-9, atol=1e-12)
    assert bool((values[min(d_in, d_out) :].abs() <= 1e-9).all())


def test_low_rank_spectrum_of_an_untrained_adapter_and_of_nan() -> None:
    a, b = normal(0, 4, 9), torch.zeros(7, 4)
    assert stable_rank(low_rank_singular_values(a, b, 2.0)) == 0.0
    with pytest.raises(InputError, match="learning rate"):
        low_rank_singular_values(a, b + math.nan, 2.0)


@given(SEEDS, st.integers(2, 12), st.integers(1, 12))
@MANY
def test_matrix_entropy_against_its_definition(seed: int, t: int, d: int) -> None:
    x = normal(seed, t, d)
    z = torch.nn.functional.normalize(x - x.mean(0), dim=1)
    values = torch.linalg.eigvalsh(z.T @ z / t).clamp(min=0)
    expected = -float(torch.xlogy(values, values).sum())
    got = float(matrix_entropy(x))
    assert got == pytest.approx(expected, abs=1e-9)
    assert -1e-12 <= got <= math.log(min(t, d)) + 1e-12
    rotation = torch.linalg.qr(normal(seed + 1, d, d)).Q
    changed = 7 * x[torch.randperm(t, generator=torch.Generator().manual_seed(seed))] @ rotation + 3
    assert float(matrix_entropy(changed)) == pytest.approx(got, abs=1e-7)


def test_matrix_entropy_of_batches_ignores_padding() -> None:
    x = normal(0, 3, 6, 4)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]]).bool()
    x[~mask] = math.nan
    got = matrix_entropy(x, mask)
    for row, (states, kept) in enumerate(zip(x, mask, strict=True)):
        assert float(got[row]) == pytest.approx(float(matrix_entropy(states[kept])), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrix_entropy_of_degenerate_sequences(dtype: torch.dtype) -> None:
    assert float(matrix_entropy(torch.full((5, 3), 1.1, dtype=dtype))) == 0.0
    assert float(matrix_entropy(torch.ones(1, 3, dtype=dtype))) == 0.0
    assert float(matrix_entropy(torch.zeros(4, 3, dtype=dtype))) == 0.0
    line = torch.arange(6, dtype=dtype)[:, None] * torch.tensor([1.0, 2.0], dtype=dtype)
    assert float(matrix_entropy(line)) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(InputError, match="NaN"):
        matrix_entropy(torch.full((2, 2), math.nan, dtype=dtype))


@given(SEEDS, st.integers(2, 30))
@MANY
def test_cka_both_routes_and_invariances(seed: int, n: int) -> None:
    x, y = normal(seed, n, 6), normal(seed + 1, n, 9)
    a, b = x - x.mean(0), y - y.mean(0)
    gram = float((a @ a.T * (b @ b.T)).sum())
    expected = gram / math.sqrt(float((a @ a.T).square().sum() * (b @ b.T).square().sum()))
    assert linear_cka(x, y) == pytest.approx(expected, rel=1e-9)
    assert linear_cka_from_moments(a.T @ a, b.T @ b, a.T @ b) == pytest.approx(expected, rel=1e-9)
    rotation = torch.linalg.qr(normal(seed + 2, 6, 6)).Q
    assert linear_cka(5 * x @ rotation + 1, y) == pytest.approx(expected, rel=1e-9)
    assert linear_cka(x, -2 * x @ rotation) == pytest.approx(1.0, rel=1e-9)


def test_cka_limits() -> None:
    x = normal(0, 5, 3)
    assert linear_cka(x, torch.ones(5, 2, dtype=torch.float64)) == 0.0
    assert linear_cka(x, torch.ones(5, 9, dtype=torch.float64)) == 0.0
    for bad, width in ((torch.full((5, 2), math.nan), 3), (torch.full((5, 9), math.nan), 3)):
        with pytest.raises(InputError, match="NaN"):
            linear_cka(normal(0, 5, width), bad)
    with pytest.raises(InputError, match="no samples"):
        linear_cka(torch.ones(0, 2), torch.ones(0, 2))


def test_cka_of_different_samples_is_refused() -> None:
    with pytest.raises(InputError, match="features of 5 and of 4 samples"):
        linear_cka(torch.ones(5, 2), torch.ones(4, 2))
