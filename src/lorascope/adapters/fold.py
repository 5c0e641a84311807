"""Elastic adapters as ordinary LoRA: the same model, for everything that reads LoRA."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lorascope.adapters._elastic import BETA, add_pooling
from lorascope.adapters.elastic import ElasticLoraConfig
from lorascope.adapters.load import (
    CONFIG_FILE,
    RECORD_FILE,
    WEIGHTS_FILE,
    read_adapter_config,
    read_adapter_record,
)
from lorascope.core.errors import AdapterError
from lorascope.core.files import appearing_folder, atomic_write_text, explain_write_errors

CARD_FILE = "README.md"


def fold_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add each connection to its factor: A + beta1 P and B + beta2 P, in float64, in the type of the factor.

    Args:
        state: Tensors of an adapter by their names in its file.

    Returns:
        The tensors of the ordinary adapter.

    Raises:
        AdapterError: A strength is missing, or has another shape than it must.

    Example:
        >>> import torch
        >>> factors = {"l.lora_A.weight": torch.zeros(1, 2, 4), "l.lora_A.elastic_beta": torch.ones(1, 1)}
        >>> fold_weights(factors)["l.lora_A.weight"][0]
        tensor([0.5000, 0.5000, 0.0000, 0.0000])
    """
    folded = {}
    for key, value in state.items():
        if key.endswith("." + BETA):
            continue
        beta = state.get(key.removesuffix("weight") + BETA) if key.endswith(".weight") else None
        if beta is None and ".lora_" in key and value.dim() == 3:
            raise AdapterError(f"the strength of '{key}' is missing in the file: the adapter was not saved completely")
        if beta is not None and (value.dim() not in (2, 3) or beta.numel() != 1):
            raise AdapterError(
                f"'{key}' has shape {tuple(value.shape)} and {beta.numel()} strengths: the file is damaged"
            )
        if beta is not None:
            factor = value.reshape(value.shape[-2:])
            value = add_pooling(factor.double(), beta.double()).to(value.dtype)
        folded[key] = value
    return folded


def _check_pairs(state: dict[str, Tensor]) -> None:
    """Refuse factors without a partner of their rank."""
    ranks = {
        key: value.shape[-2 if ".lora_A." in key else -1]
        for key, value in state.items()
        if key.endswith((".lora_A.weight", ".lora_B.weight"))
    }
    for key, rank in ranks.items():
        other = key.replace(".lora_A.", ".lora_B.") if ".lora_A." in key else key.replace(".lora_B.", ".lora_A.")
        if ranks.get(other) != rank:
            raise AdapterError(
                f"'{key}' of rank {rank} has no partner of that rank in the file: the adapter was not saved completely"
            )


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
    source, target = Path(adapter), Path(out).resolve()
    config = read_adapter_config(source)
    if not isinstance(config, ElasticLoraConfig):
        raise AdapterError(
            f"'{adapter}' is an ordinary LoRA adapter already (residual ones are converted when they are saved): there is "
            "nothing to fold"
        )
    names = config.target_modules
    if not isinstance(config.r, int) or not isinstance(names, str | list | set | tuple | None):
        raise AdapterError(
            f"'{source / CONFIG_FILE}' has rank {config.r!r} for layers {names!r}: it was changed by hand"
        )
    state = {}
    with safe_open(str(source / WEIGHTS_FILE), framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
            state[key] = file.get_tensor(key)
    folded = {key: value.contiguous() for key, value in fold_weights(state).items()}
    _check_pairs(folded)
    with explain_write_errors(target), appearing_folder(target) as work:
        save_file(folded, work / WEIGHTS_FILE, {"format": "pt"})
        atomic_write_text(work / CONFIG_FILE, json.dumps(ordinary(config), indent=2, sort_keys=True) + "\n")
        atomic_write_text(work / CARD_FILE, _card(config, read_adapter_record(source)))
        if (source / RECORD_FILE).is_file():
            shutil.copy(source / RECORD_FILE, work / RECORD_FILE)
    return target


def ordinary(config: ElasticLoraConfig) -> dict[str, Any]:
    """The configuration of the folded adapter, as PEFT writes it."""
    values = {key: value for key, value in config.to_dict().items() if not key.startswith("elastic")}
    values.pop("peft_type")
    plain = LoraConfig(**values).to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in plain.items()}


def _card(config: ElasticLoraConfig, record: dict[str, Any]) -> str:
    """The model card of the folded adapter."""
    base = config.base_model_name_or_path or "the base model"
    data = ModelCardData(
        library_name="peft",
        base_model=config.base_model_name_or_path or None,
        tags=["lora", "lorascope", "transformers"],
    )
    lines = [
        f"---\n{data.to_yaml()}\n---",
        f"# LoRA adapter for {base}",
        f"An ordinary {'DoRA' if config.use_dora else 'LoRA'} adapter of rank {config.r}, folded by lorascope from an "
        "elastic one (IR-QLoRA, arXiv 2402.05445): its connections are linear, so they are a part of the two factors now, "
        "and the model is the same up to rounding. It loads with plain PEFT:",
        "```python\nfrom peft import PeftModel\n\n"
        'model = PeftModel.from_pretrained(base_model, "PATH_OF_THIS_FOLDER")\n```',
    ]
    if record.get("quantization"):
        lines.append(
            f"It was trained on a base quantised as {record['quantization']}, whose errors it may correct: on other weights "
            "of the same model it works, and its numbers will differ a little."
        )
    return "\n\n".join(lines) + "\n"
