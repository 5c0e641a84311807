"""Tiny random models of many architectures, each with a LoRA adapter that does something."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from peft import LoraConfig, PeftModel, get_peft_model

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclasses.dataclass(frozen=True)
class Architecture:
    build: Callable[[], hf.PreTrainedModel]
    components: int
    lora: dict[str, Any] = dataclasses.field(default_factory=lambda: {"target_modules": "all-linear"})
    kind: str = "causal"


def _causal(config: Any) -> Callable[[], hf.PreTrainedModel]:
    return lambda: hf.AutoModelForCausalLM.from_config(config)


def _bert() -> hf.PreTrainedModel:
    config = hf.BertConfig(**{k: v for k, v in SMALL.items() if k != "num_key_value_heads"}, num_labels=3)
    return hf.AutoModelForSequenceClassification.from_config(config)


def _vit() -> hf.PreTrainedModel:
    config = hf.ViTConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    config.num_labels = 3
    return hf.AutoModelForImageClassification.from_config(config)


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(_causal(hf.LlamaConfig(**SMALL)), 14),
    "mistral": Architecture(_causal(hf.MistralConfig(**SMALL, sliding_window=4)), 14),
    "qwen2": Architecture(_causal(hf.Qwen2Config(**SMALL)), 14),
    "qwen3": Architecture(_causal(hf.Qwen3Config(**SMALL, head_dim=8)), 14),
    "phi3": Architecture(_causal(hf.Phi3Config(**SMALL)), 8),
    "gemma": Architecture(_causal(hf.GemmaConfig(**SMALL, head_dim=8)), 14),
    "gemma2": Architecture(_causal(hf.Gemma2Config(**SMALL, head_dim=8)), 14),
    "gpt2": Architecture(
        _causal(
            hf.GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2)
        ),
        8,
        {"target_modules": "all-linear", "fan_in_fan_out": True},
    ),
    "opt": Architecture(
        _causal(
            hf.OPTConfig(
                **{k: v for k, v in SMALL.items() if k not in ("intermediate_size", "num_key_value_heads")},
                ffn_dim=24,
                word_embed_proj_dim=16,
            )
        ),
        12,
    ),
    "gpt_neox": Architecture(
        _causal(hf.GPTNeoXConfig(**{k: v for k, v in SMALL.items() if k != "num_key_value_heads"})), 8
    ),
    "mixtral": Architecture(
        _causal(hf.MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2)),
        10,
        {
            "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
            "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
        },
    ),
    "qwen2_moe": Architecture(
        _causal(
            hf.Qwen2MoeConfig(
                **SMALL,
                num_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=8,
                shared_expert_intermediate_size=8,
            )
        ),
        16,
    ),
    "bert": Architecture(_bert, 13, {"target_modules": ["query", "key", "value", "dense"]}, "classifier"),
    "vit": Architecture(_vit, 13, {"target_modules": "all-linear"}, "image"),
}


def adapted(name: str, *, seed: int = 0, scale: float = 0.2, rank: int = 4, **lora: Any) -> PeftModel:
    """A tiny model of an architecture with a LoRA adapter whose factors are random and not zero."""
    architecture = ARCHITECTURES[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(
            architecture.build(), LoraConfig(r=rank, lora_alpha=2 * rank, **{**architecture.lora, **lora})
        )
        randomise(model, scale)
    return model.eval()


def randomise(model: torch.nn.Module, scale: float) -> None:
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            torch.nn.init.normal_(parameter, std=scale)


def batch_for(
    name: str, *, seed: int = 0, rows: int = 3, length: int = 7, padded: bool = True
) -> dict[str, torch.Tensor]:
    """One batch for an architecture; the last row is padded."""
    generator = torch.Generator().manual_seed(seed)
    kind = ARCHITECTURES[name].kind
    labels = torch.randint(0, 3, (rows,), generator=generator)
    if kind == "image":
        return {"pixel_values": torch.randn(rows, 3, 8, 8, generator=generator), "labels": labels}
    ids = torch.randint(3, 64, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    if padded:
        ids[-1, length - 3 :], mask[-1, length - 3 :] = 0, 0
    batch = {"input_ids": ids, "attention_mask": mask}
    if kind == "causal":
        lm = ids.masked_fill(mask == 0, -100)
        lm[:, :3] = -100
        return {**batch, "labels": lm}
    return {**batch, "labels": labels}
