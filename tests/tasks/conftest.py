"""Tiny random models and a byte-level tokenizer, so that nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

VOCABULARY = 300


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return make_tokenizer()


def make_tokenizer(**special: Any) -> PreTrainedTokenizerBase:
    """Bytes, two merged pairs (so that joint tokenisation matters) and special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*letters, "Ġt", "Ġth", "he", "er"])}
    core = Tokenizer(models.BPE(vocabulary, [("Ġ", "t"), ("Ġt", "h"), ("h", "e"), ("e", "r")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = {"eos_token": "<eos>", "pad_token": "<pad>", **special}
    made = PreTrainedTokenizerFast(tokenizer_object=core, **{k: v for k, v in special.items() if v is not None})
    assert len(made) <= VOCABULARY
    return made


_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**_COMMON, num_key_value_heads=2),
    "mistral-window": lambda: transformers.MistralConfig(**_COMMON, num_key_value_heads=2, sliding_window=8),
    "gemma2-window": lambda: transformers.Gemma2Config(**_COMMON, num_key_value_heads=2, head_dim=8, sliding_window=8),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=512, bos_token_id=0, eos_token_id=0
    ),
    "opt": lambda: transformers.OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        word_embed_proj_dim=32,
    ),
    "mamba": lambda: transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4),
}


@pytest.fixture(scope="session")
def make_model() -> Callable[[str], PreTrainedModel]:
    made: dict[str, PreTrainedModel] = {}

    def make(name: str) -> PreTrainedModel:
        if name not in made:
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=torch.float32)
            with torch.no_grad():  # far from uniform, so that disagreement would show
                for parameter in model.parameters():
                    parameter.mul_(1 if name == "mamba" else 4)
            made[name] = model.eval()
        return made[name]

    return make


QUESTIONS = [
    {"question": "What is the colour of snow?", "choices": ["white", "the colour of coal", "red"], "answer": 0},
    {"question": "Where do fish live?", "choices": ["on the moon", "in the water"], "answer": 1},
    {"question": "Who wrote there?", "choices": ["he", "there", "their father", "a long row of letters"], "answer": 2},
    {"question": "Which is heavier, lead or a feather?", "choices": ["lead", "a feather"], "answer": 0},
    {"question": "Ist Käse weiß?", "choices": ["größer", "weiß", "nein"], "answer": 1},
]


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Write rows (mappings, or raw text and bytes) into files of a folder."""

    def write(**splits: Any) -> Path:
        folder = tmp_path / "rows"
        folder.mkdir(exist_ok=True)
        for split, rows in splits.items():
            lines = [row if isinstance(row, str | bytes) else json.dumps(row, ensure_ascii=False) for row in rows]
            raw = b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines)
            (folder / f"{split}.jsonl").write_bytes(raw)
        return folder

    return write
