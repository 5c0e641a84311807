"""Elastic adapters as ordinary LoRA: the same model, for everything that reads LoRA."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lorascope.adapters._elastic import BETA, add_pooling
from lorascope.adapters.elastic import ElasticLoraConfig
from lorascope.adapters.load import CONFIG_FILE, RECORD_FILE, WEIGHTS_FILE, read_adapter_config
from lorascope.core.errors import AdapterError
from lorascope.core.files import atomic_write_text, explain_write_errors, require_empty_dir


def fold_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add each connection to its factor: A + beta1 P and B + beta2 P, in float64, in the type of the factor.

    Args:
        state: Tensors of an adapter by their names in its file.

    Returns:
        The tensors of the ordinary adapter.

    Example:
        >>> import torch
        >>> factors = {"l.lora_A.weight": torch.zeros(2, 4), "l.lora_A.elastic_beta": torch.ones(1, 1)}
        >>> fold_weights(factors)["l.lora_A.weight"][0]
        tensor([0.5000, 0.5000, 0.0000, 0.0000])
    """
    folded = {}
    for key, value in state.items():
        if key.endswith("." + BETA):
            continue
        beta = state.get(key.removesuffix("weight") + BETA) if key.endswith(".weight") else None
        folded[key] = value if beta is None else add_pooling(value.double(), beta.double()).to(value.dtype)
    return folded


def fold_adapter(adapter: str | Path, out: str | Path) -> Path:
    """Turn an elastic adapter into an ordinary LoRA adapter of the same rank and scaling.

    At evaluation both give the same model up to the rounding of the stored type. What else the folder holds (magnitudes of
    DoRA, modules trained whole, the record of the base model) goes along.

    Args:
        adapter: Folder of an elastic adapter.
        out: New folder.

    Returns:
        The new folder; plain PEFT loads it.

    Raises:
        AdapterError: There is no usable adapter, or it has nothing to fold.
        OutputError: The folder is not empty, or cannot be written.

    Example:
        >>> fold_adapter("runs/elastic/adapter", "runs/plain")  # doctest: +SKIP

    References:
        IR-QLoRA, arXiv 2402.05445: both connections are linear, so that they are a part of the factors.
    """
    source, target = Path(adapter), Path(out)
    config = read_adapter_config(source)
    if not isinstance(config, ElasticLoraConfig):
        raise AdapterError(f"'{adapter}' is an ordinary LoRA adapter already: there is nothing to fold")
    require_empty_dir(target, remedy="choose another --out, or empty it")
    state = {}
    with safe_open(str(source / WEIGHTS_FILE), framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
            state[key] = file.get_tensor(key)
    work = target.with_name(f".{target.name}.tmp")
    with explain_write_errors(target):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        save_file(
            {key: value.contiguous() for key, value in fold_weights(state).items()},
            work / WEIGHTS_FILE,
            {"format": "pt"},
        )
        atomic_write_text(work / CONFIG_FILE, json.dumps(ordinary(config), indent=2, sort_keys=True) + "\n")
        if (source / RECORD_FILE).is_file():
            shutil.copy(source / RECORD_FILE, work / RECORD_FILE)
        target.mkdir(parents=True, exist_ok=True)
        target.rmdir()
        work.rename(target)
    return target


def ordinary(config: ElasticLoraConfig) -> dict[str, Any]:
    """The configuration of the folded adapter, as PEFT writes it."""
    values = {key: value for key, value in config.to_dict().items() if not key.startswith("elastic")}
    values.pop("peft_type")
    plain = LoraConfig(**values).to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in plain.items()}
