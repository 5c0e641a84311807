"""The only module that touches PEFT's internals: where the LoRA layers are, and how to switch them.

Everything here is read from the layers themselves, so it works the same for a `PeftModel`, for adapters added through
transformers' own `add_adapter`, and for layers injected by hand.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn

from lorascope.core.errors import AdapterError

_PREFIX = re.compile(r"^(base_model\.model\.)+")


@dataclass(frozen=True)
class Component:
    """One adapted layer.

    Attributes:
        name: Module path in the base model, without PEFT's prefix.
        layer: Index of the transformer block, or None outside the blocks.
        projection: The rest of the path behind the block's index, such as ``self_attn.q_proj``.
        rank: Sum of the ranks of the active adapters.
        d_in: Input features.
        d_out: Output features.
        adapter: Names of the active adapters, joined by ``+``.
        module: The PEFT layer; its output is the adapted output.
        base: The frozen layer inside; its output is the frozen output.
        whole_module: LoRA sits on a bare parameter (fused experts), so the frozen output needs a call of its own.
    """

    name: str
    layer: int | None
    projection: str
    rank: int
    d_in: int
    d_out: int
    adapter: str
    module: nn.Module
    base: nn.Module
    whole_module: bool


def split_name(name: str) -> tuple[int | None, str]:
    """Split a module path into the block's index and the rest.

    Example:
        >>> split_name("model.layers.3.self_attn.q_proj")
        (3, 'self_attn.q_proj')
        >>> split_name("lm_head")
        (None, 'lm_head')
    """
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            return int(part), ".".join(parts[i + 1 :]) or part
    return None, name


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """All LoRA layers by module path; of nested wrappers around one module only the outermost."""
    layers: dict[str, LoraLayer] = {}
    inside: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and id(module) not in inside:
            layers[_PREFIX.sub("", name)] = module
            inner = module.base_layer
            while isinstance(inner, LoraLayer):
                inside.add(id(inner))
                inner = inner.base_layer
    return layers


def _wrappers(module: nn.Module) -> list[LoraLayer]:
    found = []
    while isinstance(module, LoraLayer):
        found.append(module)
        module = module.base_layer
    return found


def _ranks(layer: LoraLayer) -> dict[str, int]:
    return {name: int(layer.r[name]) for name in layer.active_adapters if name in layer.r}


def components(model: nn.Module) -> list[Component]:
    """Every layer that an active LoRA adapter changes, in the model's order.

    Raises:
        AdapterError: There is no LoRA layer, none is active, adapters are switched off, or one is merged.
    """
    layers = lora_layers(model)
    if not layers:
        raise AdapterError(
            f"{type(model).__name__} has no LoRA layers: give a PEFT model, not a plain or merged one "
            "(an adapter merged by merge_and_unload() can't be told apart from its base; load the adapter again)"
        )
    found = []
    for name, layer in layers.items():
        wrappers = _wrappers(layer)
        if any(wrapper.merged for wrapper in wrappers):
            merged = "+".join(dict.fromkeys(a for wrapper in wrappers for a in wrapper.merged_adapters))
            raise AdapterError(
                f"adapter '{merged}' is merged into '{name}', so the frozen output is gone: "
                "call model.unmerge_adapter() first"
            )
        if any(wrapper.disable_adapters for wrapper in wrappers):
            raise AdapterError(f"adapters are switched off in '{name}': leave disable_adapter() before measuring")
        ranks: dict[str, int] = {}
        for wrapper in wrappers:
            for adapter, rank in _ranks(wrapper).items():
                ranks[adapter] = ranks.get(adapter, 0) + rank
        if not ranks:
            continue
        index, projection = split_name(name)
        found.append(
            Component(
                name=name,
                layer=index,
                projection=projection,
                rank=sum(ranks.values()),
                d_in=int(layer.in_features),
                d_out=int(layer.out_features),
                adapter="+".join(ranks),
                module=layer,
                base=layer.get_base_layer(),
                whole_module=isinstance(layer, ParamWrapper),
            )
        )
    if not found:
        raise AdapterError(
            f"no active LoRA adapter: the model holds {', '.join(adapter_names(model))}; call model.set_adapter(NAME)"
        )
    return found


def adapter_names(model: nn.Module) -> list[str]:
    """Names of all LoRA adapters in the model, active or not."""
    names: dict[str, None] = {}
    for layer in lora_layers(model).values():
        for wrapper in _wrappers(layer):
            names.update(dict.fromkeys(wrapper.r))
    return list(names)


def other_trained_modules(model: nn.Module) -> list[str]:
    """Module paths that an adapter replaces or trains by other means than LoRA (``modules_to_save``, tokens)."""
    return [
        _PREFIX.sub("", name)
        for name, module in model.named_modules()
        if isinstance(module, AuxiliaryTrainingWrapper) and (module.active_adapters or [])
    ]


def low_rank_factors(component: Component) -> list[tuple[torch.Tensor, torch.Tensor, float]] | None:
    """The factors (A, B, scaling) of each active adapter, with A of (r, d_in) and B of (d_out, r).

    Returns:
        One triple an adapter, or None where the layer has no such matrices (convolutions, fused experts, AdaLoRA).
    """
    layer = component.module
    if component.whole_module or not isinstance(layer, LoraLayer):
        return None
    triples = []
    for name in layer.active_adapters:
        if name in layer.lora_A:
            a, b = (getattr(factors[name], "weight", None) for factors in (layer.lora_A, layer.lora_B))
        elif name in layer.lora_embedding_A:
            a, b = layer.lora_embedding_A[name], layer.lora_embedding_B[name]
        else:
            continue
        if a is None or b is None or a.dim() != 2 or b.dim() != 2:
            return None
        triples.append((a.detach(), b.detach(), float(layer.scaling[name])))
    return triples


@contextlib.contextmanager
def adapters_disabled(model: nn.Module) -> Iterator[None]:
    """Switch all adapters off for a while, without PEFT's side effect on ``requires_grad``."""
    switched = [
        module
        for module in model.modules()
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) and not module.disable_adapters
    ]
    for module in switched:
        module._disable_adapters = True
    try:
        yield
    finally:
        for module in switched:
            module._disable_adapters = False


@contextlib.contextmanager
def active_adapter(model: nn.Module, name: str | None) -> Iterator[None]:
    """Make one adapter the active one for a while; None leaves the active ones as they are.

    Raises:
        AdapterError: The model has no adapter of that name.
    """
    if name is None:
        yield
        return
    if name not in (known := adapter_names(model)):
        raise AdapterError(f"no adapter '{name}' in this model: choose from {', '.join(known) or 'none'}")
    holders = [m for m in model.modules() if isinstance(m, BaseTunerLayer | ModulesToSaveWrapper)]
    before = [(m, m._active_adapter) for m in holders]
    for module in holders:
        module._active_adapter = [name] if isinstance(module._active_adapter, list) else name
    try:
        yield
    finally:
        for module, active in before:
            module._active_adapter = active
