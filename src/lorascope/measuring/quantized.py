"""Quantised base models by a short name: loaded, made again from an adapter's record, and described."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.utils.quantization_config import QuantizationConfigMixin

from lorascope.adapters import quantization_of
from lorascope.core.errors import InputError, MissingDependencyError, ModelError, unknown_name
from lorascope.quantization import ICQConfig, QuantizationReport, code_entropy_bits, icq_layers, quantize_model
from lorascope.tasks.embedded import cache_dir, quiet_transformers, resolve_model

NAMES = (
    *(f"{how}-{kind}{bits}" for how in ("icq", "plain") for kind in ("nf", "int") for bits in (4, 3, 2)),
    "nf4",
)
"""What ``quantize`` may be: ``icq-...`` (calibrated), ``plain-...`` (the same code books without a search), and ``nf4``,
bitsandbytes' own NF4 with double quantisation, as QLoRA has it."""

_CODES = 2
"""To be raised when `quantize_icq` chooses other codes for the same options, so that kept ones are not taken any more."""

_SECONDS = "_lorascope_seconds_quantizing"
"""Attribute of a model that `load_quantised` made: how long quantising took, when it was done."""


def quantization_config(name: str, *, dtype: str = "float32") -> QuantizationConfigMixin:
    """The configuration for ``from_pretrained(quantization_config=...)`` that a short name stands for.

    Args:
        name: One of `NAMES`.
        dtype: What bitsandbytes computes in.

    Returns:
        An `ICQConfig`, or a `BitsAndBytesConfig`.

    Raises:
        InputError: The name is unknown.
        MissingDependencyError: bitsandbytes is asked for and not installed.

    Example:
        >>> quantization_config("icq-nf3").bits
        3
    """
    if name not in NAMES:
        raise unknown_name("quantize", name, NAMES)
    if name == "nf4":
        if importlib.util.find_spec("bitsandbytes") is None:
            raise MissingDependencyError(
                "quantize 'nf4' needs bitsandbytes: run  pip install bitsandbytes , or take 'plain-nf4' (the same codes)"
            )
        kind: Any = BitsAndBytesConfig
        config: QuantizationConfigMixin = kind(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        )
        return config
    found = re.fullmatch(r"(icq|plain)-(nf|int)(\d)", name)
    assert found is not None
    how, kind, bits = found.groups()
    return ICQConfig(bits=int(bits), codebook=kind, objective="none" if how == "plain" else "entropy")


def recorded_config(values: Mapping[str, Any]) -> QuantizationConfigMixin:
    """The configuration that an adapter's record or a model holds as a mapping.

    Raises:
        InputError: It is of a method that lorascope does not make.

    Example:
        >>> recorded_config(ICQConfig(bits=3).to_dict()).bits
        3
    """
    method = str(values.get("quant_method"))
    if method == "icq":
        return ICQConfig(**{key: value for key, value in values.items() if key != "quant_method"})
    if method.endswith("bitsandbytes"):
        kind: Any = BitsAndBytesConfig
        config: QuantizationConfigMixin = kind.from_dict(dict(values))
        return config
    raise InputError(f"a base quantised by '{method}' can't be made again: give the quantised model with --model")


def load_quantised(source: str | Path, config: QuantizationConfigMixin, *, dtype: str = "float32") -> PreTrainedModel:
    """Load a dense model quantised.

    ICQ takes minutes on a large model, so what it made is kept in the cache folder (``$LORASCOPE_CACHE``) and loaded from
    there the next time; the same options on the same weights give the same codes.

    Args:
        source: ``"smollm2"``, a folder, or a hub id.
        config: How.
        dtype: Type of what stays dense.

    Returns:
        The model in evaluation mode.

    Raises:
        ModelError: There is no such model, or it is quantised already.
    """
    path = resolve_model(source)
    if is_quantised_model(path):
        raise ModelError(f"'{source}' is quantised already: leave out quantize, or give the dense model")
    auto: Any = AutoModelForCausalLM
    started = time.perf_counter()
    with quiet_transformers(reports=True):
        if not isinstance(config, ICQConfig):
            model = auto.from_pretrained(path, quantization_config=config, dtype=dtype, device_map=_device_map())
            compute_alike_everywhere(model)
            setattr(model, _SECONDS, time.perf_counter() - started)
            return model.eval()  # type: ignore[no-any-return]
        folder = cache_dir() / "quantized" / _key(path, config, dtype)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            try:
                QuantizationReport.load(folder)
                model = auto.from_pretrained(folder, dtype=dtype)
            except Exception:  # not there yet, or damaged: whatever that raises, it is made again
                shutil.rmtree(folder, ignore_errors=True)
                quantize_model(path, folder, config, dtype=dtype, compare=False)
                model = auto.from_pretrained(folder, dtype=dtype)
    model.config._name_or_path = str(source)
    setattr(model, _SECONDS, float(QuantizationReport.load(folder).totals["seconds"]))
    return model.eval()  # type: ignore[no-any-return]


