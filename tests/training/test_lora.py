from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    GPT2Config,
    LlamaForCausalLM,
    MixtralConfig,
    PreTrainedModel,
)

from lorascope.adapters import components
from lorascope.core.errors import AdapterError, InputError, ModelError
from lorascope.training import RunSpec, attach_lora
from lorascope.training.lora import adapted

SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "vocab_size": 100,
}
LLAMA = {
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
}


def projections(model: PreTrainedModel, spec: RunSpec) -> set[str]:
    return {component.projection for component in components(attach_lora(model, spec))}


def test_every_dense_layer_but_the_head(model: LlamaForCausalLM) -> None:
    assert projections(model, RunSpec(rank=2)) == LLAMA


def test_gpt2_conv1d_layers() -> None:
    config = GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=100)
    found = projections(AutoModelForCausalLM.from_config(config), RunSpec(rank=2))
    assert found == {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}


def mixtral() -> PreTrainedModel:
    config = MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=2)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def test_experts_are_adapted_and_the_router_is_not() -> None:
    found = projections(mixtral(), RunSpec(rank=8))
    assert found == {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.experts"}


def test_expert_adapter_can_be_saved_and_loaded(tmp_path: Path) -> None:
    base = mixtral().eval()
    state = base.state_dict()
    ids = torch.arange(12)[None]
    peft_model = attach_lora(base, RunSpec(rank=2)).eval()
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.05)
    expected = peft_model(ids).logits
    peft_model.save_pretrained(tmp_path, save_embedding_layers=False)
    again = mixtral().eval()
    again.load_state_dict(state)
    loaded = PeftModel.from_pretrained(again, tmp_path)
    torch.testing.assert_close(loaded(ids).logits, expected)


def test_experts_with_dropout_or_dora_are_refused_before_anything_changes() -> None:
    model = mixtral()
    for spec in (RunSpec(dropout=0.1), RunSpec(use_dora=True)):
        with pytest.raises(AdapterError, match=r"fused experts.*set dropout 0"):
            attach_lora(model, spec)
    assert not hasattr(model, "peft_config")


def test_named_layers_only(model: LlamaForCausalLM) -> None:
    assert projections(model, RunSpec(rank=2, target_modules=("q_proj",))) == {"self_attn.q_proj"}


def test_a_name_of_no_layer_is_refused_even_beside_others(model: LlamaForCausalLM) -> None:
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(InputError, match=r"'v_prjo': did you mean 'v_proj'\?"):
        attach_lora(model, RunSpec(rank=2, target_modules=("q_proj", "v_prjo")))
    assert [name for name, _ in model.named_modules()] == names
    assert projections(model, RunSpec(rank=2, target_modules=("q_proj", "layers.1.mlp.up_proj"))) == {
        "self_attn.q_proj",
        "mlp.up_proj",
    }


def test_update_is_zero_at_first_and_decided_by_the_seed(model: LlamaForCausalLM) -> None:
    ids = torch.arange(12)[None]
    before = model(ids).logits
    state = torch.get_rng_state()
    draws = []
    for seed in (0, 0, 1):
        with adapted(model, lambda base, seed=seed: attach_lora(base, RunSpec(rank=2, seed=seed))) as peft_model:  # type: ignore[misc]
            assert torch.equal(peft_model.eval()(ids).logits, before)
            draws.append(torch.cat([p.flatten() for n, p in peft_model.named_parameters() if "lora_A" in n]).detach())
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_scaling_variants(model: LlamaForCausalLM) -> None:
    peft_model = attach_lora(model, RunSpec(rank=4, use_rslora=True, use_dora=True))
    layer = components(peft_model)[0].module
    assert layer.scaling["default"] == pytest.approx(8 / 2)
    assert "default" in layer.lora_magnitude_vector


def test_too_large_a_rank_leaves_the_model_clean(model: LlamaForCausalLM) -> None:
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(AdapterError, match="rank 33"):
        attach_lora(model, RunSpec(rank=33))
    assert [name for name, _ in model.named_modules()] == names
    attach_lora(model, RunSpec(rank=32))


def test_second_adapter_and_headless_model_are_refused(model: LlamaForCausalLM) -> None:
    peft_model = attach_lora(model, RunSpec(rank=2))
    with pytest.raises(ModelError, match="already has an adapter"):
        attach_lora(peft_model, RunSpec(rank=2))
    with pytest.raises(ModelError, match="no language-model head"):
        attach_lora(BertModel(BertConfig(**SIZES)), RunSpec(rank=2))
