"""The paper's smaller models: the second half of a decoder's layers shares its weights in groups.

Weights are tied, not modules: each layer stays a module of its own, so that its key-value cache, its buffers and its
LoRA factors are its own, and only the frozen weights are common.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from lorascope.adapters._layers import Slot, decoder_layers, layer_groups, tie
from lorascope.adapters._peft import lora_layers
from lorascope.core.errors import InputError, ModelError, OutputError
from lorascope.core.files import read_json
from lorascope.core.seeds import preserved_random_state
from lorascope.quantization import IcqLinear

CONFIG_KEY = "lorascope_layer_sharing"
"""Entry of a model's configuration that says how its layers share."""

VARIANT = "lorascope-shared"
"""Middle part of the name of a shared model's weights file, ``model.lorascope-shared.safetensors``."""


@dataclass(frozen=True)
class SharedLayers:
    """How the layers of a model share.

    Attributes:
        path: Module path of the list of layers.
        group: Layers in a group, as asked for.
        groups: Indices of the layers in each group of the second half; a group uses the weights of its first layer.
        layers: Number of layers.
        parameters_before: Distinct parameters of the model as it was.
        parameters: Distinct parameters now.
    """

    path: str
    group: int
    groups: tuple[tuple[int, ...], ...]
    layers: int
    parameters_before: int
    parameters: int


def count_parameters(model: nn.Module) -> int:
    """Number of distinct parameters: one that several modules use counts once, and buffers do not count.

    Of a quantised layer the weights count that its codes stand for.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> count_parameters(nn.Sequential(layer, layer))
        8
    """
    packed = {id(m.weight): m.in_features * m.out_features for m in model.modules() if isinstance(m, IcqLinear)}
    return sum(packed.get(id(parameter)) or _weights(parameter) for parameter in model.parameters())


def _weights(parameter: nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)  # of bitsandbytes, which packs two codes in a byte
    return parameter.numel() if state is None else math.prod(state.shape)


def share_layers(model: PreTrainedModel, group: int) -> SharedLayers:
    """Let the second half of a model's layers share weights, ``group`` layers at a time.

    The first half (the larger one, if the number of layers is odd) is kept. The layers of a group use the weights of the
    group's first layer; the last group may be shorter. Only layers of one kind share: where sliding and full attention,
    dense and expert layers, or attention and recurrent ones take turns, each kind is grouped by itself. With ``group`` 1
    nothing changes.

    From here on, ``model.save_pretrained`` writes each weight once, into a file that only `load_shared` and
    `lorascope.load_model_and_tokenizer` read: a plain load ends in an error.

    Args:
        model: A decoder of transformers; changed in place.
        group: Layers in a group, at least 1. The paper takes 8, 4, 2 and 1.

    Returns:
        The groups, and the number of distinct parameters before and after.

    Raises:
        InputError: The group is no whole number of at least 1.
        ModelError: No list of layers is found, no two layers are alike, the layers share in other groups already, or the
            model is quantised or has an adapter.

    Example:
        >>> info = share_layers(model, 4)                             # doctest: +SKIP
        >>> info.parameters / info.parameters_before                  # doctest: +SKIP

    References:
        The axis of model size in arXiv 2501.03152.
    """
    info, _ = _share(model, group)
    return info


@contextlib.contextmanager
def layers_shared(model: PreTrainedModel, group: int | None) -> Iterator[SharedLayers | None]:
    """Share layers for a while, as `share_layers`, and give every layer its own weights back.

    Args:
        model: A decoder of transformers.
        group: Layers in a group; None leaves the model as it is.

    Yields:
        How the layers share; None with ``group`` None.
    """
    if group is None:
        yield None
        return
    before = sharing_of(model)
    info, originals = _share(model, group)
    try:
        yield info
    finally:
        for module, name, parameter in originals:
            setattr(module, name, parameter)
        if before is None:
            _unmark(model)


def unshare_layers(model: PreTrainedModel) -> None:
    """Give each layer its own copy of the weights it shares; the model computes the same as before.

    Needed before an adapter is merged: merging adds the update of one layer to weights that its whole group uses.

    Args:
        model: A model whose layers share; one whose layers do not is left alone.
    """
    for _, module, name, parameter, _ in _tied(model):
        setattr(module, name, nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad))
    _unmark(model)


def retie(model: PreTrainedModel) -> SharedLayers | None:
    """Tie the layers as the model's configuration says, after its weights were loaded or replaced.

    Returns:
        How the layers share; None if they do not.

    Raises:
        ModelError: The configuration does not fit the model.
    """
    asked = sharing_of(model)
    if asked is None:
        return None
    path, layers = decoder_layers(model)
    groups = tuple(tuple(int(index) for index in group) for group in asked["groups"])
    if any(not 0 <= index < len(layers) for group in groups for index in group):
        raise ModelError(f"'{CONFIG_KEY}' of the configuration names layers that the model lacks: save the model again")
    before = count_parameters(model)
    tie(layers, groups)
    _mark(model, int(asked["group"]), groups)
    return SharedLayers(path, int(asked["group"]), groups, len(layers), before, count_parameters(model))


def sharing_of(model: PreTrainedModel) -> dict[str, Any] | None:
    """The entry of a model's configuration that says how its layers share; None if they do not.

    Raises:
        ModelError: The entry was not written by lorascope.
    """
    entry = getattr(model.config, CONFIG_KEY, None)
    if entry is None:
        return None
    if not (isinstance(entry, dict) and isinstance(entry.get("group"), int) and isinstance(entry.get("groups"), list)):
        raise ModelError(f"'{CONFIG_KEY}' of the configuration is {entry!r}: it needs 'group' and 'groups'")
    return entry


