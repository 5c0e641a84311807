from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from .tiny import LANDS, NAMES, make_model, make_tokenizer


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture
def model() -> LlamaForCausalLM:
    return make_model()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A user's own folder: towns and their countries."""
    folder = tmp_path / "data"
    folder.mkdir()
    choices = sorted(set(LANDS))
    rows = [
        {"question": f"Where is {name}?", "choices": choices, "answer": choices.index(land)}
        for name, land in zip(NAMES, LANDS, strict=True)
    ]
    for split, some in (("train", rows * 3), ("test", rows[::2])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return folder


@pytest.fixture
def features() -> Callable[[int], list[dict[str, list[int]]]]:
    """Random rows, each with its own length."""

    def make(count: int) -> list[dict[str, list[int]]]:
        generator = torch.Generator().manual_seed(1)
        made = []
        for index in range(count):
            ids = torch.randint(0, 250, (6 + index % 5,), generator=generator).tolist()
            made.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100, -100, *ids[2:]]})
        return made

    return make
