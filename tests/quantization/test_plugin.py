"""Quantising models on load: every architecture, saved and loaded again, trained through, and refused when damaged."""

import json
import re
import weakref
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tests.measuring.architectures import ARCHITECTURES as MEASURED
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
    Trainer,
    TrainingArguments,
)

from lorascope.adapters import support_quantised
from lorascope.core.errors import AdapterError, InputError, ModelError
from lorascope.quantization import ICQConfig, IcqLinear, icq_layers, quantize_icq
from lorascope.quantization.plugin import watch_quantization
from lorascope.quantization.whole import kept_dense

SMALL = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 32,
}
GROUPED = SMALL | {"num_key_value_heads": 2}
# name -> configuration, and how many layers are quantised
ARCHITECTURES = {
    "llama": (GROUPED, 14),
    "mistral": (GROUPED, 14),
    "qwen2": (GROUPED, 14),
    "qwen3": (GROUPED | {"head_dim": 12}, 14),
    "phi3": (GROUPED | {"pad_token_id": 0}, 8),
    "gemma": (GROUPED | {"head_dim": 12}, 14),
    "gemma2": (GROUPED | {"head_dim": 12}, 14),
    "gpt2": ({"n_embd": 48, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 32}, 8),
    "opt": (SMALL | {"ffn_dim": 80, "word_embed_proj_dim": 48}, 12),
    "gpt_neox": (SMALL, 8),
    "mixtral": (GROUPED | {"num_local_experts": 4}, 8),  # the fused experts stay as they are
    "qwen2_moe": (
        GROUPED | {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48},
        16,
    ),
    "bert": (SMALL, 13),
    "vit": (
        {k: v for k, v in SMALL.items() if "position" not in k and "vocab" not in k}
        | {"image_size": 8, "patch_size": 4},
        12,
    ),
}
AUTO = {"bert": AutoModelForSequenceClassification, "vit": AutoModelForImageClassification}


def test_every_architecture_that_is_measured_is_here():
    assert set(ARCHITECTURES) == set(MEASURED)


def build(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    options, _ = ARCHITECTURES[name]
    auto = AUTO.get(name, AutoModelForCausalLM)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto.from_config(AutoConfig.for_model(name, **options)).to(dtype).eval()
    model.save_pretrained(folder)
    return model


def outputs(model: nn.Module, name: str) -> torch.Tensor:
    with torch.no_grad():
        if name == "vit":
            pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=model.dtype)
            return model(pixel_values=pixels).logits
        return model(input_ids=torch.arange(24).view(2, 12)).logits


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_quantise_on_load_save_and_load_again(name, tmp_path):
    dense = build(name, tmp_path / "dense")
    auto = AUTO.get(name, AutoModelForCausalLM)
    model = auto.from_pretrained(tmp_path / "dense", quantization_config=ICQConfig(n=10)).eval()
    layers = icq_layers(model)
    assert len(layers) == ARCHITECTURES[name][1]
    # Each layer holds what quantising its weight alone gives.
    first, layer = next(iter(layers.items()))
    weight = dense.get_submodule(first).weight.detach()
    expected = quantize_icq(weight.T.contiguous() if name == "gpt2" else weight, n=10)
    assert torch.equal(layer.dequantize(), expected.dequantize())
    here = outputs(model, name)
    assert 0 < (here - outputs(dense, name)).abs().mean() < 0.2 * outputs(dense, name).abs().mean()
    model.save_pretrained(tmp_path / "quantised")
    again = auto.from_pretrained(tmp_path / "quantised").eval()
    assert torch.equal(outputs(again, name), here)
    assert again.config.quantization_config.to_dict() == ICQConfig(n=10).to_dict()


@pytest.mark.parametrize(
    "config",
    [
        ICQConfig(bits=2, n=2),
        ICQConfig(bits=3, n=2, double_quant=False),
        ICQConfig(codebook="int", search="scale", n=2),
        ICQConfig(objective="none"),
        ICQConfig(objective="mse", block_size=50, group_size=7, n=2),
    ],
    ids=lambda config: f"{config.codebook}{config.bits}-{config.objective}",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kind_of_storage_survives(config, dtype, tmp_path):
    build("llama", tmp_path / "dense", dtype)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=config, dtype=dtype).eval()
    here = outputs(model, "llama")
    assert here.dtype == dtype
    model.save_pretrained(tmp_path / "quantised")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "quantised", dtype=dtype).eval()
    assert torch.equal(outputs(again, "llama"), here)


