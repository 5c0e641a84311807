"""First weights: each mode against its definition, and what an initialisation must leave alone."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.utils.data import DataLoader
from transformers import BitsAndBytesConfig
from transformers.modeling_outputs import SequenceClassifierOutput

from lorascope import initialize_lora_fisher
from lorascope.adapters import ElasticLoraConfig, components
from lorascope.adapters._initial import base_weight, factor_parameters
from lorascope.core.errors import AdapterError, InputError, ModelError
from lorascope.initialization import MODES, collect_statistics
from lorascope.initialization.directions import DEFAULT_NORM, LONGEST, fisher_batch
from lorascope.initialization.result import FisherInitialization
from lorascope.quantization import ICQConfig
from tests.initialization.reference import reference, summed
from tests.measuring.architectures import ARCHITECTURES

ZERO_DELTA = [name for name, mode in MODES.items() if not mode.residual]
RESIDUAL = [name for name, mode in MODES.items() if mode.residual]
LAYER = "model.layers.1.mlp.down_proj"


def start(model: PeftModel, data: Any, mode: str = "fisher", **options: Any) -> FisherInitialization:
    return initialize_lora_fisher(model, data, mode, progress=False, **options)


def logits(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**batch).logits
    return found


def factors(model: nn.Module, name: str = LAYER) -> tuple[torch.Tensor, torch.Tensor, float]:
    (component,) = (c for c in components(model) if c.name == name)
    a, b, scaling = factor_parameters(component, "default")
    return a.detach().double(), b.detach().double(), scaling


def overlap(rows: torch.Tensor, directions: torch.Tensor) -> float:
    """Mean squared cosine between the row space of A and orthonormal directions in columns: 1 for the same space."""
    basis = torch.linalg.qr(rows.double().T).Q
    return float((basis.T @ directions.double()).square().sum() / directions.shape[1])


def power(matrix: torch.Tensor, exponent: float) -> torch.Tensor:
    """(S + 0.01 tr S / d)^p in full, in float64."""
    values, vectors = torch.linalg.eigh(matrix + 0.01 * matrix.trace() / len(matrix) * torch.eye(len(matrix)))
    return vectors @ torch.diag(values**exponent) @ vectors.T


def leading(matrix: torch.Tensor, rank: int = 4) -> torch.Tensor:
    return torch.linalg.eigh(matrix.double()).eigenvectors.flip(1)[:, :rank]


@pytest.mark.parametrize("mode", ["fisher", "activation", "gradient", "natural_gradient", "fisher_batch"])
def test_directions_are_those_of_the_definition(mode: str, fresh: Any, batches: Any) -> None:
    data = batches(count=4)
    truth = reference(fresh(), data, summed)
    model = fresh()
    start(model, data, mode)
    for name, found in truth.items():
        gradient, tokens = found["mean_gradient"].double(), int(found["tokens"])
        if mode == "natural_gradient":
            whitened = power(found["output"], -0.5) @ gradient @ power(found["input"], -0.5)
            wanted = power(found["input"], -0.5) @ torch.linalg.svd(whitened).Vh[:4].T
            wanted = torch.linalg.qr(wanted).Q
        elif mode == "fisher_batch":
            each, fisher = tokens / 4, found["input_fisher"]
            square = (gradient.T @ gradient - fisher / tokens) / (1 - 1 / tokens)
            wanted = leading(square + (fisher - square) / each)
        else:
            square = gradient.T @ gradient
            wanted = leading({"fisher": found["input_fisher"], "activation": found["input"]}.get(mode, square))
        a, b, _ = factors(model, name)
        assert overlap(a, wanted) > 1 - 1e-4, name
        assert not b.any()
        assert torch.allclose(a @ a.T, torch.eye(4, dtype=torch.float64) / 3, atol=1e-5), "rows as long as PEFT's"


def test_a_batch_gradient_is_the_mean_over_pairs_of_tokens_and_their_noise(fresh: Any, batches: Any) -> None:
    """E G^T G of n tokens drawn with replacement: pairs of different draws, and of a draw with itself."""
    model, data = fresh(), batches(count=1)
    rows: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    module = dict(model.named_modules())[f"base_model.model.{LAYER}"]

    def hook(_module: Any, args: Any, output: torch.Tensor) -> None:
        output.register_hook(lambda g: rows.update({LAYER: (args[0].detach(), g)}))

    handle = module.register_forward_hook(hook)
    summed(model, data[0]).backward()
    handle.remove()
    mask = data[0]["attention_mask"].bool()
    a, g = (t[mask].double() for t in rows[LAYER])
    n, each = len(a), len(a) / 3
    pairs = [(i, j) for i, j in itertools.product(range(n), repeat=2) if i != j]
    mean = sum(float(g[i] @ g[j]) * torch.outer(a[i], a[j]) for i, j in pairs) / len(pairs)
    own = sum(float(g[i] @ g[i]) * torch.outer(a[i], a[i]) for i in range(n)) / n
    values = torch.linalg.eigvalsh((1 - 1 / each) * mean + own / each).flip(0)
    need = ("input_fisher", "mean_gradient")
    found = collect_statistics(model, data, need=need, layers=[LAYER], progress=False).layers[LAYER]
    scores = fisher_batch(found, None, 4, batches=3).scores
    assert torch.allclose(scores[:6].double(), values[:6], rtol=1e-3, atol=1e-5 * float(values[0]))


def test_one_token_a_batch_is_fisher_and_one_batch_is_the_gradient(fresh: Any, batches: Any) -> None:
    need = ("input_fisher", "mean_gradient")
    found = collect_statistics(fresh(), batches(), need=need, layers=[LAYER], progress=False).layers[LAYER]
    assert found.input_fisher is not None and found.mean_gradient is not None
    gradient = found.mean_gradient.matrix(found.tokens)
    by_token = fisher_batch(found, None, 4, batches=found.tokens).directions[:, :4]
    assert overlap(by_token.T, leading(found.input_fisher.sum)) > 1 - 1e-5
    assert (
        overlap(fisher_batch(found, None, 4, batches=1).directions[:, :4].T, leading(gradient.T @ gradient)) > 1 - 1e-5
    )


def test_training_batches_can_be_larger_than_the_loaders(fresh: Any, batches: Any) -> None:
    models = [fresh() for _ in range(3)]
    start(models[0], batches(count=4), "fisher_batch", training_batches=1)
    start(models[1], batches(count=4), "gradient")
    start(models[2], batches(count=4), "fisher_batch")
    same, gradient, other = (factors(model)[0] for model in models)
    assert overlap(same, torch.linalg.qr(gradient.T).Q) > overlap(other, torch.linalg.qr(gradient.T).Q)


@pytest.mark.parametrize("mode", ["fisher_select", "fisher_whitened"])
def test_residual_updates_are_those_of_the_definition(mode: str, fresh: Any, batches: Any) -> None:
    truth = reference(fresh(), batches(), summed)[LAYER]
    model = fresh()
    before = {c.name: base_weight(c).double() for c in components(model)}
    start(model, batches(), mode)
    a, b, scaling = factors(model)
    weight = before[LAYER]
    if mode == "fisher_select":
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        inputs, outputs = truth["input"].double(), truth["output"].double()
        scores = s.square() * (u * (outputs @ u)).sum(0) * (vh.T * (inputs @ vh.T)).sum(0)
        best = scores.argsort(descending=True)[:4]
        wanted = u[:, best] @ torch.diag(s[best]) @ vh[best]
    else:
        out, inn = truth["output"].double(), truth["input"].double()
        p, s, qh = torch.linalg.svd(power(out, 0.5) @ weight @ power(inn, 0.5))
        wanted = power(out, -0.5) @ p[:, :4] @ torch.diag(s[:4]) @ qh[:4] @ power(inn, -0.5)
    update = scaling * b @ a
    assert float((update - wanted).norm() / wanted.norm()) < 1e-3
    assert torch.allclose(a @ a.T, b.T @ b, atol=1e-4 * float(a.norm() ** 2)), "balanced"
    (component,) = (c for c in components(model) if c.name == LAYER)
    assert torch.allclose(base_weight(component).double() + update, weight, atol=1e-6)


def test_select_can_take_the_lowest(fresh: Any, batches: Any) -> None:
    highest, lowest = fresh(), fresh()
    start(highest, batches(), "fisher_select")
    found = start(lowest, batches(), "fisher_select", select="lowest")
    big, small = (float((b @ a).norm()) for a, b, _ in (factors(highest), factors(lowest)))
    assert small < big
    assert found.settings["select"] == "lowest"


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit"])
@pytest.mark.parametrize("mode", ZERO_DELTA)
def test_no_logit_changes_and_plain_peft_loads_it(
    mode: str, name: str, fresh: Any, batches: Any, tmp_path: Path
) -> None:
    model, data = fresh(name), batches(name)
    before = logits(model, data[0])
    weights = {n: p.clone() for n, p in model.named_parameters() if "lora_A" not in n}
    start(model, data, mode)
    assert torch.equal(logits(model, data[0]), before)
    assert all(torch.equal(weights[n], p) for n, p in model.named_parameters() if n in weights)
    assert all(p.requires_grad == ("lora_" in n or "modules_to_save" in n) for n, p in model.named_parameters())
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = ARCHITECTURES[name].build()
    again = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    assert torch.equal(logits(again, data[0]), logits(model, data[0]))


def test_bfloat16_changes_no_logit_either(fresh: Any, batches: Any) -> None:
    model = fresh(dtype=torch.bfloat16)
    before = logits(model, batches()[0])
    start(model, batches())
    assert torch.equal(logits(model, batches()[0]), before)
    exact = fresh()
    start(exact, batches())
    assert overlap(factors(model)[0], torch.linalg.qr(factors(exact)[0].T).Q) > 0.98


@pytest.mark.parametrize("mode", RESIDUAL)
@pytest.mark.parametrize(("name", "dtype"), [("llama", None), ("gpt2", None), ("vit", None), ("llama", torch.bfloat16)])
@pytest.mark.filterwarnings("ignore:.*fan_in_fan_out")
def test_residual_adapters_are_saved_as_ordinary_ones(
    mode: str, name: str, dtype: torch.dtype | None, fresh: Any, batches: Any, tmp_path: Path
) -> None:
    model, data = fresh(name, dtype=dtype), batches(name)
    before = logits(model, data[0])
    found = start(model, data, mode)
    assert found.residual
    tolerance = 1e-5 if dtype is None else 3e-2
    assert torch.allclose(logits(model, data[0]), before, atol=tolerance), "the same model at the first step"
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(key)))
                parameter += 0.1 * noise.to(parameter.dtype)
    trained = logits(model, data[0])
    assert not torch.allclose(trained, before, atol=1e-2)
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    assert torch.equal(logits(model, data[0]), trained), "saving does not touch the model"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = ARCHITECTURES[name].build()
    again = PeftModel.from_pretrained(base if dtype is None else base.to(dtype), str(tmp_path)).eval()
    assert again.peft_config["default"].r == 8, "twice the rank"
    assert torch.allclose(logits(again, data[0]), trained, atol=tolerance)


def save_llama(folder: Path, *, width: int, inner: int) -> None:
    """A dense model of one layer, to be loaded quantised."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=64, max_position_embeddings=32, pad_token_id=0, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)


