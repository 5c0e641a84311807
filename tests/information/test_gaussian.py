"""Gaussian information: closed forms, data processing, shrinkage, and the bound for other distributions."""

from __future__ import annotations

import math

import infomeasure
import pytest
import sklearn.covariance
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.core import InputError
from lorascope.information import (
    MomentAccumulator,
    gaussian_channel_information,
    gaussian_information_upper,
    gaussian_mutual_information,
    oas_shrinkage,
    samplers,
    shrink_covariance,
    shrink_joint_covariance,
)

SEEDS = st.integers(0, 100_000)
MANY = settings(max_examples=50, deadline=None)


def random_covariance(seed: int, d: int, rank: int | None = None) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(d, rank or d + 2, generator=g, dtype=torch.float64)
    return x @ x.T


@pytest.mark.parametrize("noise", [1e-6, 1.0, 1e6])
def test_channel_closed_form(noise: float) -> None:
    variances = torch.tensor([1.0, 4.0, 0.0], dtype=torch.float64)
    expected = 0.5 * sum(math.log1p(v / noise) for v in variances.tolist())
    q = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    for cov in (torch.diag(variances), q @ torch.diag(variances) @ q.T):
        assert gaussian_channel_information(cov, noise) == pytest.approx(expected, rel=1e-9)
    assert gaussian_channel_information(torch.zeros(2, 2), noise) == 0.0


@given(SEEDS, st.floats(-3, 3))
@MANY
def test_mutual_information_is_the_channel_when_l_is_o(seed: int, exponent: float) -> None:
    cov, noise = random_covariance(seed, 5, rank=3), 10**exponent  # rank 3: singular
    assert gaussian_mutual_information(cov, cov, cov, noise) == pytest.approx(
        gaussian_channel_information(cov, noise), rel=1e-8
    )


@given(SEEDS)
@MANY
def test_mutual_information_is_that_of_the_determinants(seed: int) -> None:
    joint, d = random_covariance(seed, 7), 4
    oo, ll, ol = joint[:d, :d], joint[d:, d:], joint[:d, d:]
    noisy = joint.clone()
    noisy[d:, d:] += 0.7 * torch.eye(3, dtype=torch.float64)
    expected = 0.5 * float(torch.logdet(oo) + torch.logdet(noisy[d:, d:]) - torch.logdet(noisy))
    assert gaussian_mutual_information(oo, ll, ol, 0.7) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    # invariances: an invertible map of O, a rotation of L, a common scale
    m = random_covariance(seed + 1, d) + torch.eye(d)
    r = torch.linalg.qr(random_covariance(seed + 2, 3)).Q
    assert gaussian_mutual_information(m @ oo @ m.T, r.T @ ll @ r, m @ ol @ r, 0.7) == pytest.approx(expected, rel=1e-6)
    assert gaussian_mutual_information(9 * oo, 9 * ll, 9 * ol, 6.3) == pytest.approx(expected, rel=1e-9)
    # order: zero <= I <= channel <= bound of the trace
    channel = gaussian_channel_information(ll, 0.7)
    assert 0 <= expected <= channel <= gaussian_information_upper(float(ll.trace()), 3, 0.7) * (1 + 1e-12)


def test_correlated_gaussians_have_the_stated_information() -> None:
    """Also against an independent nearest-neighbour estimator, which knows nothing of Gaussians."""
    generator = torch.Generator().manual_seed(0)
    x, y, mi = samplers.correlated_gaussians(4000, [0.9, 0.3], generator)
    cov = torch.cov(torch.cat([x, y], 1).T, correction=0)
    estimate = gaussian_mutual_information(cov[:2, :2], cov[2:, 2:], cov[:2, 2:], 1e-12)
    assert mi == pytest.approx(-0.5 * (math.log(1 - 0.81) + math.log(1 - 0.09)), rel=1e-14)
    assert estimate == pytest.approx(mi, abs=0.03)
    ksg = infomeasure.mutual_information(x[:1500].numpy(), y[:1500].numpy(), approach="ksg")
    assert float(ksg) == pytest.approx(mi, abs=0.08)


def test_bound_holds_for_a_distribution_that_is_not_gaussian() -> None:
    """A fair sign through noise: its information (by quadrature) is below the bound, and below ln 2."""
    for noise in (0.05, 0.5, 5.0):
        y = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
        density = sum(0.5 * torch.exp(-((y - s) ** 2) / (2 * noise)) / math.sqrt(2 * math.pi * noise) for s in (-1, 1))
        entropy = -torch.trapezoid(torch.xlogy(density, density), y)
        information = float(entropy) - 0.5 * math.log(2 * math.pi * math.e * noise)
        assert 0 < information < min(gaussian_information_upper(1.0, 1, noise), math.log(2) + 1e-9)


