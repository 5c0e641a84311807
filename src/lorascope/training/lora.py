"""Putting a fresh LoRA adapter on a model, and taking it off again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn

from lorascope.adapters import check_rank
from lorascope.core.errors import AdapterError, ModelError
from lorascope.core.seeds import derive_seed, preserved_random_state
from lorascope.training.spec import RunSpec


def lora_config(spec: RunSpec, *, rank: int | None = None) -> LoraConfig:
    """The PEFT configuration that a spec asks for.

    Args:
        spec: The run.
        rank: Rank instead of the spec's, with alpha twice that.

    Returns:
        A configuration for causal language models, without a base model's name.
    """
    targets = spec.target_modules
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=spec.rank if rank is None else rank,
        lora_alpha=spec.lora_alpha if rank is None else 2 * rank,
        lora_dropout=spec.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_rslora=spec.use_rslora,
        use_dora=spec.use_dora,
    )


def attach_lora(model: nn.Module, spec: RunSpec, *, rank: int | None = None) -> PeftModel:
    """Put a fresh adapter on a model, its initial values decided by the spec's seed alone.

    The update is zero at first (B = 0), so the model's outputs are unchanged.

    Args:
        model: A causal language model of transformers; changed in place.
        spec: The run.
        rank: Rank instead of the spec's; the base model is measured through a zero update of rank 1.

    Returns:
        The PEFT model around ``model``.

    Raises:
        AdapterError: The rank is over a layer's smaller side, or no layer has such a name.
        ModelError: The model is not a causal language model, or already has an adapter.
    """
    name = type(model).__name__
    if isinstance(model, PeftModel) or hasattr(model, "peft_config"):
        raise ModelError(f"the model ({name}) already has an adapter: give the base model, model.unload()")
    if not hasattr(model, "get_output_embeddings") or model.get_output_embeddings() is None:
        raise ModelError(f"the model ({name}) has no language-model head: load it with AutoModelForCausalLM")
    config = lora_config(spec, rank=rank)
    with preserved_random_state():
        torch.manual_seed(derive_seed(spec.seed, "lora"))
        try:
            peft_model = get_peft_model(model, config)
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise AdapterError(f"target_modules {spec.target_modules!r} do not fit this model: {reason}") from error
    try:
        check_rank(peft_model)
    except AdapterError:
        peft_model.unload()
        raise
    return peft_model


@contextlib.contextmanager
def adapted(model: nn.Module, attach: Callable[[nn.Module], PeftModel]) -> Iterator[PeftModel]:
    """Lend a model to an adapter and put it back as it was: no adapter, same mode, trainable weights and cache setting.

    The weights of the base model are frozen while an adapter is trained, so they need no copy.

    Args:
        model: The base model; changed in place until the end.
        attach: Puts the adapter on, for example `attach_lora`.

    Yields:
        The PEFT model.
    """
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    training = model.training
    config: Any = getattr(model, "config", None)
    use_cache = getattr(config, "use_cache", None)
    peft_model = attach(model)
    try:
        yield peft_model
    finally:
        peft_model.unload()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trainable)
            parameter.grad = None
        model.train(training)
        if use_cache is not None:
            config.use_cache = use_cache