@pytest.mark.parametrize("kind", ["icq", "bitsandbytes"])
def test_quantised_bases(kind: str, batches: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from lorascope.adapters import support_quantised

    save_llama(tmp_path, width=64, inner=64)
    if kind == "icq":
        quantised: Any = ICQConfig()
    else:
        quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    lora = LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj", "down_proj"])
    for mode in ("fisher", "activation", "fisher_batch", "fisher_select"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=quantised, dtype=torch.float32)
        model = get_peft_model(model, support_quantised(lora) if kind == "icq" else lora).eval()
        if MODES[mode].residual:
            with pytest.raises(AdapterError, match=r"q_proj' is quantised .* such as fisher"):
                start(model, batches(), mode)
            continue
        before = logits(model, batches()[0])
        found = start(model, batches(), mode)
        assert torch.equal(logits(model, batches()[0]), before)
        assert any("quantised" in note for note in found.warnings)
        assert all(float(row["fisher_trace"]) > 0 for row in found.layers)


def test_sketched_layers_find_the_same_space(fresh: Any, batches: Any) -> None:
    """Leading directions; what needs inverses, such as natural_gradient, takes a sketch as a rough approximation only."""
    for mode in ("fisher", "activation", "gradient", "fisher_batch"):
        whole, sketched = fresh(), fresh()
        start(whole, batches(), mode)
        found = start(sketched, batches(), mode, exact_width=8, sketch=12)
        assert any("sketched with 12 columns" in note for note in found.warnings)
        for component in components(whole):
            space = torch.linalg.qr(factors(whole, component.name)[0].T).Q
            assert overlap(factors(sketched, component.name)[0], space) > 0.7, (mode, component.name)


def test_true_fisher_ignores_the_labels(fresh: Any, batches: Any) -> None:
    data = batches()
    other = [{**b, "labels": torch.where(b["labels"] < 0, b["labels"], 3)} for b in data]
    one, two, drawn = fresh(), fresh(), fresh()
    found = start(one, data, fisher="true", seed=3)
    start(two, other, fisher="true", seed=3)
    start(drawn, data, fisher="true", generator=torch.Generator().manual_seed(9))
    assert torch.equal(factors(one)[0], factors(two)[0])
    assert not torch.equal(factors(one)[0], factors(drawn)[0])
    assert any("true Fisher" in note for note in found.warnings)
    for mode in ("gradient", "fisher_batch", "natural_gradient"):
        with pytest.raises(InputError, match="zero in expectation"):
            start(fresh(), data, mode, fisher="true")


def test_a_budget_is_kept_and_loads_in_plain_peft(fresh: Any, batches: Any, tmp_path: Path) -> None:
    model = fresh(rank=4)
    whole = sum(4 * (c.d_in + c.d_out) for c in components(model))
    before = logits(model, batches()[0])
    found = start(model, batches(), budget=whole // 2, max_rank=8)
    ranks = {c.name: c.rank for c in components(model)}
    spent = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    assert whole // 2 - 41 < spent <= whole // 2
    assert len(set(ranks.values())) > 2
    assert ranks == {row["name"]: row["rank"] for row in found.layers}
    assert {n: r for n, r in ranks.items() if r != 4} == found.rank_pattern
    assert torch.equal(logits(model, batches()[0]), before)
    assert {factors(model, n)[2] for n in ranks} == {2.0}, "alpha / r as before"
    for name, rank in ranks.items():
        a, _, _ = factors(model, name)
        assert torch.allclose(a @ a.T, torch.eye(rank, dtype=torch.float64) / 3, atol=1e-5)
    model.save_pretrained(str(tmp_path))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = ARCHITECTURES["llama"].build()
    again = PeftModel.from_pretrained(base, str(tmp_path))
    assert {c.name: c.rank for c in components(again)} == ranks
    assert {n: p.tolist() for n, p in again.named_parameters()} == {n: p.tolist() for n, p in model.named_parameters()}


PATTERNS: dict[str, dict[str, Any]] = {
    "before a name": {"alpha_pattern": {"layers.1.mlp.down_proj": 64}},
    "of many layers": {"rank_pattern": {"down_proj": 6}, "alpha_pattern": {"down_proj": 3, "v_proj": 1}},
    "a regular expression": {"rank_pattern": {r".*\.[01]\.self_attn\.[kq]_proj": 2}},
    "rank-stabilised": {"rank_pattern": {"gate_proj": 6}, "use_rslora": True},
}


@pytest.mark.parametrize("name", list(PATTERNS))
def test_a_budget_goes_with_the_users_own_patterns(name: str, fresh: Any, batches: Any, tmp_path: Path) -> None:
    model = fresh(**PATTERNS[name])
    scalings = {c.name: factors(model, c.name)[2] for c in components(model)}
    start(model, batches(), budget=2000, max_rank=8)
    assert {c.name: factors(model, c.name)[2] for c in components(model)} == pytest.approx(scalings)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.fill_(0.05)
    model.save_pretrained(str(tmp_path))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        again = PeftModel.from_pretrained(ARCHITECTURES["llama"].build(), str(tmp_path))
    assert torch.equal(logits(again.eval(), batches()[0]), logits(model, batches()[0]))


def test_a_budget_tells_layers_apart_whose_names_end_alike() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj, self.block = nn.Linear(6, 5), nn.ModuleDict({"proj": nn.Linear(6, 5)})

        def forward(self, pixel_values: torch.Tensor) -> SequenceClassifierOutput:
            return SequenceClassifierOutput(logits=self.proj(pixel_values) + 9 * self.block["proj"](pixel_values))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(Two(), LoraConfig(r=2, target_modules=["proj"]))
    data = [{"pixel_values": torch.eye(6), "labels": torch.arange(6) % 5}]
    found = start(model, data, budget=55, max_rank=5)
    config = model.peft_config["default"]
    again = get_peft_model(
        Two(),
        LoraConfig(r=2, target_modules=["proj"], rank_pattern=config.rank_pattern, alpha_pattern=config.alpha_pattern),
    )
    ranks = {c.name: c.rank for c in components(model)}
    assert {c.name: c.rank for c in components(again)} == ranks == {row["name"]: row["rank"] for row in found.layers}
    assert ranks["proj"] < ranks["block.proj"], "whose gradient is larger"


def test_a_budget_counts_layers_that_saw_no_token(batches: Any) -> None:
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen, self.unseen, self.head = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(4, 3)

        def forward(self, pixel_values: torch.Tensor) -> SequenceClassifierOutput:
            return SequenceClassifierOutput(logits=self.head(self.seen(pixel_values)))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(Towers(), LoraConfig(r=3, target_modules=["seen", "unseen"]))
    data = [{"pixel_values": torch.eye(6), "labels": torch.arange(6) % 3}]
    found = start(model, data, budget=35)
    assert sum(p.numel() for n, p in model.named_parameters() if "lora_" in n) == 30
    assert {row["name"]: (row["rank"], row["share"]) for row in found.layers} == {"seen": (2, 1.0), "unseen": (1, 0.0)}
    assert any("1 adapted layers saw no token" in note for note in found.warnings)


def test_a_sketch_of_a_flat_spectrum_is_named() -> None:
    def started(spread: torch.Tensor) -> FisherInitialization:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            base = nn.Sequential(nn.Linear(400, 3))
            base.forward = lambda pixel_values: SequenceClassifierOutput(logits=base[0](pixel_values))
            model = get_peft_model(base, LoraConfig(r=4, target_modules=["0"]))
            x = torch.randn(800, 400) * spread
        return start(model, [{"pixel_values": x, "labels": torch.arange(800) % 3}], exact_width=100, sketch=40)

    flat, steep = started(torch.ones(400)), started(torch.arange(1, 401) ** -1.5)
    assert any("1 sketches are coarse (that of 0 shows" in note for note in flat.warnings)
    assert not any("coarse" in note for note in steep.warnings)


def test_the_table_says_what_is_worth_adapting(fresh: Any, batches: Any, tmp_path: Path) -> None:
    found = start(fresh(), batches(), "activation", table=True)
    assert sum(row["share"] for row in found.layers) == pytest.approx(1.0)
    for row in found.layers:
        assert 0 < row["captured"] <= 1
        assert row["gain"] == pytest.approx(row["captured"] * row["fisher_trace"], rel=1e-5)
        assert 1 <= row["directions"] <= row["d_in"] and row["directions_90"] >= 1
        assert row["suggested_rank"] >= 1
    cost = {row["name"]: row["d_in"] + row["d_out"] for row in found.layers}
    assert sum(row["suggested_rank"] * cost[row["name"]] for row in found.layers) <= 4 * sum(cost.values())
    again = FisherInitialization.load(found.save(tmp_path / "initialization.json"))
    assert again == found


def test_the_same_call_gives_the_same_weights(fresh: Any, batches: Any) -> None:
    state = torch.get_rng_state()
    for mode in MODES:
        one, two = fresh(), fresh()
        start(one, batches(), mode, budget=3000 if mode in ZERO_DELTA else None)
        start(two, batches(), mode, budget=3000 if mode in ZERO_DELTA else None)
        for (key, first), second in zip(one.named_parameters(), two.parameters(), strict=True):
            assert torch.equal(first, second), (mode, key)
    assert torch.equal(torch.get_rng_state(), state)


def test_only_the_named_adapter_is_written(fresh: Any, batches: Any) -> None:
    from peft import LoraConfig

    model = fresh()
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"]))
    before = {n: p.clone() for n, p in model.named_parameters()}
    found = start(model, batches(), adapter_name="second")
    changed = {n for n, p in model.named_parameters() if not torch.equal(before[n], p)}
    assert changed and all(".lora_A.second." in name for name in changed)
    assert [row["projection"] for row in found.layers] == ["self_attn.q_proj"] * 2
    assert model.active_adapter == "default"


def test_balanced_rows_see_equally_much(fresh: Any, batches: Any) -> None:
    data = batches(count=4)
    truth = reference(fresh(), data, summed)
    models = fresh(), fresh()
    start(models[0], data, "fisher")
    start(models[1], data, "fisher_balanced")
    for name, found in truth.items():
        seen = found["input"].double()
        plain, balanced = (factors(model, name)[0] for model in models)
        usual = seen.trace() / len(seen) / 3
        assert overlap(balanced, torch.linalg.qr(plain.T).Q) > 1 - 1e-6
        energies = torch.einsum("ri,ij,rj->r", balanced, seen, balanced)
        longest = balanced.norm(dim=1) > LONGEST * DEFAULT_NORM * (1 - 1e-4)
        torch.testing.assert_close(energies[~longest], usual.expand(len(energies))[~longest], rtol=1e-4, atol=0)
        assert bool((energies[longest] <= usual * (1 + 1e-4)).all())


@pytest.mark.parametrize("mode", RESIDUAL)
def test_a_head_that_is_trained_whole_is_saved_with_a_residual_start(
    mode: str, fresh: Any, batches: Any, tmp_path: Path
) -> None:
    model = fresh("bert", task_type="SEQ_CLS", target_modules=["query", "value"])
    data = batches("bert")
    start(model, data, mode)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    model.save_pretrained(str(tmp_path))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        again = PeftModel.from_pretrained(ARCHITECTURES["bert"].build(), str(tmp_path)).eval()
    torch.testing.assert_close(logits(again, data[0]), logits(model, data[0]), rtol=0, atol=1e-5)


def test_the_callers_random_numbers_are_left_alone(fresh: Any, batches: Any) -> None:
    model, loader = fresh(), DataLoader(batches(), batch_size=None)
    before = torch.get_rng_state()
    start(model, loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_calls_end_in_one_line(fresh: Any, batches: Any) -> None:
    trained = fresh()
    with torch.no_grad():
        next(p for n, p in trained.named_parameters() if "lora_B" in n).fill_(1.0)
    tied = fresh()
    layers = tied.get_base_model().model.layers
    layers[1].mlp.up_proj.base_layer.weight = layers[0].mlp.up_proj.base_layer.weight
    masked = [{**b, "labels": torch.full_like(b["labels"], -100)} for b in batches()]
    two, silent = fresh(), fresh()
    two.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"]))
    with torch.no_grad():
        silent.get_base_model().lm_head.weight.zero_()
    elastic = get_peft_model(ARCHITECTURES["llama"].build(), ElasticLoraConfig(r=4, target_modules=["q_proj"]))
    tie = ARCHITECTURES["llama"].build()
    tie.lm_head.weight = tie.model.embed_tokens.weight
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of tied layers
        head = get_peft_model(tie, LoraConfig(r=4, target_modules=["lm_head"]))
        words = fresh(target_modules=["q_proj", "embed_tokens"])
        biased, biases = fresh(lora_bias=True), fresh("qwen2", target_modules=["q_proj"], bias="lora_only")
    cases: list[tuple[Any, Any, type[Exception], str, dict[str, Any]]] = [
        (fresh(), batches(), InputError, "did you mean 'fisher'", {"mode": "fischer"}),
        (fresh(), batches(), InputError, "unknown select 'low'", {"select": "low"}),
        (fresh(), batches(), InputError, "unknown fisher 'kfac'", {"fisher": "kfac"}),
        (fresh(), [], InputError, "no data", {}),
        (fresh(), iter([]), InputError, "has no length: give training_batches", {"mode": "fisher_batch"}),
        (fresh(), masked, InputError, "no label counts", {}),
        (fresh(), batches(), AdapterError, "no adapter 'x'", {"adapter_name": "x"}),
        (trained, batches(), AdapterError, "not fresh: B of layer 'model.layers.0.self_attn.q_proj'", {}),
        (fresh().get_base_model(), batches(), AdapterError, "is no PEFT model", {}),
        (fresh(rank=20), batches(), AdapterError, "rank 20 is over the 16 inputs", {}),
        (fresh(), batches(), InputError, "budget of 10 parameters is below", {"budget": 10}),
        (fresh(), batches(), InputError, "budget 0 must be", {"budget": 0}),
        (fresh(), batches(), InputError, "training_batches 0 must be", {"training_batches": 0}),
        (fresh(), batches(), InputError, "a budget goes with", {"mode": "fisher_select", "budget": 5000}),
        (fresh(), batches(), InputError, "min_rank 3 must be", {"budget": 5000, "min_rank": 3, "max_rank": 2}),
        (fresh(use_dora=True), batches(), AdapterError, "DoRA", {"mode": "fisher_whitened"}),
        (tied, batches(), AdapterError, "share one weight", {"mode": "fisher_select"}),
        (two, batches(), AdapterError, "adapter 'second' is on this base too", {"mode": "fisher_select"}),
        (head, batches(), AdapterError, "'lm_head' is also that of 'model.embed_tokens'", {"mode": "fisher_whitened"}),
        (biased, batches(), AdapterError, "lora_bias can't be converted", {"mode": "fisher_select"}),
        (biases, batches("qwen2"), AdapterError, "bias='lora_only' can't be converted", {"mode": "fisher_whitened"}),
        (elastic, batches(), AdapterError, "elastic can't be converted", {"mode": "fisher_select"}),
        (words, batches(), AdapterError, "'model.embed_tokens' has no factors", {"mode": "fisher_select"}),
        (silent, batches(), InputError, "every gradient at the adapted layers is zero", {}),
        (fresh(), [{"labels": torch.ones(1, 3).long()}], InputError, "cannot take a batch with labels", {}),
        (fresh(), batches(), InputError, "max_memory 'lots' is no amount", {"max_memory": "lots", "mode": "random"}),
        (fresh(), batches(), InputError, "unknown fisher 'tru'", {"fisher": "tru", "mode": "random"}),
    ]
    for model, data, kind, text, options in cases:
        before = {n: p.clone() for n, p in model.named_parameters()}
        with pytest.raises(kind, match=text) as caught:
            initialize_lora_fisher(model, data, progress=False, **options)
        assert "\n" not in str(caught.value)
        assert all(torch.equal(before[n], p) for n, p in model.named_parameters()), "nothing is half done"


def test_nan_in_the_loss_leaves_the_adapter_as_it_was(fresh: Any, batches: Any) -> None:
    model = fresh()
    with torch.no_grad():
        model.get_base_model().model.layers[1].mlp.down_proj.base_layer.weight[0, 0] = float("nan")
    before = factors(model)[0]
    with pytest.raises(ModelError, match="the loss of batch 1 is nan"):
        start(model, batches())
    assert torch.equal(factors(model)[0], before)


def test_little_data_is_used_and_named(fresh: Any, batches: Any) -> None:
    one = [{key: value[:1] for key, value in batches(padded=False)[0].items()}]
    for mode in ZERO_DELTA:
        model = fresh()
        before = logits(model, one[0])
        found = start(model, one, mode)
        assert torch.equal(logits(model, one[0]), before)
        a, _, _ = factors(model)
        if mode == "fisher_balanced":
            a = torch.nn.functional.normalize(a) * DEFAULT_NORM
        assert torch.allclose(a @ a.T, torch.eye(4, dtype=torch.float64) / 3, atol=1e-5)
        if mode != "random":
            said = " ".join(found.warnings)
            assert "one sample" in said and "fewer tokens than they have inputs" in said
    two = [{**one[0], **{key: value[:, :2] for key, value in one[0].items()}}]
    two[0]["labels"] = two[0]["input_ids"]
    found = start(fresh(), two)
    assert "decide fewer directions than the rank" in " ".join(found.warnings), "one token has a gradient"


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_ending_early_evaluation_frozen_and_checkpointed(fresh: Any, batches: Any) -> None:
    plain = fresh()
    start(plain, batches())
    frozen = fresh(lora_dropout=0.4)
    frozen.requires_grad_(False).train()
    found = start(frozen, batches())
    assert any("is frozen: nothing of it will be trained" in note for note in found.warnings)
    assert torch.equal(factors(frozen)[0], factors(plain)[0])
    assert not any(p.requires_grad for p in frozen.parameters())
    checkpointed = fresh()
    checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    start(checkpointed.train(), batches())
    assert overlap(factors(checkpointed)[0], torch.linalg.qr(factors(plain)[0].T).Q) > 1 - 1e-5
    ending = fresh()
    found = start(ending, iter(batches()), max_batches=10)
    assert torch.equal(factors(ending)[0], factors(plain)[0])
    assert "ended after 3 batches of 10" in " ".join(found.warnings)


@pytest.mark.parametrize("nested", [False, True])
def test_codes_that_an_evaluation_packed(nested: bool, batches: Any, tmp_path: Path) -> None:
    """bitsandbytes packs codes for inference on some processors, and does not take all of it back."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    save_llama(tmp_path, width=128, inner=192)
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=nested)
    found = []
    for evaluated in (False, True):
        model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=how, dtype=torch.float32)
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"])).eval()
        before = logits(adapted, batches()[0]) if evaluated else None
        found.append(start(adapted, batches()).layers)
        if before is not None:
            assert torch.equal(logits(adapted, batches()[0]), before)
    for fresh_row, packed_row in zip(*found, strict=True):
        assert packed_row["fisher_trace"] == pytest.approx(fresh_row["fisher_trace"], rel=0.05)


def test_numbers_that_are_none_of_their_kind(fresh: Any, batches: Any) -> None:
    with pytest.raises(InputError, match="sketch -1 must be a whole number"):
        start(fresh(), batches(), sketch=-1)
    found = start(fresh(), batches(), budget=10**9)
    assert any("was not used up: " in note for note in found.warnings)
