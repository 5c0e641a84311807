"""Loading a base model, with its layers shared where that is asked for or where it was saved so."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lorascope.adapters.sharing import is_shared_folder, load_shared, share_layers
from lorascope.core.errors import ModelError, unknown_name
from lorascope.tasks import embedded


def load_model_and_tokenizer(
    name_or_path: str | Path,
    *,
    dtype: str = "float32",
    device: str | torch.device | None = None,
    share: int | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer; code from the hub is never executed.

    A folder that holds a model whose layers share (`lorascope.adapters.share_layers`) is tied again.

    Args:
        name_or_path: ``"smollm2"`` (embedded, no network), a local folder, or a hub id such as
            ``"HuggingFaceTB/SmolLM2-135M-Instruct"``.
        dtype: Type of the weights: ``float32``, ``bfloat16`` or ``float16``.
        device: Where to put the model; by default it stays on the CPU.
        share: Layers in a group of the second half that share weights; by default the model is as it was saved.

    Returns:
        The model in evaluation mode, and the tokenizer.

    Raises:
        InputError: The dtype or the group is wrong.
        ModelError: There is no such model, it is not a causal language model, it has no tokenizer, or its layers cannot be
            shared so.
        MissingDependencyError: The embedded model is asked for and not installed.

    Example:
        >>> model, tokenizer = load_model_and_tokenizer("smollm2", share=4)  # doctest: +SKIP
    """
    tokenizer: PreTrainedTokenizerBase
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
