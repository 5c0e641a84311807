"""Quantising models on load: every architecture, saved and loaded again, trained through, and refused when damaged."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
)

from lorascope.core.errors import InputError, ModelError
from lorascope.quantization import ICQConfig, IcqLinear, icq_layers, quantize_icq

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
    "phi3": (GROUPED | {"pad_token_id": 0}, 8),
    "gemma": (GROUPED | {"head_dim": 12}, 14),
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


def test_back_to_a_dense_model(tmp_path):
    build("llama", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=ICQConfig(n=2)).eval()
    here = outputs(model, "llama")
    dense = model.dequantize()
    assert not icq_layers(dense)
    torch.testing.assert_close(outputs(dense, "llama"), here)


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


def test_layers_that_are_named_stay_dense(tmp_path):
    build("llama", tmp_path)
    config = ICQConfig(n=1, modules_to_not_convert=["lm_head", "down_proj"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    assert len(icq_layers(model)) == 12
    assert isinstance(model.model.layers[0].mlp.down_proj, nn.Linear)


def test_a_weight_with_nan_is_refused(tmp_path):
    model = build("llama", tmp_path)
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    model.save_pretrained(tmp_path)
    # transformers prints our line, which names the layer, in its report.
    with pytest.raises(RuntimeError, match="conversion of the weights"):
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


def test_another_method_on_a_quantised_model_is_refused_by_transformers(tmp_path):
    build("llama", tmp_path / "dense")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=ICQConfig(n=1))
    model.save_pretrained(tmp_path / "q")
    with pytest.raises(ValueError, match="quantized with"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "q", quantization_config=BitsAndBytesConfig(load_in_4bit=True))
