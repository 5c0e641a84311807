from __future__ import annotations

import math

import pytest
import torch

from lorascope.core.errors import InputError
from lorascope.simulation import _lbfgs, finetune, pretrain, simulate_finetune, simulate_pipeline, simulate_pretrain
from lorascope.simulation import _model as model

CPU = torch.device("cpu")


def draw(*, batch: int = 2, count: int = 30, tokens: int = 3, dim: int = 7, kappa0: float = 0.5) -> model.Sequences:
    seeds = list(range(batch))
    x = model.normal(model.generators(seeds, "x"), (count, tokens, dim), CPU, torch.float64)
    s0 = model.target_matrix(model.generators(seeds, "s"), dim, kappa0, CPU, torch.float64)
    clean = model.logits(x, s0)
    noise = model.symmetric_noise(model.generators(seeds, "n"), count, tokens, 0.25, CPU, torch.float64)
    return model.Sequences(x, clean + noise, clean)


def test_logits_are_the_formula_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data = draw()
    s = model.target_matrix(model.generators([5, 6], "s"), 7, 1.0, CPU, torch.float64)
    found = model.logits(data.x, s)
    expected = torch.einsum("bnai,bij,bncj->bnac", data.x, s, data.x)
    expected = expected - torch.einsum("bii->b", s)[:, None, None, None] * torch.eye(3, dtype=torch.float64)
    assert torch.allclose(found, expected / math.sqrt(7))
    monkeypatch.setattr(model, "CHUNK_NUMBERS", 100)
    assert torch.allclose(model.logits(data.x, s), found)
    factor = torch.linalg.cholesky(s + 1e-9 * torch.eye(7, dtype=torch.float64))
    assert torch.allclose(model.factor_logits(data.x, factor), found, atol=1e-7)


