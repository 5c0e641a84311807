"""Where a decoder's layers are, which of them are of one kind, and tying the weights of some to those of others."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lorascope.core.errors import ModelError

Slot = tuple[nn.Module, str, nn.Parameter]
"""A place of a weight: module and attribute; and the weight that was there."""


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of a model's layers and its module path: the outermost list of ``num_hidden_layers`` modules.

    Raises:
        ModelError: There is none, there are several, or the model is an encoder-decoder.
    """
    name = type(model).__name__
    config: Any = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder-decoder model: layers of decoders can be shared")
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    count = getattr(text, "num_hidden_layers", None)
    lists = {path: m for path, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count}
    outer = {path: m for path, m in lists.items() if not any(path.startswith(f"{other}.") for other in lists)}
    if len(outer) > 1 and hasattr(model, "get_decoder"):
        untyped: Any = model
        inside = set(untyped.get_decoder().modules())
        outer = {path: m for path, m in outer.items() if m in inside}
    if len(outer) != 1:
        found = ", ".join(outer) or "none"
        raise ModelError(
            f"{name}: lists of {count} layers found: {found}; sharing needs a decoder with one list of its layers"
        )
    return next(iter(outer.items()))


def layer_groups(model: PreTrainedModel, layers: nn.ModuleList, group: int) -> tuple[tuple[int, ...], ...]:
    """Indices of the second half in groups, each of layers of one kind, ordered by their first layer."""
    kinds = _kinds(model, layers)
    members: dict[int, list[int]] = {}
    for index in range(len(layers) - len(layers) // 2, len(layers)):
        members.setdefault(kinds[index], []).append(index)
    chunks = [
        tuple(indices[start : start + group]) for indices in members.values() for start in range(0, len(indices), group)
    ]
    return tuple(sorted(chunks))


def _kinds(model: PreTrainedModel, layers: nn.ModuleList) -> list[int]:
    """The kind of each layer: the index of the first layer that would compute the same with the same weights."""
    config: Any = model.config.get_text_config()
    types = getattr(config, "layer_types", None) or []
    traits = [_traits(layer) for layer in layers]
    if len(types) == len(layers):
        for index, kind in enumerate(types):
            traits[index]["layer_type"] = kind
    for key in {key for trait in traits for key in trait}:
        values = [trait[key] for trait in traits if key in trait]
        numbers = [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
        if len(numbers) == len(values) > 1 and all(a < b for a, b in itertools.pairwise(numbers)):
            for trait in traits:  # a layer's own index, by whatever name
                trait.pop(key, None)
    kinds: list[int] = []
    for index, trait in enumerate(traits):
        alike = (
            other for other in sorted(set(kinds)) if traits[other] == trait and _same_buffers(layers, other, index)
        )
        kinds.append(next(alike, index))
    return kinds


def _traits(layer: nn.Module) -> dict[str, Any]:
    """Everything about a layer that is not a weight: classes, shapes, places, plain settings."""
    traits: dict[str, Any] = {}
    for path, module in layer.named_modules():
        traits[f"{path} class"] = f"{type(module).__module__}.{type(module).__qualname__}"
        for name, value in vars(module).items():
            plain = value is None or isinstance(value, int | float | str | torch.dtype)
            if plain and not name.startswith("_") and name != "training":
                traits[f"{path}.{name}"] = value
    for path, parameter in layer.named_parameters(remove_duplicate=False):
        traits[f"{path} weight"] = (tuple(parameter.shape), parameter.dtype, str(parameter.device))
    return traits


def _same_buffers(layers: nn.ModuleList, first: int, second: int) -> bool:
    """Whether two layers hold the same constants; those of a local attention are a mask of their own."""
    one, two = dict(layers[first].named_buffers()), dict(layers[second].named_buffers())
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def tie(layers: nn.ModuleList, groups: tuple[tuple[int, ...], ...]) -> list[Slot]:
    """Put the weights of each group's first layer into the others; returns what was there."""
    originals: list[Slot] = []
    for first, *others in groups:
        for other in others:
            for path, parameter in list(layers[first].named_parameters(remove_duplicate=False)):
                place, _, name = path.rpartition(".")
                module = layers[other].get_submodule(place)
                originals.append((module, name, getattr(module, name)))
                setattr(module, name, parameter)
    return originals
