"""Checks of an adapter against its base model, before a number is computed."""

from __future__ import annotations

import hashlib

import torch
from peft import PeftModel
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


def fingerprint(model: nn.Module, dtype: torch.dtype = torch.bfloat16) -> str:
    """Short hash of a base model's weights, the same with and without an adapter on it.

    Names, shapes and 16 evenly spaced values of every frozen parameter are hashed as bfloat16, so that a full copy in
    float32 and one in bfloat16 agree, and other weights of the same architecture do not. Weights in quantised codes are
    left out: bitsandbytes reorders them in use, and what was rounded elsewhere may differ in one. So of a quantised model
    the fingerprint tells which dense model it was made from, by its embeddings and norms.

    Args:
        model: A base model, or one with LoRA layers on it.
        dtype: Type that the values are rounded to first. A copy in float16 has lost what bfloat16 needs: it agrees with
            one in float32 when both are hashed as float16.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    parameters = {}
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point() or getattr(parameter, "quant_state", None) is not None:
            continue
        if "lora_" in name or ".modules_to_save." in name or "trainable_tokens_" in name:
            continue
        clean = _PREFIX.sub("", name).replace(".base_layer.", ".").replace(".original_module.", ".")
        parameters[clean] = parameter.detach()
    for name in sorted(parameters):
        flat = parameters[name].reshape(-1)
        digest.update(f"{name}{tuple(parameters[name].shape)}".encode())
        if flat.numel():
            picks = torch.linspace(0, flat.numel() - 1, _SAMPLES, dtype=torch.float64).long()
            values = flat[picks.to(flat.device)].to(device="cpu", dtype=dtype).view(torch.uint8)
            digest.update(bytes(values.tolist()))
    return digest.hexdigest()[:16]


def adapter_digest(model: nn.Module) -> str | None:
    """Hash of everything that adapters put on a model: their weights, scalings and layers; None without an adapter.

    Example:
        >>> adapter_digest(nn.Linear(2, 2)) is None
        True
    """
    if not isinstance(model, PeftModel):
        return None
    layers = sorted(
        (name, str(layer.scaling), str(layer.active_adapters)) for name, layer in lora_layers(model).items()
    )
    digest = hashlib.sha256(repr(layers).encode())
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name or ".modules_to_save." in name or "trainable_tokens_" in name:
            digest.update(name.encode())
            digest.update(parameter.detach().reshape(-1).contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def fingerprints(model: nn.Module) -> dict[str, str]:
    """The fingerprints that a model's weights allow; those that two copies of one model share are equal.

    Args:
        model: A base model, or one with LoRA layers on it, not quantised.

    Returns:
        ``base_fingerprint`` (not of float16 weights) and ``base_fingerprint_float16`` (not of bfloat16 weights).
    """
    dtype = next(model.parameters()).dtype
    kinds = (
        ("base_fingerprint", torch.bfloat16, torch.float16),
        ("base_fingerprint_float16", torch.float16, torch.bfloat16),
    )
    return {name: fingerprint(model, rounded) for name, rounded, lost in kinds if dtype != lost}
