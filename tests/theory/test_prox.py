from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy.special import expit

from lorascope.theory import _softmax
from lorascope.theory._prox import eigh, prox, sobol_normals, symmetric
from lorascope.theory._softmax import C, bistable, finetuning_prox, logit_loss, pretraining_prox
from lorascope.theory._softmax_finetuning import truncated_logits, update_fields
from lorascope.theory.finetuning import truncate


def energy(chi: np.ndarray, omega: np.ndarray, b: np.ndarray, k4: float) -> float:
    gap = np.outer(chi, chi) - b
    return float(((chi - omega) ** 2).sum() + k4 / 2 * (gap * gap).sum())


@settings(deadline=None, max_examples=8)
@given(st.integers(1, 4), st.floats(0.02, 5.0), st.floats(0.2, 3.0), st.integers(0, 2**31))
def test_linear_prox_is_the_global_minimum(tokens: int, k4: float, size: float, seed: int) -> None:
    """Against many local descents; B is made so that k4 b_max is often far above 1."""
    rng = np.random.default_rng(seed)
    omega = rng.normal(size=(3, tokens))
    a = size * rng.normal(size=(3, tokens, tokens))
    b = a + a.transpose(0, 2, 1)
    chi, top = prox(omega, b, k4)
    for i in range(3):
        assert top[i] == pytest.approx(np.linalg.eigvalsh(b[i])[-1], abs=1e-9)
        starts = [chi[i], -chi[i], omega[i], *rng.normal(size=(5, tokens)) * (1 + math.sqrt(max(top[i], 0)))]
        found = min(
            optimize.minimize(energy, start, args=(omega[i], b[i], k4), method="BFGS", tol=1e-9).fun for start in starts
        )
        assert energy(chi[i], omega[i], b[i], k4) <= found + 1e-7 * max(1, abs(found))


def test_linear_prox_at_tiny_omega() -> None:
    """Close to the jump, where omega is nearly orthogonal to the leading direction, the root is still found."""
    b = np.diag([3.0, 1.0])[None]
    for small in (1e-3, 1e-8, 1e-14):
        chi, _ = prox(np.array([[small, 0.5]]), b, 2.0)
        assert chi[0, 0] == pytest.approx(math.sqrt(chi[0, 0] ** 2 + 1e-30), rel=1e-9) and np.isfinite(chi).all()
        assert energy(chi[0], np.array([small, 0.5]), b[0], 2.0) <= energy(-chi[0], np.array([small, 0.5]), b[0], 2.0)


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_closed_form_eigenvectors(tokens: int) -> None:
    a = np.random.default_rng(0).normal(size=(50, tokens, tokens))
    b = a + a.transpose(0, 2, 1)
    values, vectors = eigh(b)
    assert np.allclose(values, np.linalg.eigvalsh(b))
    assert np.allclose(vectors * values[:, None, :] @ vectors.transpose(0, 2, 1), b)


def grid_minimum(objective: object, centre: np.ndarray, radius: np.ndarray) -> np.ndarray:
    least = np.full(len(centre), np.inf)
    for a in np.linspace(-1, 1, 41):
        for b in np.linspace(-1, 1, 41):
            least = np.minimum(least, objective(centre + radius[:, None] * np.array([a, b])))  # type: ignore[operator]
    return least


@pytest.mark.parametrize(("v", "q"), [(0.3, 0.9), (1.5, 0.7), (5.0, 0.5)])
def test_softmax_prox_of_stage_2_is_the_global_minimum(v: float, q: float) -> None:
    z = sobol_normals(8, 256, 3)
    omega, frozen, target = math.sqrt(q) * z[:, :2], z[:, 2:4] * 1.5, expit(z[:, 4:6] * 2)

    def objective(chi: np.ndarray) -> np.ndarray:
        found: np.ndarray = logit_loss(frozen + update_fields(chi, q), target) + ((chi - omega) ** 2).sum(1) / (2 * v)
        return found

    chi, loss, slope = finetuning_prox(omega, frozen, target, v, q, [])
    # The minimum lies where the quadratic term is below the loss at omega.
    least = grid_minimum(objective, omega, np.sqrt(2 * v * objective(omega)))
    assert (objective(chi) <= least + 1e-4).mean() > 0.985
    assert np.maximum(objective(chi) - least, 0).mean() < 5e-4
    assert np.allclose(loss, logit_loss(frozen + update_fields(chi, q), target))
    step = 1e-6
    moved = logit_loss(frozen + update_fields(chi, q + step), target)
    assert np.allclose(slope, (moved - loss) / step, atol=1e-4)


