"""Checks of an adapter against its base model, before a number is computed."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from lorascope.adapters._peft import _PREFIX, lora_layers
from lorascope.core.errors import AdapterError

_SAMPLES = 16


def check_rank(model: nn.Module) -> None:
    """Refuse ranks that are larger than the layer they adapt.

    Args:
        model: A model with LoRA layers.

    Raises:
        AdapterError: Some rank is over the layer's smaller side; such an adapter has more numbers than the layer.
    """
    for name, layer in lora_layers(model).items():
        smallest = min(int(layer.in_features), int(layer.out_features))
        for adapter, rank in layer.r.items():
            # Gates with one output (mixture-of-experts) are adapted by "all-linear" with whatever rank the rest has.
            if int(rank) > smallest > 1:
                raise AdapterError(
                    f"rank {rank} of adapter '{adapter}' is over the smaller side {smallest} of layer '{name}' "
                    f"({layer.in_features} -> {layer.out_features}): use a rank of at most {smallest}, or give this "
                    "layer its own in rank_pattern"
                )


def fingerprint(model: nn.Module) -> str:
    """Short hash of a base model's weights, the same with and without an adapter on it.

    Names, shapes and 16 evenly spaced values (as bfloat16) of every frozen parameter are hashed, so that a full copy in
    float32 and one in bfloat16 agree, and other weights of the same architecture do not.

    Args:
        model: A base model, or one with LoRA layers on it.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    parameters = {}
    for name, parameter in model.named_parameters():
        if "lora_" in name or ".modules_to_save." in name or "trainable_tokens_" in name:
            continue
        clean = _PREFIX.sub("", name).replace(".base_layer.", ".").replace(".original_module.", ".")
        parameters[clean] = parameter.detach()
    for name in sorted(parameters):
        flat = parameters[name].reshape(-1)
        digest.update(f"{name}{tuple(parameters[name].shape)}".encode())
        if flat.numel():
            picks = torch.linspace(0, flat.numel() - 1, _SAMPLES, dtype=torch.float64).long()
            values = flat[picks.to(flat.device)].to(device="cpu", dtype=torch.bfloat16).view(torch.uint8)
            digest.update(bytes(values.tolist()))
    return digest.hexdigest()[:16]
