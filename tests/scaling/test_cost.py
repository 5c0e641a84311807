"""The cost model against counted operations, saved files, counted parameters and measured memory."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from lorascope.core import InputError, ModelError
from lorascope.core.errors import DataError
from lorascope.scaling.cost import adapter_file_bytes, adapter_parameters, cost_of, targets_of
from lorascope.scaling.cost_shapes import ModelShape
from lorascope.training import RunSpec, lora_config

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def without(*names: str) -> dict[str, Any]:
    return {key: value for key, value in SMALL.items() if key not in names}


CONFIGS: dict[str, Any] = {
    "llama": hf.LlamaConfig(**SMALL, num_key_value_heads=2),
    "llama-tied": hf.LlamaConfig(**SMALL, num_key_value_heads=4, tie_word_embeddings=True),
    "mistral": hf.MistralConfig(**SMALL, num_key_value_heads=2, head_dim=16),
    "qwen2": hf.Qwen2Config(**SMALL, num_key_value_heads=2),
    "phi3": hf.Phi3Config(**SMALL, num_key_value_heads=2),
    "gpt2": hf.GPT2Config(
        vocab_size=96, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
    "opt": hf.OPTConfig(**without("intermediate_size"), ffn_dim=80, word_embed_proj_dim=32),
    "gpt_neox": hf.GPTNeoXConfig(**SMALL),
    "mixtral": hf.MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=6, num_experts_per_tok=2),
    "qwen2_moe": hf.Qwen2MoeConfig(
        **SMALL,
        num_key_value_heads=2,
        num_experts=8,
        num_experts_per_tok=3,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=40,
    ),
}

MIXTURES = ("mixtral", "qwen2_moe")


def build(config: Any, *, rank: int = 4, targets: Any = "all-linear", attention: str = "eager") -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # The counter knows nothing of grouped matrix products.
        experts = {"experts_implementation": "eager"} if config.model_type in MIXTURES else {}
        model = hf.AutoModelForCausalLM.from_config(config, attn_implementation=attention, **experts)
        if experts and targets == "all-linear":
            return get_peft_model(model, lora_config(model, RunSpec(rank=rank)))
        fan = {"fan_in_fan_out": True} if config.model_type == "gpt2" else {}
        return get_peft_model(model, LoraConfig(r=rank, target_modules=targets, task_type="CAUSAL_LM", **fan))


def flops(model: Any, rows: int, length: int, *, backward: bool) -> float:
    ids = torch.arange(rows * length).reshape(rows, length) % 90
    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=ids, labels=ids).loss
        if backward:
            loss.backward()
    return float(counter.get_total_flops())


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_flops_and_file_of_each_architecture(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    base = hf.AutoModelForCausalLM.from_config(config)
    shape = ModelShape.from_config(config.to_dict())
    assert shape.distinct_parameters == sum(p.numel() for p in base.parameters())

    model = build(config)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert adapter_parameters(shape, 4) == trained

    found = cost_of(shape, rank=4, batch_size=3, length=24, attention="eager")
    assert found.forward_flops == pytest.approx(flops(model, 3, 24, backward=False), rel=0.01)
    assert found.step_flops == pytest.approx(flops(model, 3, 24, backward=True), rel=0.02)

    model.save_pretrained(tmp_path)
    assert found.adapter_bytes == (tmp_path / "adapter_model.safetensors").stat().st_size


@pytest.mark.parametrize("targets", [["q_proj"], ["o_proj", "down_proj"], ["down_proj"], ["gate_proj", "up_proj"]])
def test_named_targets(targets: list[str], tmp_path: Path) -> None:
    model = build(CONFIGS["llama"], targets=targets, rank=7)
    shape = ModelShape.from_config(CONFIGS["llama"].to_dict())
    found = cost_of(shape, rank=7, batch_size=2, length=16, attention="eager", target_modules=targets)
    assert found.step_flops == pytest.approx(flops(model, 2, 16, backward=True), rel=0.02)
    model.save_pretrained(tmp_path)
    assert found.adapter_bytes == (tmp_path / "adapter_model.safetensors").stat().st_size


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_with_adapters_on_attention_alone(name: str, tmp_path: Path) -> None:
    model = build(CONFIGS[name], targets=["q_proj", "v_proj"], rank=5)
    shape = ModelShape.from_config(CONFIGS[name].to_dict())
    found = cost_of(shape, rank=5, batch_size=4, length=20, attention="eager", target_modules=["q_proj", "v_proj"])
    assert found.forward_flops == pytest.approx(flops(model, 4, 20, backward=False), rel=0.01)
    assert found.step_flops == pytest.approx(flops(model, 4, 20, backward=True), rel=0.02)
    model.save_pretrained(tmp_path)
    assert found.adapter_bytes == (tmp_path / "adapter_model.safetensors").stat().st_size


def test_gradient_checkpointing_repeats_the_forward_pass() -> None:
    model = build(CONFIGS["llama"])
    model.enable_input_require_grads()
    base = model.get_base_model()
    getattr(base, "activation_checkpointing_enable", base.gradient_checkpointing_enable)()
    model.train()
    shape = ModelShape.from_config(CONFIGS["llama"].to_dict())
    found = cost_of(shape, rank=4, batch_size=2, length=16, attention="eager", gradient_checkpointing=True)
    assert found.step_flops == pytest.approx(flops(model, 2, 16, backward=True), rel=0.03)
    plain = cost_of(shape, rank=4, batch_size=2, length=16, attention="eager")
    assert found.activation_bytes < plain.activation_bytes
    assert found.step_flops > 1.2 * plain.step_flops


_CHILD = """
import json, sys, torch, transformers as hf
from peft import LoraConfig, get_peft_model
from lorascope.training import RunSpec, lora_config

