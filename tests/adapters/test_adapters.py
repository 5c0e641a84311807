"""Names of layers, the checks before measuring, and the base model's fingerprint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lorascope.adapters import (
    adapter_record,
    adapters_disabled,
    attach_adapter,
    check_rank,
    components,
    fingerprint,
    read_adapter_config,
)
from lorascope.adapters._peft import split_name
from lorascope.adapters.checks import fingerprints
from lorascope.core import AdapterError
from lorascope.core.files import write_json
from tests.measuring.architectures import adapted, batch_for


@pytest.mark.parametrize(
    ("name", "layer", "projection"),
    [
        ("model.layers.3.self_attn.q_proj", 3, "self_attn.q_proj"),
        ("transformer.h.11.mlp.c_proj", 11, "mlp.c_proj"),
        ("bert.encoder.layer.0.attention.output.dense", 0, "attention.output.dense"),
        ("lm_head", None, "lm_head"),
        ("model.layers.2.mlp.experts.3.w1", 2, "mlp.experts.3.w1"),
    ],
)
def test_names_split_at_the_block(name: str, layer: int | None, projection: str) -> None:
    assert split_name(name) == (layer, projection)


def test_components_know_shape_and_place() -> None:
    first, *_, last = components(adapted("llama"))
    assert (first.name, first.layer, first.d_in, first.d_out, first.rank) == (
        "model.layers.0.self_attn.q_proj",
        0,
        16,
        16,
        4,
    )
    assert (last.projection, last.d_in, last.d_out) == ("mlp.down_proj", 24, 16)


def test_rank_over_the_smaller_side_is_refused_and_gates_of_one_output_are_not() -> None:
    with pytest.raises(AdapterError, match=r"rank 9 .* smaller side 8 of layer 'model\.layers\.0\.self_attn\.k_proj'"):
        check_rank(adapted("llama", rank=9))
    check_rank(adapted("llama", rank=8))
    check_rank(adapted("qwen2_moe", rank=4))


def test_the_fingerprint_is_of_the_base_alone() -> None:
    base = adapted("llama").get_base_model()
    plain = fingerprint(adapted("llama", rank=2))
    assert plain == fingerprint(adapted("llama", rank=4, use_dora=True, scale=1.0))
    assert plain == fingerprint(adapted("llama").to(torch.bfloat16))
    assert plain != fingerprint(adapted("llama", seed=1))
    assert plain != fingerprint(adapted("qwen2"))
    assert plain == fingerprint(base)


@pytest.mark.parametrize("loaded", [torch.float32, torch.bfloat16, torch.float16])
def test_another_base_is_noticed_in_every_type_of_weights(
    tmp_path: Path, tiny_model_dir: Path, loaded: torch.dtype
) -> None:
    """The record of an adapter trained in float32 against the right base, and against one with other weights."""
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model_dir), LoraConfig(r=2, target_modules=["q_proj"])
    )
    model.save_pretrained(tmp_path / "adapter")
    write_json(tmp_path / "adapter" / "lorascope.json", adapter_record(model))
    attach_adapter(AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=loaded), tmp_path / "adapter")
    other = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight.mul_(1.05)
    with pytest.raises(AdapterError, match="does not fit base model"):
        attach_adapter(other.to(loaded), tmp_path / "adapter")
    attach_adapter(other, tmp_path / "adapter", any_base=True)


def test_types_that_lost_each_others_digits_share_no_fingerprint() -> None:
    model = adapted("llama")
    full = fingerprints(model)
    assert set(full) == {"base_fingerprint", "base_fingerprint_float16"}
    for dtype, kind in ((torch.bfloat16, "base_fingerprint"), (torch.float16, "base_fingerprint_float16")):
        assert fingerprints(adapted("llama").to(dtype)) == {kind: full[kind]}


def test_adapters_are_switched_off_and_on_without_a_trace() -> None:
    model, batch = adapted("llama", modules_to_save=["lm_head"]), batch_for("llama")
    model.train()
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with torch.no_grad():
        on = model(**batch).logits
        with adapters_disabled(model):
            off = model(**batch).logits
        with model.disable_adapter():
            wanted = model(**batch).logits
        torch.testing.assert_close(model(**batch).logits, on)
    torch.testing.assert_close(off, wanted)
    assert not torch.allclose(on, off)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags


def test_an_adapter_that_lacks_layers_of_the_model_is_refused(tmp_path: Path, tiny_model_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "q")
    config = (tmp_path / "q" / "adapter_config.json").read_text()
    (tmp_path / "q" / "adapter_config.json").write_text(config.replace('"q_proj"', '"q_proj",\n    "v_proj"'))
    with pytest.raises(AdapterError, match="lacks weights for some layers"):
        attach_adapter(AutoModelForCausalLM.from_pretrained(tiny_model_dir), tmp_path / "q")


def test_reading_a_config_says_rank_and_base(tmp_path: Path, tiny_model_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    get_peft_model(model, LoraConfig(r=3, target_modules=["q_proj"])).save_pretrained(tmp_path)
    config = read_adapter_config(tmp_path)
    assert config.r == 3
    assert config.base_model_name_or_path == str(tiny_model_dir)
