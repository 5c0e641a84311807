"""LoRA over layers that lorascope quantised, inside PEFT."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Linear
from torch import nn

from lorascope.core.errors import AdapterError
from lorascope.quantization import IcqLinear


class IcqLora(Linear):  # type: ignore[misc]
    """PEFT's LoRA of a dense layer, over an `IcqLinear`: all but what changes the weight under it."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: LoraConfig, **kwargs: Any) -> None:
        _check(config)
        super().__init__(base_layer, adapter_name, config=config, **kwargs)

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        inner: Any = getattr(module, "base_layer", module)
        return int(inner.in_features), int(inner.out_features)

    def update_layer(self, adapter_name: str, *args: Any, config: LoraConfig, **kwargs: Any) -> None:
        """Add an adapter.

        Raises:
            AdapterError: Its start takes a part off the weight.
        """
        _check(config)
        super().update_layer(adapter_name, *args, config=config, **kwargs)

    def orthogonal_init(self, adapter_name: str) -> None:
        """PEFT's orthogonal start, which takes the type of the factors from the base weight: here that is of codes."""
        base: Any = self.get_base_layer()
        typed = SimpleNamespace(weight=torch.empty(0, dtype=base.compute_dtype))
        names = ("r", "in_features", "out_features", "lora_A", "lora_B")
        parts = {name: getattr(self, name) for name in names}
        Linear.orthogonal_init(SimpleNamespace(get_base_layer=lambda: typed, **parts), adapter_name)

    def merge(self, *args: Any, **kwargs: Any) -> None:
        """Refused: codes of a few bits cannot hold the update.

        Raises:
            AdapterError: Always.
        """
        raise AdapterError(
            "an adapter cannot be merged into quantised weights: call dequantize() on the base model and put the adapter on "
            "that, or serve base and adapter side by side"
        )


def _check(config: LoraConfig) -> None:
    if config.init_lora_weights not in (True, False, "gaussian", "orthogonal", "eva"):
        raise AdapterError(
            f"init_lora_weights '{config.init_lora_weights}' takes a part off the base weight, which quantised codes cannot "
            "give: use True, 'gaussian', 'orthogonal' or 'eva'"
        )


def support_quantised(config: LoraConfig) -> LoraConfig:
    """Teach a PEFT configuration the layers of a model that was loaded with `ICQConfig`.

    Args:
        config: Any LoRA configuration; changed in place.

    Returns:
        The same configuration, for `get_peft_model` or `PeftModel.from_pretrained(..., config=...)`.

    Example:
        >>> support_quantised(LoraConfig(r=8, target_modules=["q_proj"])).r
        8
    """
    config._register_custom_module({IcqLinear: IcqLora})
    return config