def peak():
    # Not ru_maxrss: that is handed down from the process that started this one.
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024

def train(kind, config, rows, length, rank):
    config = hf.CONFIG_MAPPING[kind](**config)
    experts = {"experts_implementation": "eager"} if kind == "mixtral" else {}
    with torch.device("meta"):
        model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", **experts)
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.01)
    fan = {"fan_in_fan_out": True} if kind == "gpt2" else {}
    plain = LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM", **fan)
    model = get_peft_model(model, lora_config(model, RunSpec(rank=rank)) if experts else plain)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = torch.arange(rows * length).reshape(rows, -1) % config.vocab_size
    for _ in range(2):
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

torch.set_num_threads(1)
small, values = json.loads(sys.argv[1])
train(**small)
before = peak()
train(**values)
print(json.dumps({"peak": peak() - before}))
"""


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize(("rows", "length", "rank"), [(4, 128, 16), (8, 192, 64)])
def test_peak_memory_of_a_real_process(kind: str, rows: int, length: int, rank: int) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("peak memory is read from /proc")
    if kind != "gpt2":
        config = {
            **SMALL,
            "vocab_size": 8000,
            "hidden_size": 384,
            "intermediate_size": 1024,
            "num_hidden_layers": 8,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
        }
        if kind == "mixtral":
            config |= {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 512}
    else:
        config = {"vocab_size": 8000, "n_embd": 384, "n_layer": 8, "n_head": 6, "n_positions": 512}
        config |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2}
    values = {"kind": kind, "config": config, "rows": rows, "length": length, "rank": rank}
    tiny = {"num_hidden_layers": 1, "hidden_size": 48} if kind != "gpt2" else {"n_layer": 1, "n_embd": 48}
    small = {**values, "config": {**config, **tiny}, "rows": 1, "length": 16, "rank": 4}
    # glibc keeps freed blocks of its heap: with each tensor in a mapping of its own, the process holds what it needs.
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, json.dumps([small, values])],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"},
    )
    measured = json.loads(child.stdout.splitlines()[-1])["peak"]
    shape = ModelShape.from_config({"model_type": kind, **config})
    predicted = cost_of(shape, rank=rank, batch_size=rows, length=length).peak_bytes
    assert predicted == pytest.approx(measured, rel=0.2)


def test_micro_batches_save_memory_and_no_operations() -> None:
    shape = ModelShape(hidden_size=64, layers=4, heads=4, intermediate_size=256, vocab_size=500)
    whole = cost_of(shape, rank=8, batch_size=16, length=64)
    split = cost_of(shape, rank=8, batch_size=16, length=64, micro_batch_size=2)
    assert split.step_flops == whole.step_flops
    assert split.activation_bytes == whole.activation_bytes / 8
    assert cost_of(shape, rank=8, batch_size=16, length=64, steps=5).flops == 5 * whole.step_flops


def test_dtype_and_optimizer_change_memory() -> None:
    shape = ModelShape(hidden_size=64, layers=4, heads=4, intermediate_size=256, vocab_size=500)
    plain = cost_of(shape, rank=8, batch_size=1, length=8)
    assert cost_of(shape, rank=8, batch_size=1, length=8, dtype="bfloat16").weight_bytes == plain.weight_bytes / 2
    nf4 = cost_of(shape, rank=8, batch_size=1, length=8, dtype="nf4").weight_bytes
    assert math.isclose(nf4 / plain.weight_bytes, 0.53125 / 4)
    assert cost_of(shape, rank=8, batch_size=1, length=8, optimizer="sgd").optimizer_bytes == plain.optimizer_bytes / 2


def test_a_mixture_computes_with_few_experts_and_holds_all() -> None:
    def shape(experts: int, taken: int) -> ModelShape:
        return ModelShape(
            hidden_size=64,
            layers=4,
            heads=4,
            intermediate_size=256,
            vocab_size=500,
            layout="mixtral",
            experts=experts,
            experts_per_token=taken,
        )

    few, many, wide = shape(4, 2), shape(16, 2), shape(16, 4)
    outside = {"rank": 8, "batch_size": 2, "length": 32, "target_modules": ["q_proj", "v_proj"]}
    one, two, three = (cost_of(item, **outside) for item in (few, many, wide))
    assert two.step_flops == pytest.approx(one.step_flops, rel=0.01)  # the router alone is larger
    assert two.weight_bytes > 3 * one.weight_bytes
    assert three.step_flops > 1.3 * two.step_flops
    assert three.weight_bytes == two.weight_bytes
    assert many.active_parameters < many.distinct_parameters / 4
    # An adapter on the experts is added to the whole stack, whatever the tokens take.
    on_experts = [cost_of(item, rank=8, batch_size=2, length=32).step_flops for item in (few, many)]
    assert on_experts[1] > 1.3 * on_experts[0]
    dense = ModelShape(hidden_size=64, layers=4, heads=4, intermediate_size=256, vocab_size=500)
    assert dense.active_parameters == dense.distinct_parameters
    # 4 operations an active parameter and token, as the book of a sweep takes it, without embeddings
    active = many.active_parameters - 500 * 64
    assert two.step_flops == pytest.approx(4 * active * 64, rel=0.2)


def test_shared_layers_keep_their_operations_and_lose_weights() -> None:
    shape = ModelShape(hidden_size=64, layers=4, heads=4, intermediate_size=256, vocab_size=500)
    shared = ModelShape(hidden_size=64, layers=4, heads=4, intermediate_size=256, vocab_size=500, parameters=100_000)
    one, two = (cost_of(item, rank=8, batch_size=1, length=8) for item in (shape, shared))
    assert one.flops == two.flops
    assert two.weight_bytes == 400_000


def test_bad_values_are_refused(tmp_path: Path) -> None:
    shape = ModelShape(hidden_size=64, layers=4, heads=4, intermediate_size=256, vocab_size=500)
    with pytest.raises(InputError, match="unknown target module 'q_prj': did you mean 'q_proj'"):
        targets_of(shape, ["q_prj"])
    with pytest.raises(InputError, match="rank 0 must be at least 1"):
        adapter_file_bytes(shape, 0)
    with pytest.raises(InputError, match="length 0 must be at least 1"):
        cost_of(shape, rank=1, batch_size=1, length=0)
    with pytest.raises(InputError, match="unknown type of weights 'fp8'"):
        cost_of(shape, rank=1, batch_size=1, length=1, dtype="fp8")
    with pytest.raises(InputError, match="unknown attention 'flash'"):
        cost_of(shape, rank=1, batch_size=1, length=1, attention="flash")
    with pytest.raises(InputError, match="not saved as 'nf4'"):
        adapter_file_bytes(shape, 1, dtype="nf4")
    with pytest.raises(InputError, match="layers 0 must be a whole number"):
        ModelShape(hidden_size=64, layers=0, heads=4, intermediate_size=256, vocab_size=500)
    with pytest.raises(ModelError, match="does not know model_type 'mamba'"):
        ModelShape.from_config({"model_type": "mamba"})
    plain = {"hidden_size": 64, "layers": 4, "heads": 4, "intermediate_size": 256, "vocab_size": 500}
    with pytest.raises(InputError, match="layout 'mixtral' needs experts"):
        ModelShape(**plain, layout="mixtral")
    with pytest.raises(InputError, match="layout 'llama' has no experts"):
        ModelShape(**plain, experts=4)
    with pytest.raises(InputError, match="experts_per_token 5 is more than the 4 experts"):
        ModelShape(**plain, layout="mixtral", experts=4, experts_per_token=5)
    mixture = ModelShape(**plain, layout="mixtral", experts=4, experts_per_token=2)
    with pytest.raises(InputError, match="unknown target module 'gate_up_proj'"):
        targets_of(mixture, ["gate_up_proj"])
    with pytest.raises(ModelError, match="experts in every block"):
        ModelShape.from_config({**CONFIGS["qwen2_moe"].to_dict(), "decoder_sparse_step": 2})
    with pytest.raises(ModelError, match="has no 'vocab_size'"):
        ModelShape.from_config({"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8})
    with pytest.raises(DataError, match="no file"):
        ModelShape.from_config(tmp_path)