@pytest.mark.parametrize("v", [0.5, 2.0])
def test_softmax_prox_of_stage_1_is_the_global_minimum(v: float) -> None:
    z = sobol_normals(4, 256, 3)
    omega, target = z[:, :2] * 1.7, expit(z[:, 2:] * 2)

    def objective(u: np.ndarray) -> np.ndarray:
        gap = u - omega
        found: np.ndarray = logit_loss(u, target) + ((gap @ np.linalg.inv(C)) * gap).sum(1) / (2 * v)
        return found

    u = pretraining_prox(omega, target, v)
    least = grid_minimum(objective, omega, np.sqrt(8 * v * objective(omega)))
    assert (objective(u) <= least + 1e-3).mean() > 0.995


def test_softmax_derivatives() -> None:
    """The Hessians that Newton's method uses, against differences of the gradients."""
    z = sobol_normals(8, 32, 1)
    objective = _softmax._finetuning_objective(z[:, :2], z[:, 2:4], expit(z[:, 4:6]), 0.7, 0.8)
    x, y, step = z[:, 6], z[:, 7], 1e-6
    _, g1, g2, a, b, c = objective(x, y, slice(None))
    v1, h1, h2, *_ = objective(x + step, y, slice(None))
    v2, k1, k2, *_ = objective(x, y + step, slice(None))
    v0 = objective(x, y, slice(None))[0]
    assert np.allclose((v1 - v0) / step, g1, atol=1e-4) and np.allclose((v2 - v0) / step, g2, atol=1e-4)
    assert np.allclose((h1 - g1) / step, a, atol=1e-4) and np.allclose((k2 - g2) / step, c, atol=1e-4)
    assert np.allclose((h2 - g2) / step, b, atol=1e-4) and np.allclose((k1 - g1) / step, b, atol=1e-4)


def test_bistable_counts_second_minima() -> None:
    z = sobol_normals(6, 128, 0)
    arguments = (0.1 * z[:, :2], z[:, 2:4], expit(3 * z[:, 4:6]))
    # A narrow quadratic leaves one minimum everywhere; a wide one leaves two mirror images at small omega.
    assert bistable(*arguments, 0.05, 0.5) == 0.0
    assert bistable(*arguments, 10.0, 0.5) > 0.4


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("fraction", [0.05, 0.4, 1.0])
def test_truncated_normals_are_the_kept_part_of_a_pool(fraction: float, largest: bool) -> None:
    pool = np.random.default_rng(0).normal(size=(200_000, 3))
    size = (pool * pool).sum(1)
    order = np.argsort(-size if largest else size)
    kept = pool[order[: round(fraction * len(pool))]]
    found = truncate(sobol_normals(3, 2**13, 0), fraction, largest)
    assert (found**2).mean() == pytest.approx((kept**2).mean(), rel=0.02)
    assert (found[:, 0] ** 2 * found[:, 1] ** 2).mean() == pytest.approx(
        (kept[:, 0] ** 2 * kept[:, 1] ** 2).mean(), rel=0.06
    )


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_truncated_logits_are_the_kept_part_of_a_pool(fraction: float, largest: bool) -> None:
    pool = np.random.default_rng(0).multivariate_normal(np.zeros(2), C, size=200_000)
    size = (pool * pool).sum(1)
    order = np.argsort(-size if largest else size)
    kept = pool[order[: round(fraction * len(pool))]]
    found = truncated_logits(sobol_normals(2, 2**13, 0), fraction, largest)
    assert np.cov(found.T) == pytest.approx(np.cov(kept.T), rel=0.02, abs=0.005 + 0.01 * np.cov(kept.T)[0, 0])


def test_symmetric_matrices_have_the_variances_of_the_model() -> None:
    z = symmetric(sobol_normals(3, 2**13, 0), 2)
    assert np.allclose(z, z.transpose(0, 2, 1))
    assert (z**2).mean(0) == pytest.approx(np.array([[2.0, 1.0], [1.0, 2.0]]), rel=0.02)
