from __future__ import annotations

import pytest
import torch

from lorascope.core.errors import InputError
from lorascope.simulation import Adam, simulate_finetune, simulate_pipeline, simulate_pretrain
from lorascope.simulation._overlaps import matrix_error, overlaps, update_error
from lorascope.simulation.adam import factor_pair_logits
from lorascope.simulation.finetune import update_logits

FINETUNE = {"alpha": 4.0, "tokens": 2, "ridge": 0.5, "noise": 0.4, "dim": 30, "seeds": 3}


@pytest.mark.parametrize("start", ["informed", "random"])
def test_tied_factors_under_adam_reach_the_minimiser(start: str) -> None:
    exact = simulate_finetune(**FINETUNE)
    found = simulate_finetune(**FINETUNE, start=start, optimiser=Adam(factors="tied", steps=400))
    for quantity in ("alignment", "q", "train_loss", "test_error"):
        assert found.samples[quantity] == pytest.approx(exact.samples[quantity], abs=1e-3)
    assert found.settings["optimiser"] == "adam" and found.settings["factors"] == "tied"


def test_untied_factors_find_a_lower_loss_and_a_worse_update() -> None:
    settings = {**FINETUNE, "dim": 60, "noise": 0.7}
    tied = simulate_finetune(**settings)
    lora = simulate_finetune(**settings, start="random", optimiser=Adam(steps=400))
    assert lora.mean("train_loss") < tied.mean("train_loss")
    assert lora.mean("alignment") < tied.mean("alignment")


def test_factors_with_weight_decay_are_the_nuclear_penalty_and_minibatches_come_close() -> None:
    settings = {"alpha": 0.4, "tokens": 2, "kappa0": 0.5, "noise": 0.5, "ridge": 0.05, "dim": 20, "seeds": 2}
    exact = simulate_pretrain(**settings)
    for batch, tolerance in ((None, 2e-3), (40, 0.05)):
        found = simulate_pretrain(**settings, optimiser=Adam(steps=400, batch=batch))
        for quantity in ("Q", "M", "delta_eff", "delta_reuse"):
            assert found.samples[quantity] == pytest.approx(exact.samples[quantity], rel=tolerance), quantity


def test_seeds_do_not_depend_on_their_company_and_the_pipeline_takes_adam() -> None:
    settings = {"alpha": 0.4, "tokens": 2, "kappa0": 0.5, "noise": 0.5, "ridge": 0.05, "dim": 16, "start": "random"}
    more = {"alpha_finetune": 3.0, "ridge_finetune": 0.5, "optimiser": Adam(steps=60, batch=8)}
    (both,) = simulate_pipeline(**settings, **more, seeds=[0, 1])
    (alone,) = simulate_pipeline(**settings, **more, seeds=[1])
    for quantity, values in both.samples.items():
        assert values[1] == pytest.approx(alone.samples[quantity][0], rel=1e-6, abs=1e-9), quantity
    (solved,) = simulate_pipeline(**settings, **more, solve_first=True, seeds=[1])
    assert solved.samples["Q"] != alone.samples["Q"]
    (soft,) = simulate_pipeline(**{**settings, **more, "ridge_finetune": 0.05}, activation="softmax", seeds=[1])
    assert 0 < soft.mean("test_error") < 1


def test_pairs_of_factors_agree_with_tied_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    w, w0, x = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 9, 3), (2, 9, 3), (2, 5, 4, 9))
    )
    torch.testing.assert_close(factor_pair_logits(x, w, w), update_logits(x, w))
    for name, value in overlaps(w, w0).items():
        torch.testing.assert_close(overlaps(w, w0, w)[name], value)
    torch.testing.assert_close(update_error(w, w0, 4, w), update_error(w, w0, 4))


def test_error_of_an_asymmetric_matrix_is_that_of_its_logits() -> None:
    generator = torch.Generator().manual_seed(1)
    b, a, w0 = (torch.randn(1, 6, 1, generator=generator, dtype=torch.float64) for _ in range(3))
    x = torch.randn(1, 200_000, 3, 6, generator=generator, dtype=torch.float64)
    seen = (factor_pair_logits(x, b, a) - update_logits(x, w0)).square().sum((-2, -1)) / 9
    expected = matrix_error((b @ a.mT - w0 @ w0.mT) / 6**0.5, 3)
    assert float(seen.mean()) == pytest.approx(float(expected), rel=0.02)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"factors": "both"}, "unknown factors 'both'"),
        ({"rate": 0.0}, "rate 0.0 must be"),
        ({"steps": 0}, "steps 0"),
        ({"batch": 0}, "batch 0"),
    ],
)
def test_wrong_settings_are_named(values: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Adam(**values)


def test_adam_has_no_ridge_and_no_best_of_starts() -> None:
    settings = {"alpha": 0.4, "tokens": 2, "kappa0": 0.5, "noise": 0.5, "ridge": 0.1, "dim": 16}
    with pytest.raises(InputError, match="penalty 'nuclear'"):
        simulate_pretrain(**settings, penalty="frobenius", optimiser=Adam())
    with pytest.raises(InputError, match="unknown start 'best'"):
        simulate_finetune(**FINETUNE, start="best", optimiser=Adam())
