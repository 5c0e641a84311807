from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lorascope.bridge.subspaces import (
    Factors,
    above_chance,
    compare_layers,
    factors_of,
    overlap,
    principal_angles,
    summarise_layers,
    update_cosine,
)
from lorascope.core.errors import AdapterError


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_angles_of_known_planes() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([[math.cos(0.3), 0.0], [0.0, 0.0], [math.sin(0.3), 0.0], [0.0, 1.0]], dtype=torch.float64)
    assert principal_angles(x, y).tolist() == pytest.approx([0.3, math.pi / 2])
    assert overlap(x, y)[0] == pytest.approx(math.cos(0.3) ** 2 / 2)


def test_overlap_does_not_depend_on_the_basis_and_agrees_with_the_angles() -> None:
    x, y = normal(0, 9, 3), normal(1, 9, 2)
    value, chance = overlap(x, y)
    assert value == pytest.approx(float(principal_angles(x, y).cos().square().mean()))
    assert chance == pytest.approx(3 / 9)
    mixed = overlap(x @ normal(2, 3, 3), 5 * y @ normal(3, 2, 2))
    assert mixed[0] == pytest.approx(value)
    assert overlap(x, x @ normal(4, 3, 3)) == (pytest.approx(1.0), pytest.approx(3 / 9))


@pytest.mark.parametrize(("d", "r", "s"), [(20, 1, 1), (20, 4, 4), (30, 5, 2)])
def test_chance_is_what_random_subspaces_give(d: int, r: int, s: int) -> None:
    values = [overlap(normal(2 * seed, d, r), normal(2 * seed + 1, d, s))[0] or 0.0 for seed in range(400)]
    chance = overlap(normal(0, d, r), normal(1, d, s))[1]
    spread = torch.tensor(values).std().item() / math.sqrt(len(values))
    assert abs(sum(values) / len(values) - chance) < 4 * spread


def test_a_zero_update_has_no_overlap() -> None:
    assert overlap(torch.zeros(5, 2, dtype=torch.float64), normal(0, 5, 2))[0] is None
    zero = Factors(normal(0, 2, 6), torch.zeros(5, 2, dtype=torch.float64))
    some = Factors(normal(1, 2, 6), normal(2, 5, 2))
    (only,) = compare_layers({"l": zero}, {"l": some})
    assert (only.column, only.row, only.update) == (None, None, None)
    with pytest.raises(AdapterError, match="no update"):
        summarise_layers([only])


def test_rank_deficient_factors_count_by_their_own_rank() -> None:
    b = normal(0, 8, 1) @ normal(1, 1, 3)  # three columns, one direction
    assert overlap(b, b) == (pytest.approx(1.0), pytest.approx(1 / 8))


def test_cosine_is_that_of_the_whole_matrices() -> None:
    x, y = Factors(normal(0, 2, 6), normal(1, 5, 2)), Factors(normal(2, 3, 6), normal(3, 5, 3))
    whole = [f.b @ f.a for f in (x, y)]
    expected = float((whole[0] * whole[1]).sum() / whole[0].norm() / whole[1].norm())
    assert update_cosine(x, y) == pytest.approx(expected)
    assert update_cosine(x, Factors(x.a, -3 * x.b)) == pytest.approx(-1.0)


def test_weights_follow_the_reference_and_other_layers_are_refused() -> None:
    reference = {"a": Factors(normal(0, 1, 4), normal(1, 4, 1)), "b": Factors(normal(2, 1, 4), 1e-3 * normal(3, 4, 1))}
    own = {"a": reference["a"], "b": Factors(normal(4, 1, 4), normal(5, 4, 1))}
    layers = compare_layers(own, reference)
    weighted, plain = summarise_layers(layers), summarise_layers(layers, weighted=False)
    assert weighted["column"] == pytest.approx(1.0, abs=1e-3)
    assert plain["column"] == pytest.approx((layers[0].column + layers[1].column) / 2)
    assert weighted["column_above"] == pytest.approx(above_chance(weighted["column"], 1 / 4), abs=1e-9)
    with pytest.raises(AdapterError, match="layer 'b'"):
        compare_layers({"a": own["a"]}, reference)


def test_factors_of_a_model_give_its_update() -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(
        nn.Sequential(nn.Linear(6, 5)), LoraConfig(r=2, lora_alpha=6, target_modules=["0"], init_lora_weights=False)
    )
    (found,) = factors_of(model).values()
    x = torch.randn(3, 6)
    with torch.no_grad():
        expected = model(x)
        with model.disable_adapter():
            expected = expected - model(x)
    torch.testing.assert_close((x.double() @ found.a.T @ found.b.T).float(), expected, atol=1e-5, rtol=1e-4)