@given(SEEDS, st.integers(2, 40))
@MANY
def test_shrinkage_is_that_of_scikit_learn(seed: int, n: int) -> None:
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected, intensity = sklearn.covariance.oas(x.numpy())
    cov = torch.cov(x.T, correction=0)
    assert oas_shrinkage(cov, n) == pytest.approx(intensity, rel=1e-9)
    torch.testing.assert_close(shrink_covariance(cov, n), torch.from_numpy(expected), rtol=1e-9, atol=1e-12)


@given(SEEDS)
@MANY
def test_joint_shrinkage_keeps_order_and_equality(seed: int) -> None:
    joint, d = random_covariance(seed, 8, rank=3), 4
    oo, ll, ol, s = shrink_joint_covariance(joint[:d, :d], joint[d:, d:], joint[:d, d:], 3)
    blocks = torch.cat([torch.cat([oo, ol], 1), torch.cat([ol.T, ll], 1)])
    assert float(torch.linalg.eigvalsh(blocks)[0]) >= -1e-9 * float(joint.trace()) and 0 < s <= 1
    assert float(ll.trace()) == pytest.approx(float(joint[d:, d:].trace()), rel=1e-12)
    oo, ll, ol, _ = shrink_joint_covariance(joint[:d, :d], joint[:d, :d], joint[:d, :d], 3)
    assert torch.equal(oo, ll) and torch.equal(oo, ol)


def test_moments_of_an_untrained_adapter() -> None:
    o = torch.randn(50, 12, generator=torch.Generator().manual_seed(0)) + 5
    moments = MomentAccumulator(12)
    moments.update(o, o)
    assert moments.cka() == pytest.approx(1.0, abs=1e-12)
    shrunk = shrink_covariance(moments.compute().cov_oo, 50)
    mi, upper = moments.gaussian(noise=0.5)
    assert mi == pytest.approx(gaussian_channel_information(shrunk, 0.5 * float(shrunk.trace()) / 12), rel=1e-9)
    assert mi <= upper == pytest.approx(6 * math.log(3), rel=1e-9)


@given(SEEDS, st.floats(0.01, 100))
@settings(max_examples=25, deadline=None)
def test_moments_do_not_see_scale_and_shift(seed: int, scale: float) -> None:
    g = torch.Generator().manual_seed(seed)
    o, noise = torch.randn(2, 40, 6, generator=g, dtype=torch.float64)
    one, two = MomentAccumulator(6), MomentAccumulator(6)
    one.update(o, o + noise)
    two.update(scale * o + 1, scale * (o + noise) - 2)
    assert one.gaussian() == pytest.approx(two.gaussian(), rel=1e-7)
    assert one.cka() == pytest.approx(two.cka(), rel=1e-7)


def test_moments_match_a_direct_covariance_and_projection_loses_information() -> None:
    g = torch.Generator().manual_seed(2)
    o = torch.randn(500, 20, generator=g) * torch.linspace(0.1, 3, 20) + 100
    l = o + torch.randn(500, 20, generator=g)  # noqa: E741
    full, part = MomentAccumulator(20), MomentAccumulator(20, project=8, seed=1)
    for accumulator in (full, part):
        accumulator.update(o, l)
    moments = full.compute()
    expected = torch.cov(torch.cat([o, l], 1).double().T, correction=0)
    torch.testing.assert_close(moments.cov_ol, expected[:20, 20:], rtol=0, atol=1e-9)
    torch.testing.assert_close(moments.cov_ll, expected[20:, 20:], rtol=0, atol=1e-9)
    small = part.compute()
    noise = 2.0
    assert gaussian_mutual_information(small.cov_oo, small.cov_ll, small.cov_ol, noise) < gaussian_mutual_information(
        moments.cov_oo, moments.cov_ll, moments.cov_ol, noise
    )
    assert part.projected and not full.projected and small.cov_oo.shape == (8, 8)


def test_refusals() -> None:
    one = torch.eye(2)
    for noise in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="noise variance"):
            gaussian_channel_information(one, noise)
    with pytest.raises(InputError, match="NaN"):
        gaussian_mutual_information(one, one * math.nan, one, 1.0)
    with pytest.raises(InputError, match="trace"):
        gaussian_information_upper(-1.0, 2, 1.0)
    with pytest.raises(InputError, match="n = 0"):
        oas_shrinkage(one, 0)
    with pytest.raises(InputError, match="correlations"):
        samplers.correlated_gaussians(3, [1.0], torch.Generator())
    constant = MomentAccumulator(2)
    constant.update(torch.ones(3, 2), torch.ones(3, 2))
    with pytest.raises(InputError, match="must vary"):
        constant.gaussian()
    with pytest.raises(InputError, match="NaN"):
        bad = MomentAccumulator(2)
        bad.update(torch.full((3, 2), math.nan), torch.ones(3, 2))
        bad.compute()
