"""Loading a base model, with its layers shared where that is asked for or where it was saved so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lorascope.adapters.sharing import is_shared_folder, load_shared, share_layers
from lorascope.core.errors import InputError, LorascopeError, ModelError, unknown_name
from lorascope.measuring.quantized import load_quantised, quantization_config, recorded_config
from lorascope.tasks import embedded


def load_model_and_tokenizer(
    name_or_path: str | Path,
    *,
    dtype: str = "float32",
    device: str | torch.device | None = None,
    share: int | None = None,
    quantize: str | Mapping[str, Any] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer; code from the hub is never executed.

    A folder that holds a model whose layers share (`lorascope.adapters.share_layers`) is tied again.

    Args:
        name_or_path: ``"smollm2"`` (embedded, no network), a local folder, or a hub id such as
            ``"HuggingFaceTB/SmolLM2-135M-Instruct"``.
        dtype: Type of the weights: ``float32``, ``bfloat16`` or ``float16``.
        device: Where to put the model; by default it stays on the CPU.
        share: Layers in a group of the second half that share weights; by default the model is as it was saved.
        quantize: Quantise the dense model: a name such as ``"icq-nf4"`` (see `lorascope.measuring.quantized.NAMES`), or the
            configuration that an adapter's record holds. By default the model is as it was saved.

    Returns:
        The model in evaluation mode, and the tokenizer.

    Raises:
        InputError: The dtype, the group or the quantisation is wrong.
        ModelError: There is no such model, it is not a causal language model, it has no tokenizer, its layers cannot be
            shared so, or it is quantised already.
        MissingDependencyError: The embedded model is asked for and not installed.

    Example:
        >>> model, tokenizer = load_model_and_tokenizer("smollm2", share=4)  # doctest: +SKIP
    """
    tokenizer: PreTrainedTokenizerBase
    if quantize is not None:
        return _load_quantised(name_or_path, dtype, device, share, quantize)
    if is_shared_folder(folder := Path(name_or_path).expanduser()):
        if dtype not in embedded.DTYPES:
            raise unknown_name("dtype", dtype, embedded.DTYPES)
        with embedded.quiet_transformers():
            model = load_shared(folder, dtype=embedded.DTYPES[dtype])
            try:
                tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
            except (OSError, ValueError, KeyError, ImportError) as error:
                reason = " ".join(str(error).split())[:200]
                raise ModelError(
                    f"cannot load the tokenizer of '{name_or_path}' ({reason}): save it there with "
                    "tokenizer.save_pretrained"
                ) from error
        if device is not None:
            torch.nn.Module.to(model, device)
    else:
        model, tokenizer = embedded.load_model_and_tokenizer(name_or_path, dtype=dtype, device=device)
    if share is not None:
        share_layers(model, share)
    return model, tokenizer


def _load_quantised(
    name_or_path: str | Path,
    dtype: str,
    device: str | torch.device | None,
    share: int | None,
    quantize: str | Mapping[str, Any],
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if dtype not in embedded.DTYPES:
        raise unknown_name("dtype", dtype, embedded.DTYPES)
    if is_shared_folder(Path(name_or_path).expanduser()) or (share or 1) > 1:
        raise InputError("layers that share weights can't be quantised: leave out share, or quantize")
    config = quantization_config(quantize, dtype=dtype) if isinstance(quantize, str) else recorded_config(quantize)
    source = embedded.resolve_model(name_or_path)
    with embedded.quiet_transformers():
        try:
            model = load_quantised(name_or_path, config, dtype=dtype)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            if isinstance(error, LorascopeError):
                raise
            raise ModelError(embedded.why_not(str(name_or_path), "model", error)) from error
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(embedded.why_not(str(name_or_path), "tokenizer", error)) from error
    if device is not None:
        torch.nn.Module.to(model, device)
    return model, tokenizer
