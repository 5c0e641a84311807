from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.theory.spectrum import Spectrum, edges, stieltjes

RANKS = [0.05, 0.5, 0.9, 1.0, 1.3, 4.0]
VARIANCES = [1e-8, 1e-4, 0.02, 0.3, 20.0]


@pytest.mark.parametrize("kappa0", RANKS)
@pytest.mark.parametrize("variance", VARIANCES)
def test_moments_of_the_law(kappa0: float, variance: float) -> None:
    x, mass, h = Spectrum.of(kappa0, variance).quadrature()
    assert mass.sum() == pytest.approx(1, abs=1e-4)
    assert (x * mass).sum() == pytest.approx(math.sqrt(kappa0), rel=1e-4)
    assert (x * x * mass).sum() == pytest.approx(1 + kappa0 + variance, rel=1e-4)
    assert 2 * (x * h * mass).sum() == pytest.approx(1, abs=1e-4)


def test_law_is_that_of_a_large_matrix() -> None:
    d, kappa0, variance = 600, 0.5, 0.2
    rng = np.random.default_rng(0)
    width = round(kappa0 * d)
    w, g = rng.normal(size=(d, width)), rng.normal(size=(d, d))
    found = np.linalg.eigvalsh(w @ w.T / math.sqrt(width * d) + math.sqrt(variance / (2 * d)) * (g + g.T))
    law = Spectrum.of(kappa0, variance)
    for eps in (-0.5, 0.3, 1.0):
        f = np.maximum(found - eps, 0)
        m = law.moments(eps)
        assert (f * f).mean() == pytest.approx(m.j, rel=0.03)
        assert (found * f).mean() == pytest.approx(m.xf, rel=0.03)
        assert f.mean() == pytest.approx(m.f, rel=0.03)
        assert (f > 0).mean() == pytest.approx(m.mass, abs=0.01)
    assert found[-1] == pytest.approx(law.top, rel=0.05)


@settings(deadline=None, max_examples=25)
@given(st.floats(0.05, 4.0), st.floats(1e-3, 3.0), st.floats(-0.5, 1.5))
def test_d_is_the_derivative_of_j(kappa0: float, variance: float, eps: float) -> None:
    step = 1e-4 * variance
    high, low = (Spectrum.of(kappa0, variance + sign * step).moments(eps).j for sign in (1, -1))
    assert Spectrum.of(kappa0, variance).moments(eps).d == pytest.approx((high - low) / (2 * step), abs=2e-5)


@settings(deadline=None, max_examples=50)
@given(st.floats(0.02, 5.0), st.floats(1e-6, 10.0), st.floats(0.0, 1.0))
def test_the_root_solves_the_cubic(kappa0: float, variance: float, place: float) -> None:
    support = edges(kappa0, variance)
    x = np.array([lo + (hi - lo) * (0.01 + 0.98 * place) for lo, hi in support])
    k = math.sqrt(kappa0)
    g = stieltjes(x, kappa0, variance)
    terms = np.stack([variance / k * g**3, -(x / k + variance) * g**2, (x + 1 / k - k) * g, -np.ones_like(g)])
    assert np.all(np.abs(terms.sum(0)) <= 1e-7 * np.abs(terms).sum(0))
    assert np.all(g.imag >= 0)


def test_the_small_bulk_of_a_low_rank_target_is_resolved() -> None:
    """With kappa0 < 1 and little noise a share 1 - kappa0 of the eigenvalues lies in a narrow semicircle at 0."""
    law = Spectrum.of(0.3, 1e-6)
    assert len(law.support) == 2
    assert law.moments(0.05).mass == pytest.approx(0.3, abs=1e-6)
    (low, high), _ = law.support
    # The semicircle of a share 0.7 has radius 2 delta sqrt(0.7).
    assert high - low == pytest.approx(4 * 1e-3 * math.sqrt(0.7), rel=0.01)
