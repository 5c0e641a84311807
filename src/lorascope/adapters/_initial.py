"""Writing an adapter's first weights, and the base weights under them, in PEFT's layers."""

from __future__ import annotations

import math
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from transformers.pytorch_utils import Conv1D

from lorascope.adapters._peft import Component, components
from lorascope.core.errors import AdapterError

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def is_quantised(base: nn.Module) -> bool:
    """Whether a frozen layer holds its weight in a form that cannot be changed by adding to it."""
    weight = getattr(base, "weight", None)
    plain = isinstance(weight, Tensor) and weight.dtype in _FLOATS and weight.dim() == 2
    return not plain or hasattr(weight, "quant_state") or hasattr(base, "dequantize")


def base_weight(component: Component) -> Tensor:
    """The frozen weight as float32 of (d_out, d_in), a copy.

    Raises:
        AdapterError: The layer is quantised.
    """
    if is_quantised(component.base):
        raise AdapterError(
            f"layer '{component.name}' is quantised ({type(component.base).__name__}): its weight can't be split between "
            "base and adapter; take a mode that leaves the base as it is, such as fisher"
        )
    untyped: Any = component.base
    weight: Tensor = untyped.weight.detach().to(torch.float32, copy=True)
    return weight.T.contiguous() if isinstance(component.base, Conv1D) else weight


def set_base_weight(component: Component, weight: Tensor) -> None:
    """Put a float32 weight of (d_out, d_in) into the frozen layer, in its own type."""
    untyped: Any = component.base
    with torch.no_grad():
        untyped.weight.copy_(weight.T if isinstance(component.base, Conv1D) else weight)


def factor_parameters(component: Component, adapter: str) -> tuple[nn.Parameter, nn.Parameter, float]:
    """The trainable factors A (r, d_in) and B (d_out, r) of one adapter, and its scaling.

    Of an elastic adapter they come without their connections, whose strengths are zero at the start.
    """
    layer: Any = component.module
    first, second = (_trained(factors[adapter]) for factors in (layer.lora_A, layer.lora_B))
    return first, second, float(layer.scaling[adapter])


def _trained(factor: Any) -> nn.Parameter:
    parameter: nn.Parameter = factor.parametrizations.weight.original if is_parametrized(factor) else factor.weight
    return parameter


def write_factors(component: Component, adapter: str, a: Tensor, b: Tensor | None) -> None:
    """Put factors into an adapter in place; without B it is zero."""
    first, second, _ = factor_parameters(component, adapter)
    with torch.no_grad():
        first.copy_(a)
        if b is None:
            second.zero_()
        else:
            second.copy_(b)


def set_rank(model: nn.Module, component: Component, adapter: str, rank: int) -> None:
    """Give one layer of an adapter another rank, with the same scaling; fresh weights, B = 0.

    The configuration does not know of it before `write_patterns`.
    """
    layer = component.module
    assert isinstance(layer, LoraLayer)
    if int(layer.r[adapter]) == rank:
        return
    untyped: Any = model
    config = untyped.peft_config[adapter]
    root = math.sqrt(rank) if config.use_rslora else rank
    alpha = float(layer.scaling[adapter]) * root
    trainable = next(layer.lora_A[adapter].parameters()).requires_grad
    layer.update_layer(adapter, r=rank, lora_alpha=alpha, config=config)
    for factor in (layer.lora_A[adapter], layer.lora_B[adapter]):
        factor.requires_grad_(trainable)


def write_patterns(model: nn.Module, adapter: str) -> None:
    """Write every layer's own rank and alpha into the configuration, so that PEFT makes the same layers when it loads.

    What the user's patterns said is in the layers already. PEFT takes the first key that matches, and a file's keys are
    sorted: patterns of the user's beside these names would win by their alphabet.
    """
    untyped: Any = model
    config = untyped.peft_config[adapter]
    found = [c for c in components(model) if not c.whole_module]
    names = [c.name for c in found]
    # A key matches whatever ends with it: one that is the end of another layer's name must match from the start.
    keys = {name: f"^{name}" if any(o.endswith(f".{name}") for o in names) else name for name in names}
    layers: dict[str, Any] = {keys[c.name]: c.module for c in found}
    ranks = {key: int(layer.r[adapter]) for key, layer in layers.items()}
    alphas = {key: layer.lora_alpha[adapter] for key, layer in layers.items()}
    config.rank_pattern = {key: rank for key, rank in ranks.items() if rank != config.r}
    config.alpha_pattern = {key: alpha for key, alpha in alphas.items() if alpha != config.lora_alpha}