def test_a_change_of_type_rounds_no_scale(tmp_path):
    build("llama", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=ICQConfig(n=2))
    before = [layer.dequantize(torch.float32) for layer in icq_layers(model).values()]
    model.to(torch.bfloat16)
    after = [layer.dequantize(torch.float32) for layer in icq_layers(model).values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_back_to_a_dense_model(name, tmp_path):
    build(name, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=ICQConfig(n=2)).eval()
    here = outputs(model, name)
    dense = model.dequantize()
    assert not icq_layers(dense)
    torch.testing.assert_close(outputs(dense, name), here)
    dense.save_pretrained(tmp_path / "dense")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "dense").eval()
    torch.testing.assert_close(outputs(again, name), here)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_forward_and_gradient_are_those_of_the_dense_layer(dtype):
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(37, 50, generator=generator), torch.randn(37, generator=generator)
    layer = IcqLinear.from_weight(weight, bias, n=5)
    x = torch.randn(3, 4, 50, generator=generator).to(dtype).requires_grad_()
    y = layer(x)
    reference = nn.functional.linear(x, layer.dequantize(dtype)) + bias.to(dtype)
    torch.testing.assert_close(y, reference, rtol=0, atol=0)
    grad = torch.randn(y.shape, generator=generator).to(dtype)
    (found,) = torch.autograd.grad(y, x, grad)
    (expected,) = torch.autograd.grad(reference, x, grad)
    torch.testing.assert_close(found, expected)


def test_autograd_keeps_no_dense_weight():
    layer = IcqLinear.from_weight(torch.randn(512, 256, generator=torch.Generator().manual_seed(0)), None, n=1)
    x = torch.randn(8, 256, requires_grad=True)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        layer(x).sum().backward()
    assert sum(saved) < 512 * 256 / 10


def test_autocast_decides_the_type():
    layer = IcqLinear.from_weight(torch.eye(64), None, n=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.ones(2, 64)).dtype == torch.bfloat16


def test_gradient_checkpointing_gives_the_same_gradients(tmp_path):
    build("llama", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=ICQConfig(n=2))
    ids = torch.arange(24).view(2, 12)

    def gradients() -> torch.Tensor:
        model.zero_grad()
        model.train()
        model(input_ids=ids, labels=ids).loss.backward()
        return model.get_input_embeddings().weight.grad.clone()

    plain = gradients()
    model.activation_checkpointing_enable()
    torch.testing.assert_close(gradients(), plain)


def test_of_experts_fused_in_one_tensor_it_is_said_that_they_stay_dense(tmp_path, caplog):
    build("mixtral", tmp_path)
    with caplog.at_level("WARNING", logger="lorascope"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=ICQConfig(n=1))
    said = [record.getMessage() for record in caplog.records if "stay dense" in record.getMessage()]
    assert len(said) == 1 and "fused experts" in said[0]
    left = sum(p.numel() for name, p in model.named_parameters() if "experts." in name)
    assert f"{left / 1e6:,.3g} million" in said[0]
    assert any(name.endswith("experts.gate_up_proj") for name in kept_dense(model))


def test_at_most_one_dense_weight_is_in_memory_while_a_model_is_quantised(tmp_path):
    dense = build("llama", tmp_path)
    largest = max(p.numel() for p in dense.parameters())
    dense.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    alive: list[weakref.ref] = []
    most: list[int] = []

    def count(model, name, weight, result):
        alive.append(weakref.ref(weight))
        most.append(sum(there.numel() for ref in alive if (there := ref()) is not None))

    with watch_quantization(count):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=ICQConfig(n=1))
    assert len(most) == 14
    assert max(most) <= 2 * largest