def save_shared(model: PreTrainedModel, folder: str | Path, **options: Any) -> None:
    """Save a model whose layers share, each weight once; ``model.save_pretrained`` of such a model calls this.

    The weights' file has a name of its own, so that a plain load, which would fill the layers that are not in it with
    random numbers, finds no weights and says so.

    Args:
        model: A model after `share_layers`.
        folder: Where to save it.
        **options: Of ``PreTrainedModel.save_pretrained``.

    Raises:
        OutputError: The folder holds another model's weights, which a plain load would take for this one's.
    """
    for pattern in ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", "pytorch_model*"):
        for path in Path(folder).glob(pattern):
            raise OutputError(f"'{folder}' holds the weights of another model ({path.name}): choose another folder")
    untyped: Any = model
    # transformers writes a tied weight once if the model's class says that it is tied; this model says so itself.
    own = getattr(type(model), "_tied_weights_keys", None) or {}
    untyped._tied_weights_keys = {**own, **{re.escape(name): source for name, source in tied_names(model).items()}}
    try:
        type(model).save_pretrained(model, str(folder), **{**options, "variant": VARIANT})
    finally:
        del untyped._tied_weights_keys


def load_shared(folder: str | Path, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a causal language model whose layers share, and tie them again.

    Args:
        folder: Where `save_shared` put it.
        dtype: Type of the weights.

    Returns:
        The model in evaluation mode.

    Raises:
        ModelError: The folder is not whole.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)  # it reports the layers that are not in the file as missing
    auto: Any = AutoModelForCausalLM
    try:
        with preserved_random_state():
            model, found = auto.from_pretrained(
                str(folder), variant=VARIANT, dtype=dtype, trust_remote_code=False, output_loading_info=True
            )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"cannot load the shared model in '{folder}' ({reason}): save it again") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    loaded: PreTrainedModel = model
    retie(loaded)
    lacking = [*sorted(set(found["missing_keys"]) - tied_names(loaded).keys()), *map(str, found["mismatched_keys"])]
    if lacking:
        raise ModelError(
            f"the shared model in '{folder}' lacks {len(lacking)} weights, such as {lacking[0]}: save it again"
        )
    loaded.train(False)
    return loaded


def is_shared_folder(path: str | Path) -> bool:
    """Whether a folder holds a model whose layers share.

    Raises:
        DataError: Its ``config.json`` is damaged.
    """
    config = Path(path) / "config.json"
    return config.is_file() and isinstance(values := read_json(config), dict) and CONFIG_KEY in values


def tied_names(model: PreTrainedModel) -> dict[str, str]:
    """Names of the weights that a layer takes from the first layer of its group -> the name they are stored under."""
    return {target: source for target, _, _, _, source in _tied(model)}


def _share(model: PreTrainedModel, group: int) -> tuple[SharedLayers, list[Slot]]:
    if isinstance(group, bool) or not isinstance(group, int) or group < 1:
        raise InputError(f"group {group!r} must be a whole number of at least 1: the paper takes 8, 4, 2 and 1")
    if lora_layers(model):
        raise ModelError("the model has an adapter: share layers first, then add the adapter")
    if getattr(model.config, "quantization_config", None) is not None:
        raise ModelError("the model is quantised: share the layers of the full model, then quantise it")
    if getattr(model.config, "rescale_every", 0):
        raise ModelError(
            f"{type(model).__name__} divides the weights of its later layers in place when it runs: load it with "
            "rescale_every=0 to share layers"
        )
    path, layers = decoder_layers(model)
    before = count_parameters(model)
    present = sharing_of(model)
    if present is not None and present["group"] != group:
        raise ModelError(
            f"the layers of this model share in groups of {present['group']} already: load the original to share in groups "
            f"of {group}"
        )
    groups = layer_groups(model, layers, group)
    if group > 1 and all(len(members) == 1 for members in groups):
        raise ModelError(
            f"no two of the {len(layers) // 2} layers in the second half of {type(model).__name__} are alike: nothing to "
            "share in a group of " + str(group)
        )
    originals = tie(layers, groups)
    if group > 1:
        _mark(model, group, groups)
    return SharedLayers(path, group, groups, len(layers), before, count_parameters(model)), originals


def _tied(model: PreTrainedModel) -> list[tuple[str, nn.Module, str, nn.Parameter, str]]:
    """Each place of a weight that comes from the first layer of a group: name, module, its attribute, weight, source."""
    asked = sharing_of(model)
    if asked is None:
        return []
    root, layers = decoder_layers(model)
    found = []
    for first, *others in asked["groups"]:
        for other in others:
            for path, parameter in list(layers[other].named_parameters(remove_duplicate=False)):
                place, _, name = path.rpartition(".")
                module = layers[other].get_submodule(place)
                found.append((f"{root}.{other}.{path}", module, name, parameter, f"{root}.{first}.{path}"))
    return found


def _mark(model: PreTrainedModel, group: int, groups: tuple[tuple[int, ...], ...]) -> None:
    setattr(model.config, CONFIG_KEY, {"group": group, "groups": [list(members) for members in groups]})
    untyped: Any = model
    untyped.save_pretrained = functools.partial(save_shared, model)


def _unmark(model: PreTrainedModel) -> None:
    vars(model.config).pop(CONFIG_KEY, None)
    vars(model).pop("save_pretrained", None)
