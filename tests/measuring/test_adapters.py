"""Every kind of LoRA adapter, and what it leaves behind in the model: nothing."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from lorascope.core import AdapterError, ModelError
from lorascope.information import effective_rank
from lorascope.measuring import measure
from tests.measuring.architectures import ARCHITECTURES, adapted, batch_for, randomise
from tests.measuring.reference import js_rows, outputs_again

KINDS = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "rank_pattern": {"rank_pattern": {"q_proj": 2, "down_proj": 7}},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
}


KINDS_ON = [("llama", kind) for kind in KINDS] + [("gpt2", "lora_bias"), ("gpt2", "dora"), ("mistral", "dora")]


@pytest.mark.parametrize(("name", "kind"), KINDS_ON)
def test_kinds_agree_with_the_slow_way(name: str, kind: str) -> None:
    model, batch = adapted(name, **KINDS.get(kind, {kind: True})), batch_for(name, padded=False)
    result = measure(model, [batch], metrics=("miub_js", "spectrum", "update_ratio"), progress=False)
    records = {record["name"]: record for record in result.layers}
    again = outputs_again(model, batch)
    assert records.keys() == again.keys()
    for name, (frozen, shifted) in again.items():
        assert records[name]["miub_js"] == pytest.approx(js_rows(frozen, shifted).mean(), rel=1e-4, abs=1e-9)
        size = ((shifted - frozen) ** 2).sum() ** 0.5 / (frozen**2).sum() ** 0.5
        assert records[name]["update_ratio"] == pytest.approx(size, rel=1e-4)
        assert 1 - 1e-9 <= records[name]["stable_rank"] <= records[name]["effective_rank"] + 1e-9
        assert records[name]["effective_rank"] <= records[name]["rank"] + 1e-9
    if kind == "rank_pattern":
        assert {r["rank"] for r in result.layers} == {2, 4, 7}
    assert any("by other means" in note for note in result.warnings) == (kind == "modules_to_save")


def test_a_converted_pissa_adapter_measures_as_the_one_it_came_from(tmp_path) -> None:
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights="pissa")
    model, batch = get_peft_model(_original_base(), config).eval(), batch_for("llama")
    model.peft_config["default"].init_lora_weights = True
    start = tmp_path / "start"
    model.save_pretrained(start)
    randomise(model, 0.3)
    with torch.no_grad():
        logits = model(**batch).logits
    converted = tmp_path / "converted"
    model.save_pretrained(converted, path_initial_model_for_weight_conversion=str(start))
    reloaded = PeftModel.from_pretrained(_original_base(), str(converted)).eval()
    with torch.no_grad():
        torch.testing.assert_close(reloaded(**batch).logits, logits, atol=1e-4, rtol=1e-4)
    result = measure(reloaded, [batch], metrics=("miub_js", "spectrum"), progress=False)
    assert result.layers[0]["rank"] == 8  # PEFT turns a PiSSA adapter of rank r into an ordinary one of rank 2r
    assert result.totals["miub_js"] > 0


def _original_base() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ARCHITECTURES["llama"].build()


def two_adapters() -> PeftModel:
    model = adapted("llama")
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if "lora_B.second" in name:
            torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return model.eval()


def test_several_adapters_by_name_and_together() -> None:
    model, batch = two_adapters(), batch_for("llama")
    first = measure(model, [batch], progress=False)
    second = measure(model, [batch], adapter="second", progress=False)
    assert model.active_adapters == ["default"]
    assert (first.settings["adapter"], second.settings["adapter"]) == ("default", "second")
    assert (len(first.layers), len(second.layers)) == (14, 4)
    assert measure(model, [batch], progress=False).totals == first.totals
    model.base_model.set_adapter(["default", "second"])
    both = measure(model, [batch], progress=False)
    q_proj = both.layers[0]
    assert (q_proj["adapter"], q_proj["rank"]) == ("default+second", 6)
    layer = model.get_submodule(f"base_model.model.{q_proj['name']}")
    update = sum(layer.get_delta_weight(name).detach().double() for name in ("default", "second"))
    assert q_proj["effective_rank"] == pytest.approx(float(effective_rank(torch.linalg.svdvals(update))), rel=1e-4)
    assert first.layers[0]["effective_rank"] <= 4 and q_proj["effective_rank"] <= 6
    frozen, shifted = outputs_again(model, batch_for("llama", padded=False))[q_proj["name"]]
    unpadded = measure(model, [batch_for("llama", padded=False)], progress=False)
    assert unpadded.layers[0]["miub_js"] == pytest.approx(js_rows(frozen, shifted).mean(), rel=1e-4)


def test_transformers_own_adapter_integration_is_measured_too() -> None:
    model = _original_base()
    model.add_adapter(LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    result = measure(model, [batch_for("llama")], progress=False)
    assert [r["name"] for r in result.layers] == [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)]
    assert result.totals["miub_js"] > 0


def test_the_model_is_left_as_it_was() -> None:
    model = two_adapters()
    model.train()
    model.base_model.model.lm_head.eval()
    model.base_model.set_adapter(["default"])
    before = (
        {n: (p.requires_grad, p.detach().clone()) for n, p in model.named_parameters()},
        {n: (m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()},
        torch.get_rng_state(),
    )
    measure(model, [batch_for("llama")], metrics="all", variant="base", adapter="second", progress=False)
    for name, parameter in model.named_parameters():
        assert (parameter.requires_grad, parameter.grad) == (before[0][name][0], None)
        assert torch.equal(parameter, before[0][name][1])
    assert {
        n: (m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()
    } == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert model.active_adapters == ["default"]


def test_refusals() -> None:
    batch = batch_for("llama")
    with pytest.raises(AdapterError, match="has no LoRA layers"):
        measure(_original_base(), [batch], progress=False)
    model = adapted("llama")
    with pytest.raises(AdapterError, match=r"no adapter 'missing'.*default"):
        measure(model, [batch], adapter="missing", progress=False)
    with model.disable_adapter(), pytest.raises(AdapterError, match="switched off"):
        measure(model, [batch], progress=False)
    model.merge_adapter()
    with pytest.raises(AdapterError, match=r"merged.*unmerge_adapter\(\)"):
        measure(model, [batch], progress=False)
    model.unmerge_adapter()
    assert measure(model, [batch], progress=False).totals["miub_js"] > 0
    with pytest.raises(AdapterError, match="has no LoRA layers"):
        measure(model.merge_and_unload(), [batch], progress=False)


def test_weights_of_nan_are_named() -> None:
    model = adapted("llama")
    with torch.no_grad():
        model.base_model.model.model.layers[1].self_attn.k_proj.lora_B["default"].weight.fill_(float("nan"))
    with pytest.raises(ModelError, match=r"NaN from layer 'model\.layers\.1\.self_attn\.k_proj'"):
        measure(model, [batch_for("llama")], progress=False)


def test_half_precision_gives_numbers() -> None:
    model = adapted("llama").to(torch.bfloat16)
    result = measure(model, [batch_for("llama")], metrics="all", progress=False)
    full = measure(adapted("llama"), [batch_for("llama")], metrics="all", progress=False)
    assert result.totals["miub_js"] == pytest.approx(full.totals["miub_js"], rel=0.05)
    assert all(value == value for value in result.totals.values())


def test_loha_is_not_lora() -> None:
    from peft import LoHaConfig

    model = get_peft_model(_original_base(), LoHaConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(AdapterError, match="has no LoRA layers"):
        measure(model, [batch_for("llama")], progress=False)


def test_adalora_is_measured_without_a_spectrum() -> None:
    from peft import AdaLoraConfig

    config = AdaLoraConfig(target_modules=["q_proj"], total_step=10, init_lora_weights=False)
    model = get_peft_model(_original_base(), config).eval()
    for name, parameter in model.named_parameters():
        if "lora_E" in name:
            torch.nn.init.ones_(parameter)
    result = measure(model, [batch_for("llama")], progress=False)
    assert result.totals["miub_js"] > 0
    assert "effective_rank" not in result.totals


def test_a_product_that_is_zero_has_rank_zero() -> None:
    model = adapted("llama", init_lora_weights=True)
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "lora_A") and "default" in module.lora_A:
                a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
                a[2:], b[:, :2] = 0, 0  # the factors are not zero, their product is
                a[:2] += 1e-9
    result = measure(model, [batch_for("llama")], metrics="spectrum", progress=False)
    assert result.totals["effective_rank"] == 0


def test_a_plain_module_with_lora_layers_is_measured() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 6, 3)
            self.head = torch.nn.Linear(6, 2)

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.head(self.conv(pixel_values).mean((-1, -2)))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(Net(), LoraConfig(r=2, target_modules=["conv", "head"], init_lora_weights=False)).eval()
    result = measure(model, [{"pixel_values": torch.ones(2, 3, 5, 5)}], metrics="miub_js", progress=False)
    assert [record["projection"] for record in result.layers] == ["conv", "head"]
    assert all(record["miub_js"] > 0 for record in result.layers)