def test_adjoint_is_the_transpose_of_logits() -> None:
    data = draw()
    s = model.target_matrix(model.generators([5, 6], "s"), 7, 1.0, CPU, torch.float64)
    r = torch.randn(data.y.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left = (model.logits(data.x, s) * r).sum((1, 2, 3))
    right = (model.adjoint(data.x, r) * s).sum((1, 2))
    assert torch.allclose(left, right)


@pytest.mark.parametrize("activation", model.ACTIVATIONS)
def test_slope_is_the_derivative_of_the_loss(activation: str) -> None:
    data = draw()
    z = (0.5 * data.clean).requires_grad_()
    loss, slope = model.loss_and_slope(z, data.y, activation)
    (expected,) = torch.autograd.grad(loss.sum(), z)
    assert torch.allclose(slope, expected)


def test_moments_of_the_targets_logits() -> None:
    data = draw(batch=1, count=4000, tokens=2, dim=60, kappa0=1.0)
    s0 = model.target_matrix(model.generators([0], "s"), 60, 1.0, CPU, torch.float64)
    q0 = float(s0.square().sum() / 60)
    assert q0 == pytest.approx(2.0, rel=0.1)
    assert float(data.clean[0, :, 0, 1].var()) == pytest.approx(q0, rel=0.1)
    assert float(data.clean[0, :, 0, 0].var()) == pytest.approx(2 * q0, rel=0.1)


@pytest.mark.parametrize("activation", model.ACTIVATIONS)
def test_nuclear_solution_satisfies_its_optimality_conditions(activation: str) -> None:
    data = draw(count=60)
    ridge, dim = 0.05, 7
    found = pretrain.solve_nuclear(data, ridge, activation=activation, tolerance=1e-9, most=5000)
    assert found.converged
    assert torch.allclose(found.z, model.logits(data.x, found.s), atol=1e-8)
    slope = model.loss_and_slope(found.z, data.y, activation)[1]
    gradient = model.adjoint(data.x, slope) + dim * ridge * torch.eye(dim, dtype=torch.float64)
    # S >= 0, gradient >= 0, and they do not meet.
    assert float(torch.linalg.eigvalsh(gradient).min()) > -1e-4
    assert torch.allclose(gradient @ found.s, torch.zeros_like(gradient), atol=1e-3)


def test_ridge_solves_the_normal_equations() -> None:
    data = draw(count=40)
    found = pretrain.solve_ridge(data, 0.3)
    slope = model.loss_and_slope(model.logits(data.x, found.s), data.y, "linear")[1]
    assert torch.allclose(model.adjoint(data.x, slope) + 7 * 0.3 * found.s, torch.zeros_like(found.s), atol=1e-5)


def test_a_seed_does_not_depend_on_its_neighbours() -> None:
    settings = {"alpha": 0.5, "tokens": 2, "kappa0": 0.5, "noise": 0.5, "ridge": 0.05, "dim": 12}
    whole = simulate_pretrain(**settings, seeds=[3, 4])
    single = simulate_pretrain(**settings, seeds=[4])
    for name, values in single.samples.items():
        assert values[0] == pytest.approx(whole.samples[name][1], rel=1e-4)


@pytest.mark.parametrize("activation", model.ACTIVATIONS)
@pytest.mark.parametrize("rank", [1, 2])
def test_gradient_of_fine_tuning(activation: str, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = draw(tokens=2)
    w0 = torch.randn(2, 7, rank, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    seen = {}

    def check(objective: _lbfgs.Objective, start: torch.Tensor, **_: object) -> _lbfgs.Minimum:
        point = start.clone().requires_grad_()
        value, gradient = objective(point)
        (seen["expected"],) = torch.autograd.grad(value.sum(), point)
        seen["found"] = gradient
        return _lbfgs.Minimum(start, value.detach(), torch.ones(len(start), dtype=torch.bool), 0)

    monkeypatch.setattr(finetune, "minimise", check)
    given = finetune.FinetuneData(data.x, data.clean, data.y + finetune.update_logits(data.x, w0))
    finetune.fine_tune(
        given,
        0.3,
        rank=rank,
        start="best",
        informed=w0,
        sources=model.generators([0, 1], "w"),
        starts=3,
        activation=activation,
    )
    assert torch.allclose(seen["found"], seen["expected"])


def test_lbfgs_finds_many_minima_at_once() -> None:
    scale = torch.tensor([1.0, 30.0, 1000.0], dtype=torch.float64)
    centre = torch.arange(12, dtype=torch.float64).view(4, 3)

    def objective(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gap = w - centre
        return (scale * gap**2 + gap**4).sum(1), 2 * scale * gap + 4 * gap**3

    found = _lbfgs.minimise(objective, torch.zeros(4, 3, dtype=torch.float64), tolerance=1e-9)
    assert bool(found.converged.all()) and found.iterations < 60
    assert torch.allclose(found.point, centre, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: simulate_pretrain(alpha=0, tokens=2, kappa0=1, noise=1, ridge=1), "alpha 0"),
        (lambda: simulate_pretrain(alpha=1, tokens=0, kappa0=1, noise=1, ridge=1), "tokens 0"),
        (lambda: simulate_pretrain(alpha=1, tokens=2, kappa0=0, noise=1, ridge=1), "kappa0 0"),
        (lambda: simulate_pretrain(alpha=1, tokens=2, kappa0=1, noise=float("nan"), ridge=1), "noise nan"),
        (lambda: simulate_pretrain(alpha=1, tokens=2, kappa0=1, noise=1, ridge=1, penalty="l1"), "penalty 'l1'"),
        (lambda: simulate_pretrain(alpha=1, tokens=2, kappa0=1, noise=1, ridge=0, penalty="frobenius"), "ridge 0"),
        (lambda: simulate_pretrain(alpha=1, tokens=2, kappa0=1, noise=1, ridge=1, seeds=0), "seeds 0"),
        (lambda: simulate_pretrain(alpha=1, tokens=2, kappa0=1, noise=1, ridge=1, device="cuda:9"), "cuda:9"),
        (lambda: simulate_finetune(alpha=1, tokens=2, ridge=1, noise=1, start="warm"), "start 'warm'"),
        (lambda: simulate_finetune(alpha=1, tokens=2, ridge=1, noise=1, rank=0), "rank 0"),
        (
            lambda: simulate_pipeline(
                alpha=0.01,
                tokens=2,
                kappa0=1,
                noise=1,
                ridge=1,
                alpha_finetune=9,
                ridge_finetune=1,
                data="reused",
                dim=20,
            ),
            "reused",
        ),
    ],
)
def test_wrong_values_are_named(call, named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        call()
    assert "\n" not in str(caught.value)
