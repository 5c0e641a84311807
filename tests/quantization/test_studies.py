"""Studies against closed forms, simulation and what must hold for numbers with known properties."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lorascope.core.errors import DataError, InputError
from lorascope.quantization import IcqLinear, code_entropy_bits, quantize_icq
from lorascope.quantization.resources import PeakMemory, resources, weights_mib
from lorascope.quantization.starts import median_start, shape_of, start_entropies
from lorascope.quantization.studies import (
    NOISE,
    QuantizationStudy,
    ceiling,
    half_gains,
    sample_blocks,
    sensitivity,
    uniform_entropy_bits,
)


def normal(blocks, size=64, seed=0):
    return torch.randn(blocks, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("levels", "size"), [(16, 64), (8, 64), (4, 64), (16, 7), (2, 2)])
def test_entropy_of_an_ideal_code_is_what_simulation_gives(levels, size):
    draws = torch.randint(0, levels, (40_000, size), generator=torch.Generator().manual_seed(0))
    found = code_entropy_bits(draws, levels)
    error = float(found.std()) / math.sqrt(len(found))
    assert uniform_entropy_bits(levels, size) == pytest.approx(float(found.mean()), abs=4 * error + 1e-9)


def test_entropy_of_an_ideal_code_of_two_draws():
    assert uniform_entropy_bits(4, 2) == pytest.approx(0.75)  # 1 bit unless the two are alike
    assert uniform_entropy_bits(16, 200_000) == pytest.approx(4, abs=1e-4)


def test_sensitivity_is_what_quantising_gives():
    blocks = {"a": normal(40), "b": normal(24, seed=1) ** 3}
    rows = sensitivity(blocks, ns=(1, 100), lams=(0.05, 0.1))
    assert [(row["n"], row["lam"]) for row in rows] == [(1, 0.05), (100, 0.05), (1, 0.1), (100, 0.1)]
    paper = rows[-1]
    assert paper["gain_kept"] == pytest.approx(1)
    done = {name: quantize_icq(part) for name, part in blocks.items()}
    entropy = sum(float(q.block_entropy_bits.sum()) for q in done.values()) / 64
    assert paper["entropy_bits"] == pytest.approx(entropy)
    assert all(row["gain_bits"] > 0 and row["seconds_per_million"] > 0 for row in rows)
    assert rows[0]["gain_bits"] < paper["gain_bits"]


def test_the_gain_on_noise_does_not_carry_over_to_the_other_half():
    half, other = half_gains(normal(512), bits=4, n=20, lam=0.1, seed=0)
    assert half > 0.08 and abs(other) < 0.25 * half
    # Where weights lean to one side, a shift that finds it helps the other half too.
    skewed = half_gains(normal(512).exp(), bits=4, n=20, lam=0.5, seed=0)
    assert skewed[1] > 0.25 * skewed[0]


def test_ceiling_holds_noise_beside_the_model():
    rows = ceiling({"m": {"a": normal(64), "b": normal(32, seed=1)}}, bits=(2, 4), n=10)
    assert [(row["model"], row["bits"]) for row in rows] == [("m", 2), (NOISE, 2), ("m", 4), (NOISE, 4)]
    for row in rows:
        assert row["plain_bits"] < row["icq_bits"] < row["levels_bits"]
        assert row["ideal_bits"] < row["levels_bits"]
        # The entropy of few codes is below that of the codes of all blocks together.
        assert row["icq_bits"] < row["pooled_icq_bits"] <= row["levels_bits"]


def test_shape_of_normal_and_of_other_numbers():
    plain = shape_of(normal(4096))
    assert 0.03 < plain["not_normal"] < 0.08
    assert abs(plain["skewness"]) < 0.02 and abs(plain["excess_kurtosis"]) < 0.05
    assert plain["beyond_4_sigma"] == pytest.approx(6.3e-5, abs=5e-5)
    tailed = shape_of(torch.from_numpy(np.random.default_rng(0).standard_t(5, (1024, 64))))
    assert tailed["excess_kurtosis"] > 1 and tailed["not_normal"] > 0.2 and tailed["beyond_4_sigma"] > 1e-3
    leaning = shape_of(normal(1024).exp())
    assert leaning["skewness"] > 2 and leaning["off_centre"] > 2 * plain["off_centre"]
    assert shape_of(torch.zeros(3, 64)) == {
        "off_centre": 0.0,
        "skewness": 0.0,
        "excess_kurtosis": 0.0,
        "beyond_4_sigma": 0.0,
        "not_normal": 1.0,
    }


def test_from_the_median_a_search_finds_what_quantising_finds():
    rows = normal(128)
    found = start_entropies(rows, n=20)
    assert found["median_searched"] == pytest.approx(
        float(quantize_icq(rows, n=20, double_quant=False).block_entropy_bits.mean()), abs=1e-4
    )
    assert found["zero"] == pytest.approx(float(quantize_icq(rows, objective="none").block_entropy_bits.mean()))
    assert all(found[f"{start}_searched"] >= found[start] for start in ("zero", "median", "mean", "midrange"))


def test_starts_by_kind_of_layer():
    records, layers = median_start({"m": {"x.q": normal(8), "y.q": normal(8, seed=1), "x.up": normal(8, seed=2)}}, n=2)
    assert [(row["model"], row["kind"], row["layers"]) for row in records] == [
        ("m", "all", 3),
        ("m", "q", 2),
        ("m", "up", 1),
        (NOISE, NOISE, 1),
    ]
    assert len(layers) == 4
    assert records[1]["median"] == pytest.approx((layers[0]["median"] + layers[1]["median"]) / 2)


def test_blocks_are_drawn_without_replacement_and_anew_for_a_seed():
    weight = torch.arange(640.0).view(10, 64)
    draw = [sample_blocks([("w", weight)], block_size=64, limit=5, seed=seed)["w"] for seed in (0, 0, 1)]
    assert len({float(row[0]) for row in draw[0]}) == 5
    assert torch.equal(draw[0], draw[1]) and not torch.equal(draw[0], draw[2])
    with pytest.raises(InputError, match="whole block of 64"):
        sample_blocks([("w", torch.ones(63))], block_size=64, limit=5, seed=0)


class Tiny(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.embedding, self.layer = nn.Embedding(16, 64), layer

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids=None, inputs_embeds=None, use_cache=None):
        class Out:
            logits = self.layer(self.embedding(input_ids) if inputs_embeds is None else inputs_embeds)

        return Out


def test_resources_by_variant():
    dense = nn.Linear(64, 64, bias=False).requires_grad_(False)
    made = {"dense": Tiny(dense), "icq": Tiny(IcqLinear.from_weight(dense.weight, None, n=1))}
    rows = resources(made.__getitem__, vocabulary=16, variants=("dense", "icq"), batches=(1, 2), lengths=(3,), rounds=1)
    assert len(rows) == 2 * 2 * 2
    assert {row["time_ratio"] for row in rows if row["variant"] == "dense"} == {1.0}
    assert all(row["seconds"] > 0 and row["peak_mib"] >= 0 for row in rows)
    icq = next(row["weights_mib"] for row in rows if row["variant"] == "icq")
    assert icq == pytest.approx((16 * 64 * 4 + 2048 + 2 * (64 + 4) + 28) / 2**20)
    assert made["dense"].embedding.weight.requires_grad
    for wrong in ({"variants": ("fp8",)}, {"modes": ("backwards",)}, {"rounds": 0}):
        with pytest.raises(InputError):
            resources(made.__getitem__, vocabulary=16, **wrong)


def test_a_variant_that_cannot_run_is_named():
    class Odd(Tiny):
        def forward(self, **kwargs):
            raise AssertionError("N must be divisible by block_n")

    with pytest.raises(InputError, match=r"variant 'nf4' cannot run .*divisible.* leave it out"):
        resources(lambda variant: Odd(nn.Linear(64, 4)), vocabulary=16, variants=("nf4",), rounds=1)


def test_memory_that_rises_is_seen():
    with PeakMemory() as peak:
        torch.ones(2**24).sum()  # 64 MiB that are let go again
    assert 40 < peak.mib < 200


def test_memory_that_was_freed_before_is_seen_again():
    rises = []
    for _ in range(3):
        with PeakMemory() as peak:
            held = [torch.ones(2**16) for _ in range(256)]  # 64 MiB in pieces that the C library would keep
            del held
        rises.append(peak.mib)
    assert min(rises) > 40


def test_weights_that_are_shared_count_once():
    layer = nn.Linear(256, 256, bias=False)
    assert weights_mib(nn.Sequential(layer, layer)) == weights_mib(layer) == 0.25


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "run"}, "is not a study"),
        ({"kind": "quantization_study", "schema_version": 9}, "schema_version 9"),
        ({"kind": "quantization_study", "schema_version": 1}, "is missing"),
    ],
)
def test_foreign_studies_are_refused(values, said):
    with pytest.raises(DataError, match=said):
        QuantizationStudy.from_dict(values)
