"""The classification head: how many classes it has, and whether base model and adapter bring all of its weights."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PretrainedConfig
from transformers.utils.hub import cached_file

from lorascope.core.errors import AdapterError, ModelError
from lorascope.core.seeds import preserved_random_state

_WEIGHTS = "adapter_model.safetensors"
_PREFIX = re.compile(r"^(base_model\.model\.)+")
_WRAPPER = re.compile(r"\.modules_to_save(\.default)?\.")
_SENTINEL = 1_000_003  # no layer is this wide

Shapes = dict[str, tuple[int, ...]]


def saved_shapes(adapter: str) -> Shapes:
    """Names (as in the base model) and shapes of the weights in an adapter's file.

    Args:
        adapter: Folder or hub id.

    Returns:
        ``{"classifier.weight": (3, 16), "bert...query.lora_A.weight": (2, 16), ...}``.

    Raises:
        AdapterError: There is no such file, or it is not whole.
    """
    local = Path(adapter) / _WEIGHTS
    try:
        path = str(local) if Path(adapter).is_dir() else cached_file(adapter, _WEIGHTS)
        with safe_open(str(path), framework="pt") as file:
            names = list(file.keys())
            return {_clean(name): tuple(file.get_slice(name).get_shape()) for name in names}
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise AdapterError(f"cannot read {_WEIGHTS} of '{adapter}' ({reason}): copy or save it again") from error


def _clean(name: str) -> str:
    return _WRAPPER.sub(".", _PREFIX.sub("", name))


def class_outputs(config: PretrainedConfig, auto_class: Any) -> dict[str, int]:
    """The parameters whose size follows the number of classes, found on a model without memory.

    Args:
        config: Configuration of the base model.
        auto_class: ``AutoModelForSequenceClassification`` or ``AutoModelForImageClassification``.

    Returns:
        Parameter name -> the dimension that counts classes.
    """
    wide = copy.deepcopy(config)
    wide.num_labels = _SENTINEL
    with preserved_random_state(), torch.device("meta"):
        model = auto_class.from_config(wide)
    return {name: list(p.shape).index(_SENTINEL) for name, p in model.named_parameters() if _SENTINEL in p.shape}


def count_classes(saved: Mapping[str, tuple[int, ...]], outputs: Mapping[str, int], adapter: str) -> int | None:
    """The number of classes of the head that an adapter brings; None if it brings none.

    Raises:
        AdapterError: Its weights disagree.
    """
    counts = {saved[name][dim] for name, dim in outputs.items() if name in saved and dim < len(saved[name])}
    if len(counts) > 1:
        raise AdapterError(f"adapter '{adapter}' has heads of {' and '.join(map(str, sorted(counts)))} classes")
    return counts.pop() if counts else None


def check_saved_modules(adapter: str, saved: Collection[str], trained: Sequence[str], model: nn.Module) -> None:
    """Check that an adapter's file holds all weights of the modules that it says were trained whole, and no others.

    Args:
        adapter: Folder or hub id, for messages.
        saved: Names of the weights in its file.
        trained: Its ``modules_to_save``.
        model: The base model.

    Raises:
        AdapterError: Weights are missing, or belong to a module that this base model does not have.
    """
    known = {name for name, _ in model.named_parameters()}
    parts = {module: re.compile(rf"(^|\.){re.escape(module)}\.(?!.*lora_)") for module in trained}
    foreign = {name for part in parts.values() for name in saved if part.search(name)} - known
    if foreign:
        raise AdapterError(
            f"adapter '{adapter}' brings weights for {_some(foreign)}, which this base model does not have: pass the one "
            "it was trained on with --model"
        )
    for module, part in parts.items():
        if missing := {name for name in known if part.search(name)} - set(saved):
            raise AdapterError(
                f"adapter '{adapter}' says that '{module}' was trained whole (modules_to_save), but its file has no "
                f"weights for {_some(missing)}: it was not saved completely"
            )


def missing_head(
    name: str,
    model: nn.Module,
    missing: Collection[str],
    saved: Collection[str],
    *,
    need_head: bool,
) -> list[str]:
    """The weights that neither base model nor adapter brings, so that they are random.

    Args:
        name: The base model, for messages.
        model: The base model, loaded.
        missing: Weights that its checkpoint lacks.
        saved: Names of the weights in the adapter's file.
        need_head: Refuse a head that is random; its scores would be, too.

    Returns:
        Names of the head's random weights; empty if all is there.

    Raises:
        ModelError: The head is random and needed, or anything else is random that is measured.
    """
    lost = sorted(set(missing) - set(saved))
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    adapted = {key.split(".lora_")[0] for key in saved if ".lora_" in key}
    body = [key for key in lost if key.startswith(prefix) or key.rpartition(".")[0] in adapted]
    if body:
        modules = sorted({key.rpartition(".")[0] for key in lost})
        raise ModelError(
            f"base model '{name}' lacks weights for {_some(body)} and the adapter brings none, so that they would be "
            f"random: pass the model it was trained on with --model, or train with modules_to_save={modules}"
        )
    if lost and need_head:
        modules = sorted({key.rpartition(".")[0] for key in lost})
        raise ModelError(
            f"the classification head is missing: neither base model '{name}' nor the adapter has weights for "
            f"{_some(lost)}; pass the base model whose head was trained with --model, train with "
            f"modules_to_save={modules}, or measure the layers alone with --no-score"
        )
    return lost


def _some(names: Collection[str], most: int = 3) -> str:
    shown = [f"'{name}'" for name in sorted(names)[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")
