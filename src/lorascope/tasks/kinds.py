"""What kind of model an adapter belongs to: a language model, a classifier of texts, or one of images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from lorascope.core.errors import AdapterError, ModelError, unknown_name
from lorascope.tasks.embedded import resolve_model, why_not

KINDS = ("causal", "sequence", "image")
"""Kinds of models that the command line loads."""

_TASK_TYPES = {"CAUSAL_LM": "causal", "SEQ_CLS": "sequence"}
_MAPPINGS: dict[str, Mapping[str, Any]] = {
    "causal": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "sequence": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "image": MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
}
_IN_PYTHON = "call lorascope.measure(model, batches) in Python for others"


def choose_kind(adapter: str, task_type: str | None, base: str, asked: str | None = None) -> str:
    """The kind of an adapter: what its ``task_type`` says, else what was asked for, else what its base model is.

    An adapter without a ``task_type`` (PEFT writes none for image models) takes the kind of its base model's
    architecture, such as ``ViTForImageClassification``. Where that names no head (``ViTModel``), the kind is clear only
    if models of this type exist as one kind alone.

    Args:
        adapter: The adapter's name, for messages.
        task_type: ``task_type`` of the adapter's configuration.
        base: Folder, hub id or embedded name of the base model; its configuration is read only if it is needed.
        asked: The kind that the user asked for.

    Returns:
        ``causal``, ``sequence`` or ``image``.

    Raises:
        InputError: There is no such kind.
        AdapterError: The adapter is of a kind that is not loaded here, of another kind than was asked for, or its kind
            cannot be told.
        ModelError: The base model's configuration cannot be read.

    Example:
        >>> choose_kind("my/adapter", "SEQ_CLS", "my/base")
        'sequence'
    """
    if asked is not None and asked not in KINDS:
        raise unknown_name("kind", asked, KINDS)
    if task_type:
        if task_type not in _TASK_TYPES:
            raise AdapterError(
                f"adapter '{adapter}' is for {task_type}: this command loads language models (CAUSAL_LM) and classifiers "
                f"of texts (SEQ_CLS) and images; {_IN_PYTHON}"
            )
        kind = _TASK_TYPES[task_type]
        if asked not in (None, kind):
            raise AdapterError(
                f"adapter '{adapter}' is for {task_type}, not for --kind {asked}: leave --kind out, or give {kind}"
            )
        return kind
    if asked is not None:
        return asked
    config = read_config(base)
    named = [name for name in config.architectures or [] if isinstance(name, str)]
    found = [kind for kind in KINDS if any(name in _classes(kind) for name in named)]
    found = found or [kind for kind in KINDS if config.model_type in _MAPPINGS[kind]]
    if len(found) == 1:
        return found[0]
    what = ", ".join(named) or f"model type {config.model_type}"
    if not found:
        raise AdapterError(
            f"adapter '{adapter}' names no task_type and its base model '{base}' ({what}) is no language model and no "
            f"classifier: {_IN_PYTHON}"
        )
    raise AdapterError(
        f"adapter '{adapter}' names no task_type and its base model '{base}' ({what}) could be of several kinds: give "
        f"--kind {' or '.join(found)}"
    )


def read_config(base: str) -> PretrainedConfig:
    """The configuration of a model; code from the hub is never executed.

    Raises:
        ModelError: There is none that can be read.
    """
    source = resolve_model(base)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(why_not(base, "configuration", error, "model")) from error
    return config


def _classes(kind: str) -> set[str]:
    """Names of all model classes of a kind; some model types have several."""
    names: set[str] = set()
    for name in _MAPPINGS[kind].values():
        names.update([name] if isinstance(name, str) else name)
    return names
