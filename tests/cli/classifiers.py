"""Tiny classifiers with adapters, saved as a user's folders hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from peft import LoraConfig, get_peft_model

from tests.conftest import make_tokenizer

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
NAMES = {0: "bad", 1: "fair", 2: "good"}
TEXTS = ["a b c", "d", "e f g h i", "b b", "z y x w", "k a", "m n o p q r", "c"]


def save(model: hf.PreTrainedModel, folder: Path, tokenizer: bool = True) -> Path:
    model.save_pretrained(folder)
    if tokenizer:
        make_tokenizer().save_pretrained(folder)
    return folder


def save_bert(folder: Path, **more: Any) -> Path:
    torch.manual_seed(0)
    config = hf.BertConfig(**SMALL, **({"id2label": NAMES} | more))
    return save(hf.BertForSequenceClassification(config), folder)


def save_llama(folder: Path, **more: Any) -> Path:
    """A language model: it has no head for classes, and its configuration does not say how many there are."""
    torch.manual_seed(0)
    config = hf.LlamaConfig(**{**SMALL, "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2, **more})
    return save(hf.LlamaForCausalLM(config), folder)


def save_adapter(base: hf.PreTrainedModel, folder: Path, **lora: Any) -> Path:
    """An adapter that does something, with a head that is not the base model's."""
    torch.manual_seed(1)
    model = get_peft_model(base, LoraConfig(r=2, init_lora_weights=False, **lora))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    return folder


def bert_adapter(base: Path, folder: Path, labels: int = 3, **lora: Any) -> Path:
    model = hf.AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels, ignore_mismatched_sizes=True)
    options = {"task_type": "SEQ_CLS", "target_modules": ["query", "value", "dense"], **lora}
    return save_adapter(model, folder, **options)


def llama_adapter(base: Path, folder: Path, labels: int = 4, **lora: Any) -> Path:
    model = hf.AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
    return save_adapter(model, folder, task_type="SEQ_CLS", target_modules="all-linear", **lora)


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path
