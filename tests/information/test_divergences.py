"""Entropy, divergences and kappa: exact references, limits, peaked and degenerate distributions."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from lorascope.core import InputError
from lorascope.information import entropy, jensen_shannon, kappa, kl_divergence
from lorascope.information.divergences import js_generator, kl_generator
from tests.information.reference import exact_js, exact_kappa

LN2 = math.log(2)
SEEDS = st.integers(0, 2**32 - 1)
MANY = settings(max_examples=100, deadline=None)


@pytest.mark.parametrize(
    "r",
    [
        *(1e-300, 1e-9, 0.01, 0.5, 0.89, 0.9, 0.91, 0.999999, 1 - 1e-15, 1.0000001, 1.09, 1.0999999999, 1.1),
        *(1.1000001, 1.2, 1.21, 2.0, 10.0, 1e4, 0.99e8, 1e8, 1.01e8, 1e15, 1e100, 1e308),
    ],
)
def test_kappa_against_sixty_digits(r: float) -> None:
    assert kappa(r) == pytest.approx(float(exact_kappa(Decimal(r))), rel=3e-14)


def test_kappa_limits_and_kinds() -> None:
    assert kappa(0.0) == pytest.approx(2 / LN2, rel=1e-15)
    assert kappa(1.0) == 4.0
    assert kappa(math.inf) == math.inf
    array = kappa(np.array([0.0, 1.0, np.inf], dtype=np.float32))
    assert isinstance(array, np.ndarray) and array.dtype == np.float64 and array[1] == 4.0
    tensor = kappa(torch.tensor([[0.0, 1.0]]))
    assert isinstance(tensor, torch.Tensor) and tensor.shape == (1, 2) and tensor[0, 1] == 4.0
    for bad in (-1e-9, math.nan):
        with pytest.raises(InputError, match="kappa"):
            kappa(bad)


def test_kappa_increases() -> None:
    r = np.concatenate([np.linspace(0, 3, 4001), np.logspace(0.5, 300, 2000)])
    assert (np.diff(kappa(r)) >= -1e-14 * kappa(r)[:-1]).all()


@given(st.floats(-1, 1e12, allow_nan=False))
@MANY
def test_generators_are_not_negative(u: float) -> None:
    x = torch.tensor(u, dtype=torch.float64)
    assert float(kl_generator(x)) >= 0 and float(js_generator(x)) >= 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@given(seed=SEEDS)
@MANY
def test_jensen_shannon_is_a_bounded_symmetric_number(dtype: torch.dtype, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    scale = 10 ** float(torch.rand(1, generator=g) * 6 - 2)
    logits = (torch.randn(2, 3, 11, generator=g) * scale).clamp(-6e4, 6e4)
    log_p, log_q = torch.log_softmax(logits, -1).to(dtype)
    js = jensen_shannon(log_p, log_q)
    assert js.shape == (3,) and bool(((js >= 0) & (js <= LN2)).all())
    assert torch.equal(js, jensen_shannon(log_q, log_p))
    assert float(jensen_shannon(log_p, log_p).amax()) == 0.0
    order = torch.randperm(11, generator=g)
    torch.testing.assert_close(jensen_shannon(log_p[:, order], log_q[:, order]), js, rtol=1e-12, atol=1e-15)


@given(SEEDS)
@MANY
def test_jensen_shannon_against_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.full(9, rng.uniform(0.05, 3)), size=2)
    got = jensen_shannon(torch.log(torch.tensor(p)), torch.log(torch.tensor(q)))
    assert float(got) == pytest.approx(jensenshannon(p, q) ** 2, abs=1e-14)


@pytest.mark.parametrize("shift", [1.0, 1e-3, 1e-6, 1e-9, 1e-12])
def test_jensen_shannon_of_close_distributions_keeps_its_digits(shift: float) -> None:
    g = torch.Generator().manual_seed(3)
    a, b = torch.randn(2, 40, generator=g, dtype=torch.float64)
    log_p, log_q = torch.log_softmax(a, -1), torch.log_softmax(a + shift * b, -1)
    expected = exact_js(log_p.exp().tolist(), log_q.exp().tolist())
    # exp() above rounds the probabilities to 1e-16, a share 1e-16 / shift of the difference
    assert float(jensen_shannon(log_p, log_q)) == pytest.approx(expected, rel=1e-13 + 1e-15 / shift)


def test_jensen_shannon_of_degenerate_distributions() -> None:
    inf = torch.inf
    one, other = torch.tensor([0.0, -inf, -inf]), torch.tensor([-inf, 0.0, -inf])
    assert float(jensen_shannon(one, other)) == pytest.approx(LN2, abs=0)
    assert float(jensen_shannon(one, one)) == 0.0
    half = torch.log(torch.tensor([0.5, 0.5, 0.0]))
    assert float(jensen_shannon(one, half)) == pytest.approx(exact_js([1, 0, 0], [0.5, 0.5, 0]), rel=1e-6)
    peaked = torch.log_softmax(torch.tensor([[1e4, 0.0], [0.0, 1e4]]), -1)
    assert float(jensen_shannon(peaked[0], peaked[1])) == pytest.approx(LN2, rel=1e-15)


@pytest.mark.parametrize("row", [[math.nan, 0.0], [math.inf, 0.0], [-math.inf, -math.inf], []])
def test_jensen_shannon_refuses_what_is_no_distribution(row: list[float]) -> None:
    x = torch.tensor(row)
    with pytest.raises(InputError, match="log_p"):
        jensen_shannon(x, x)


@given(SEEDS)
@MANY
def test_entropy_and_kl_against_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.full(6, rng.uniform(0.05, 3)), size=2)
    q = np.maximum(q, 1e-300)
    scale = 10.0 ** rng.uniform(-100, 100)
    assert float(entropy(torch.tensor(p * scale))) == pytest.approx(scipy.stats.entropy(p), abs=1e-13)
    expected = scipy.special.rel_entr(p / p.sum(), q / q.sum()).sum()
    assert float(kl_divergence(torch.tensor(p), torch.tensor(q * scale))) == pytest.approx(
        expected, rel=1e-11, abs=1e-14
    )


def test_entropy_and_kl_limits() -> None:
    uniform, point = torch.ones(8, dtype=torch.int64).float(), torch.eye(8)[0]
    assert float(entropy(uniform)) == pytest.approx(math.log(8), rel=1e-15)
    assert float(entropy(point)) == 0.0
    assert float(kl_divergence(point, uniform)) == pytest.approx(math.log(8), rel=1e-15)
    assert float(kl_divergence(uniform, point)) == math.inf
    assert float(kl_divergence(point, point)) == 0.0
    tiny = torch.tensor([1e-320, 1.0], dtype=torch.float64)
    assert math.isfinite(float(kl_divergence(torch.ones(2), tiny)))
    for bad in ([0.0, 0.0], [-1.0, 2.0], [math.nan, 1.0], [math.inf, 1.0]):
        with pytest.raises(InputError):
            entropy(torch.tensor(bad))


@pytest.mark.parametrize("measure", [jensen_shannon, kl_divergence])
@pytest.mark.parametrize(
    "shapes", [((3, 4), (4,)), ((3, 4), (1, 4)), ((3, 4), (3, 5)), ((4,), (4, 1)), ((2, 4), (3, 4))]
)
def test_shapes_that_differ_are_named(measure: Callable, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    a, b = (torch.ones(shape) for shape in shapes)
    with pytest.raises(InputError) as error:
        measure(a, b)
    assert str(shapes[0]) in str(error.value) and str(shapes[1]) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("measure", [jensen_shannon, kl_divergence])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.tensor(1.0), "single number"),
        (torch.ones(3, dtype=torch.complex64), "complex"),
        (torch.ones(3, device="meta"), "meta"),
        (torch.tensor([1.0, math.nan]), "NaN"),
    ],
)
def test_what_is_no_row_of_real_numbers_is_refused(measure: Callable, bad: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure(bad, bad)


def test_types_and_layouts_of_distributions() -> None:
    weights = torch.tensor([[1, 0, 3], [2, 2, 0]])
    expected = kl_divergence(weights.double(), weights.flip(0).double() + 1)
    assert torch.equal(kl_divergence(weights, weights.flip(0) + 1), expected)
    assert torch.equal(entropy(weights.bool()), entropy(weights.bool().double()))
    assert torch.equal(entropy(weights.double().to_sparse()), entropy(weights))
    assert float(jensen_shannon(torch.tensor([0, -1]), torch.tensor([0, -1]))) == 0.0
    learned = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    jensen_shannon(torch.log_softmax(learned, -1), torch.log_softmax(learned.detach().flip(0), -1)).sum().backward()
    assert learned.grad is not None and bool(torch.isfinite(learned.grad).all()) and bool(learned.grad.abs().sum() > 0)