def compute_alike_everywhere(model: nn.Module) -> None:
    """Keep bitsandbytes from computing in bfloat16 on processors that can, and from reordering its codes for that.

    There it would give other numbers than elsewhere, and than in training; and it refuses widths that are no multiple of 64.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            untyped: Any = module
            untyped.support_avx512bf16_for_cpu = False


def _device_map() -> dict[str, int] | None:
    """bitsandbytes quantises where the weights go: a GPU if there is one."""
    return {"": 0} if torch.cuda.is_available() else None


def is_quantised_model(path: str | Path) -> bool:
    """Whether a folder or hub id holds a model that was saved quantised.

    Example:
        >>> is_quantised_model("/nowhere")
        False
    """
    try:
        return getattr(AutoConfig.from_pretrained(str(path)), "quantization_config", None) is not None
    except (OSError, ValueError, KeyError):
        return False


def _key(path: str, config: ICQConfig, dtype: str) -> str:
    """A folder name that is the same for the same weights and options."""
    folder = Path(path)
    if folder.is_dir():
        files = [*sorted(folder.glob("*.safetensors")), folder / "config.json"]
        stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        weights: Any = stats
    else:
        weights = [path, getattr(AutoConfig.from_pretrained(path), "_commit_hash", None)]
    facts = json.dumps([_CODES, weights, config.to_dict(), dtype], sort_keys=True, default=str)
    name = re.sub(r"[^a-z0-9]+", "-", folder.name.lower())[:40].strip("-")
    return f"{name}-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"


def quantization_facts(model: nn.Module) -> dict[str, Any] | None:
    """What a quantised base stores, for the record of a run; None for a dense one.

    Args:
        model: The base model, best before its first pass: bitsandbytes repacks codes on some processors then, and their
            entropy can't be read any more.

    Returns:
        ``method`` in words, ``config``, ``quantized_weights``, ``bits_per_weight`` (codes, scales and shifts, over the
        quantised weights), ``code_entropy_bits`` (mean over blocks; left out where the codes can't be read) and
        ``seconds`` (of quantising, for models that `load_quantised` made).

    Example:
        >>> quantization_facts(nn.Linear(2, 2)) is None
        True
    """
    method = quantization_of(model)
    if method is None:
        return None
    untyped: Any = model
    config = untyped.config.quantization_config
    values = config if isinstance(config, dict) else config.to_dict()
    weights, bits, entropy, blocks, readable = 0, 0.0, 0.0, 0, True
    for layer in icq_layers(model).values():
        size = layer.in_features * layer.out_features
        found = layer.block_entropy_bits()
        weights, bits = weights + size, bits + layer.bits_per_weight * size
        entropy, blocks = entropy + float(found.double().sum()), blocks + len(found)
    for parameter in model.parameters():
        state: Any = getattr(parameter, "quant_state", None)
        if state is None:
            continue
        size = math.prod(state.shape)
        weights, bits = weights + size, bits + 8 * parameter.numel() * parameter.element_size() + _scale_bits(state)
        if getattr(state, "packing_format_for_cpu", False) or parameter.dtype != torch.uint8:
            readable = False
            continue
        packed = parameter.detach().reshape(-1).cpu()
        codes = torch.stack((packed >> 4, packed & 15), dim=-1).reshape(-1)
        whole = codes[: len(codes) - len(codes) % state.blocksize].view(-1, state.blocksize).long()
        found = code_entropy_bits(whole, 16)
        entropy, blocks = entropy + float(found.double().sum()), blocks + len(found)
    facts: dict[str, Any] = {"method": method, "config": json.loads(json.dumps(values, default=str))}
    if weights:
        facts |= {"quantized_weights": weights, "bits_per_weight": bits / weights}
    if readable and blocks:
        facts["code_entropy_bits"] = entropy / blocks
    if (seconds := getattr(model, _SECONDS, None)) is not None:
        facts["seconds"] = seconds
    return facts


def _scale_bits(state: Any) -> int:
    """Bits of bitsandbytes' scales: 8 each and a float for each 256 of them, or a float each."""
    bits = 8 * state.absmax.numel() * state.absmax.element_size()
    if state.nested:
        bits += 8 * state.state2.absmax.numel() * state.state2.absmax.element_size() + 32
    return int(bits)