def test_a_saved_model_trains_in_a_trainer_with_checkpointing_and_its_adapter_comes_back(tmp_path):
    build("llama", tmp_path / "dense")
    config = ICQConfig(n=2)
    AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=config).save_pretrained(tmp_path / "q")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "q")
    codes = {name: layer.weight.clone() for name, layer in icq_layers(base).items()}
    names = sorted({name.rpartition(".")[2] for name in icq_layers(base)})
    lora = support_quantised(LoraConfig(r=4, target_modules=names, task_type="CAUSAL_LM"))
    model = get_peft_model(base, lora)
    rows = [{"input_ids": torch.arange(i, i + 12), "labels": torch.arange(i, i + 12)} for i in range(8)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=6,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        activation_checkpointing=True,
        activation_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    for name, layer in icq_layers(model).items():
        assert torch.equal(layer.weight, codes[name.removeprefix("base_model.model.").removesuffix(".base_layer")])
    model.eval()
    here = outputs(model, "llama")
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "q"),
        str(tmp_path / "adapter"),
        config=support_quantised(LoraConfig.from_pretrained(str(tmp_path / "adapter"))),
    ).eval()
    torch.testing.assert_close(outputs(again, "llama"), here, rtol=0, atol=1e-6)


@pytest.mark.parametrize("init", ["pissa", "olora", "corda", "loftq"])
def test_an_adapter_that_takes_a_part_off_the_base_is_refused(init, tmp_path):
    build("llama", tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=ICQConfig(n=1))
    config = LoraConfig(r=2, target_modules=["q_proj"])
    config.init_lora_weights = init
    with pytest.raises(AdapterError, match="quantised") as refused:
        get_peft_model(base, support_quantised(config))
    assert "\n" not in str(refused.value)


def test_layers_that_are_named_stay_dense(tmp_path):
    build("llama", tmp_path)
    config = ICQConfig(n=1, modules_to_not_convert=["lm_head", "down_proj"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    assert len(icq_layers(model)) == 12
    assert isinstance(model.model.layers[0].mlp.down_proj, nn.Linear)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("named", [["down_proj"], []])
def test_the_head_stays_dense_whatever_is_named(tied, named, tmp_path):
    config = AutoConfig.for_model("llama", **GROUPED, tie_word_embeddings=tied)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "dense")
    quantise = ICQConfig(n=1, modules_to_not_convert=named)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=quantise)
    assert len(icq_layers(model)) == 14 - 2 * len(named)
    assert isinstance(model.lm_head, nn.Linear)
    model.save_pretrained(tmp_path / "q")
    assert torch.equal(
        outputs(AutoModelForCausalLM.from_pretrained(tmp_path / "q").eval(), "llama"), outputs(model.eval(), "llama")
    )


def test_a_name_that_no_layer_has_is_refused(tmp_path):
    build("llama", tmp_path)
    with pytest.raises(InputError, match="names 'down_prj', and no layer"):
        AutoModelForCausalLM.from_pretrained(
            tmp_path, quantization_config=ICQConfig(n=1, modules_to_not_convert=["down_prj"])
        )


def test_attention_of_torch_keeps_its_weights(tmp_path):
    options = {k: v for k, v in SMALL.items() if k not in ("vocab_size", "max_position_embeddings")}
    config = SiglipVisionConfig(**options, image_size=8, patch_size=4)
    SiglipVisionModel(config).save_pretrained(tmp_path)
    model = SiglipVisionModel.from_pretrained(tmp_path, quantization_config=ICQConfig(n=1)).eval()
    assert not any(".attention.out_proj" in name for name in icq_layers(model)) and len(icq_layers(model)) == 13
    assert torch.isfinite(model(pixel_values=torch.ones(1, 3, 8, 8)).pooler_output).all()


