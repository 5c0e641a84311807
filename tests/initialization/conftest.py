from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tests.measuring.architectures import ARCHITECTURES, batch_for


@pytest.fixture
def fresh() -> Callable[..., PeftModel]:
    """A tiny model of an architecture with an adapter as PEFT makes it."""

    def make(
        name: str = "llama", *, seed: int = 0, rank: int = 4, dtype: torch.dtype | None = None, **lora: Any
    ) -> PeftModel:
        architecture = ARCHITECTURES[name]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            base = architecture.build()
            if dtype is not None:
                base = base.to(dtype)
            config = LoraConfig(r=rank, lora_alpha=2 * rank, **{**architecture.lora, **lora})
            return get_peft_model(base, config).eval()

    return make


@pytest.fixture
def batches() -> Callable[..., list[dict[str, torch.Tensor]]]:
    def make(name: str = "llama", count: int = 3, **options: Any) -> list[dict[str, torch.Tensor]]:
        return [batch_for(name, seed=seed, **options) for seed in range(count)]

    return make
