"""Reading an adapter from disk, with an answer for everything that can be wrong with it."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from lorascope.adapters._elastic import held_as, mark_of
from lorascope.adapters._icq_lora import support_quantised
from lorascope.adapters._peft import lora_layers
from lorascope.adapters.checks import fingerprints
from lorascope.adapters.elastic import ELASTIC_TYPE, ElasticLoraConfig
from lorascope.adapters.sharing import sharing_of
from lorascope.core.errors import AdapterError, DataError
from lorascope.core.files import read_json

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
RECORD_FILE = "lorascope.json"


def read_adapter_config(adapter: str | Path) -> LoraConfig:
    """Read what kind of adapter a folder (or hub id) holds.

    Args:
        adapter: Folder with ``adapter_config.json`` and ``adapter_model.safetensors``, or a hub id ``owner/name``.

    Returns:
        PEFT's configuration; ``base_model_name_or_path`` names the base model.

    Raises:
        AdapterError: Nothing is there, it is a full (perhaps merged) model, its weights are a pickle, or it is another
            kind of adapter.
    """
    folder = Path(adapter)
    if folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(adapter)):
        _check_folder(folder)
    try:
        config = _elastic_config(folder) or PeftConfig.from_pretrained(str(adapter))
    except AdapterError:
        raise
    except Exception as error:
        # PEFT, the hub and JSON raise a dozen unrelated classes here; every one means the same to the user.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AdapterError(f"no usable adapter at '{adapter}' ({reason}): give a LoRA adapter saved by PEFT") from error
    if not isinstance(config, LoraConfig):
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise AdapterError(f"'{adapter}' is a {kind} adapter: lorascope measures LoRA adapters (peft_type LORA)")
    return config


def _elastic_config(folder: Path) -> ElasticLoraConfig | None:
    """The configuration of an elastic adapter, which PEFT alone does not read; None if the folder holds another kind."""
    if not (folder / CONFIG_FILE).is_file():
        return None
    values = read_json(folder / CONFIG_FILE)
    if values.get("peft_type") != ELASTIC_TYPE:
        return None
    return ElasticLoraConfig.from_saved(values)


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        raise AdapterError(f"no adapter at '{folder}': give a folder with {CONFIG_FILE} and {WEIGHTS_FILE}")
    if not folder.is_dir():
        raise AdapterError(f"'{folder}' is a file: give the folder that holds {CONFIG_FILE}")
    if not (folder / CONFIG_FILE).is_file():
        if (folder / "config.json").is_file():
            raise AdapterError(
                f"'{folder}' holds a full model, not an adapter (merged?): give the adapter as saved before "
                "merge_and_unload()"
            )
        nested = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_FILE}"))
        hint = f"; did you mean '{folder / nested[0]}'?" if nested else ""
        raise AdapterError(f"no {CONFIG_FILE} in '{folder}': it is no PEFT adapter{hint}")
    try:
        config = read_json(folder / CONFIG_FILE)
    except DataError as error:
        raise AdapterError(str(error)) from error
    if not isinstance(config, Mapping) or "peft_type" not in config:
        raise AdapterError(f"'{folder / CONFIG_FILE}' names no peft_type: it was not written by PEFT")
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        if (folder / "adapter_model.bin").is_file():
            raise AdapterError(
                f"'{folder}' has its weights in adapter_model.bin, a pickle, which is not opened: load it with PEFT "
                "where you trust it and save it again (save_pretrained writes safetensors)"
            )
        raise AdapterError(f"no {WEIGHTS_FILE} in '{folder}': the adapter was not saved completely")
    _check_weights(weights)


def _check_weights(path: Path) -> None:
    try:
        with safe_open(str(path), framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
                tensor = file.get_tensor(key)
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    raise AdapterError(
                        f"'{path}' holds NaN or infinity in '{key}': that training run failed; use another"
                    )
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"'{path}' is interrupted or not safetensors ({error}): copy or save it again") from error


def attach_adapter(
    model: PreTrainedModel, adapter: str | Path, *, name: str = "default", any_base: bool = False
) -> PeftModel:
    """Put a saved LoRA adapter on its base model.

    Args:
        model: The base model, already loaded.
        adapter: Folder or hub id.
        name: Name of the adapter in the model.
        any_base: Measure even if the adapter records another base model's fingerprint.

    Returns:
        A `PeftModel` in evaluation mode.

    Raises:
        AdapterError: As `read_adapter_config`; or the adapter does not fit this base model.

    Warns:
        UserWarning: The adapter was trained on another quantisation, or changes the base weights when it is loaded.
    """
    config = read_adapter_config(adapter)
    given = getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__
    named = config.base_model_name_or_path
    wrong = f"adapter '{adapter}' does not fit base model '{given}'"
    if given == named:
        wrong += (
            ", which it names as its own: one of them was changed or not saved completely; take the adapter's files "
            "from one save"
        )
    else:
        wrong += f" (it was trained on {named!r}): pass that one with --model"
    started = str(getattr(config, "init_lora_weights", True)).lower()
    if started.startswith(("pissa", "olora", "corda", "lora_ga")):
        warnings.warn(
            f"adapter '{adapter}' was started by {started}, which changes the base weights: what is measured against is "
            "the residual model, not the base; see  lorascope doctor",
            stacklevel=2,
        )
    record = Path(adapter) / RECORD_FILE
    if record.is_file() and not any_base:
        known = read_adapter_record(adapter)
        there, now = known.get("quantization"), quantization_of(model)
        if there != now:
            warnings.warn(
                f"adapter '{adapter}' was trained on {there or 'weights that were not quantised'} and is used on "
                f"{now or 'weights that are not quantised'}: it corrects errors of another base",
                stacklevel=2,
            )
        # Weights of another quantisation have lost the fingerprint of the checkpoint.
        elif any(known.get(kind, found) != found for kind, found in fingerprints(model).items()):
            group, here = known.get("share") or 1, (sharing_of(model) or {}).get("group", 1)
            if group != here:
                raise AdapterError(
                    f"adapter '{adapter}' was trained on layers shared in groups of {group}, and here they are shared in "
                    f"groups of {here}: call share_layers(model, {group}) on the plain base model first"
                )
            raise AdapterError(wrong + ", or --any-base to measure it on this one all the same")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            config.inference_mode = True
            peft_model = PeftModel.from_pretrained(
                model, str(adapter), adapter_name=name, config=support_quantised(config)
            )
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        detail = str(error).strip().splitlines()
        raise AdapterError(f"{wrong} [{(detail[1] if len(detail) > 1 else detail[0]).strip()[:160]}]") from error
    missing = [str(w.message) for w in caught if "missing adapter keys" in str(w.message)]
    if missing:
        raise AdapterError(f"{wrong} [the file lacks weights for some layers of this model]")
    trained_on = getattr(config, "elastic_base", None)
    if trained_on is not None and not (record.is_file() or any_base):
        layers = [layer.get_base_layer() for layer in lora_layers(peft_model).values()]
        here, known = held_as(layers[-1]), getattr(config, "elastic_mark", None) or {}
        marks = (pair for layer in layers for pair in mark_of(layer).items())
        if trained_on == here and any(kind in known and mark not in known[kind] for kind, mark in marks):
            here += " of other values"
        if trained_on != here:
            warnings.warn(
                f"adapter '{adapter}' was trained on {trained_on} and is used on {here}: it corrects errors of another base",
                stacklevel=2,
            )
    weights = Path(adapter) / WEIGHTS_FILE
    if weights.is_file():
        with safe_open(str(weights), framework="pt") as file:
            unused = {key for key in file.keys() if ".lora_" in key}  # noqa: SIM118 - safe_open is no mapping
        unused -= set(get_peft_model_state_dict(peft_model, adapter_name=name, save_embedding_layers=False))
        if unused:
            raise AdapterError(f"{wrong} [{len(unused)} of its weights have no layer here, such as {min(unused)}]")
    return peft_model.eval()


def quantization_of(model: nn.Module) -> str | None:
    """How a model's weights are quantised, in a few words; None if they are not.

    Example:
        >>> quantization_of(nn.Linear(2, 2)) is None
        True
    """
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    if config is None:
        return None
    values = config if isinstance(config, dict) else config.to_dict()
    method = values.get("quant_method")
    method = str(getattr(method, "value", method))
    if method == "icq":
        codes = f"{values['codebook']}{values['bits']}"
        block = f"block {values['block_size']}"
        if values["search"] != "shift":
            block += ", search of the scale"
        block += f", groups of {values['group_size']}" if values["double_quant"] else ", floats for scales"
        if values["modules_to_not_convert"]:
            block += f", without {', '.join(values['modules_to_not_convert'])}"
        if values["objective"] == "none":
            return f"{codes} without a search ({block})"
        return f"ICQ {codes} ({values['objective']}, n {values['n']}, lambda {values['lam']}, {block})"
    nested = ", nested scales" if values.get("bnb_4bit_use_double_quant") else ""
    return f"{method} {values.get('bnb_4bit_quant_type', '')}".strip() + nested


def quantization_config_of(model: nn.Module) -> dict[str, Any] | None:
    """The configuration that a model was quantised with, as JSON has it; None if it was not.

    Example:
        >>> quantization_config_of(nn.Linear(2, 2)) is None
        True
    """
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    if config is None:
        return None
    values: dict[str, Any] = json.loads(
        json.dumps(config if isinstance(config, dict) else config.to_dict(), default=str)
    )
    return values


def read_adapter_record(adapter: str | Path) -> dict[str, Any]:
    """What lorascope wrote beside an adapter it trained; empty for adapters of others.

    Raises:
        AdapterError: The file is interrupted or was not written by lorascope.
    """
    path = Path(adapter) / RECORD_FILE
    if not path.is_file():
        return {}
    try:
        values = read_json(path)
    except DataError as error:
        raise AdapterError(str(error)) from error
    if not isinstance(values, dict):
        raise AdapterError(f"'{path}' was not written by lorascope: delete it, or take the adapter's own")
    return values


def adapter_record(base: nn.Module, **facts: Any) -> dict[str, Any]:
    """What lorascope writes beside an adapter it trained: the base model's fingerprints and further facts."""
    how = {"quantization": quantization_of(base), "quantization_config": quantization_config_of(base)}
    return {"schema_version": 1, **how, **fingerprints(base), **facts}