def test_layers_on_the_disk_are_refused(tmp_path):
    build("llama", tmp_path / "dense")
    where = {"model.layers.1": "disk", "model.layers.0": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    where |= {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu"}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=ICQConfig(n=1))
    model.save_pretrained(tmp_path / "q")
    with pytest.raises(ModelError, match="device_map without 'disk'"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "q", device_map=where, offload_folder=str(tmp_path / "off"))


@pytest.mark.parametrize("init", ["orthogonal", "gaussian"])
def test_starts_that_leave_the_base_alone(init, tmp_path):
    build("llama", tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=ICQConfig(n=1)).eval()
    before = outputs(base, "llama")
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=init)
    model = get_peft_model(base, support_quantised(config)).eval()
    torch.testing.assert_close(outputs(model, "llama"), before, rtol=0, atol=1e-5)
    factors = [p for name, p in model.named_parameters() if "lora_A" in name]
    assert all(p.requires_grad and p.dtype == torch.float32 and bool(p.any()) for p in factors)


def test_a_weight_with_nan_is_refused(tmp_path):
    model = build("llama", tmp_path)
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj\.weight: weight holds NaN or infinity in 1 of"):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=ICQConfig(n=1))


def test_a_damaged_checkpoint_is_refused(tmp_path):
    build("llama", tmp_path / "dense")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=ICQConfig(n=1))
    model.save_pretrained(tmp_path / "q")
    state = load_file(tmp_path / "q" / "model.safetensors")
    key = "model.layers.0.mlp.up_proj.weight_scale_groups"
    state[key] = torch.full_like(state[key], 0x7FC00000)  # NaN
    save_file(state, tmp_path / "q" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"quantised layer 'model\.layers\.0\.mlp\.up_proj' are missing or damaged"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "q")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bits": 8}, "bits 8 is not supported"),
        ({"objective": "max"}, "unknown objective 'max'"),
        ({"codebook": "fp4"}, "unknown code book 'fp4'"),
        ({"bit": 4}, "no option 'bit'"),
    ],
)
def test_wrong_options(options, said):
    with pytest.raises(InputError, match=said):
        ICQConfig(**options)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"objective": "none"}, "shifted and would be read as .*no shifts"),
        ({"codebook": "int"}, "nf4 .* would be read as int4"),
        ({"group_size": 512}, "groups of 256 scales.* would be read as .* groups of 512 scales"),
    ],
)
def test_a_configuration_that_was_changed_is_refused(change, said, tmp_path):
    build("llama", tmp_path / "dense")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=ICQConfig(n=1))
    model.save_pretrained(tmp_path / "q")
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    config["quantization_config"] |= change
    (tmp_path / "q" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=said):
        AutoModelForCausalLM.from_pretrained(tmp_path / "q")


@pytest.mark.parametrize("damage", ["truncated", "missing scales", "other size", "other code", "no method"])
def test_a_damaged_folder_is_refused(damage, tmp_path):
    build("llama", tmp_path / "dense")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=ICQConfig(n=1))
    model.save_pretrained(tmp_path / "q")
    file = tmp_path / "q" / "model.safetensors"
    state = load_file(file)
    key = "model.layers.0.mlp.up_proj.weight"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-64])
    elif damage == "missing scales":
        del state[f"{key}_scale_groups"]
    elif damage == "other size":
        state[key] = state[key][:-3].clone()
    elif damage == "other code":
        state[key][7] ^= 1
    else:
        config = json.loads((tmp_path / "q" / "config.json").read_text())
        config["quantization_config"]["bits"] = 5
        (tmp_path / "q" / "config.json").write_text(json.dumps(config))
    if damage in ("missing scales", "other size", "other code"):
        save_file(state, file, metadata={"format": "pt"})
    with pytest.raises((ModelError, InputError, SafetensorError, RuntimeError)) as refused:
        AutoModelForCausalLM.from_pretrained(tmp_path / "q")
    expected = {
        "truncated": "incomplete metadata|not fully covered|file is",
        "missing scales": "up_proj.*missing or damaged",
        "other size": "up_proj' has 1917 numbers of uint8 where 1920",
        "other code": "up_proj' are not those that were written",
        "no method": "bits 5 is not supported",
    }[damage]
    assert re.search(expected, str(refused.value))


def test_another_method_on_a_quantised_model_is_refused_by_transformers(tmp_path):
    build("llama", tmp_path / "dense")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=ICQConfig(n=1))
    model.save_pretrained(tmp_path / "q")
    with pytest.raises(ValueError, match="quantized with"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "q", quantization_config=BitsAndBytesConfig(load_in_4bit=True))
