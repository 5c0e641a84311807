"""Putting a fresh LoRA adapter on a model, and taking it off again."""

from __future__ import annotations

import contextlib
import functools
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lorascope.adapters import ElasticLoraConfig, check_rank, support_quantised
from lorascope.core.errors import AdapterError, InputError, ModelError, unknown_name
from lorascope.core.seeds import derive_seed, preserved_random_state
from lorascope.quantization import IcqLinear, icq_layers
from lorascope.training.spec import RunSpec


def fused_experts(model: nn.Module) -> list[str]:
    """Parameters that hold the weights of all experts of a block in one tensor (experts, in, out), by their last names.

    A mixture-of-experts feed-forward layer in transformers is no `Linear`, so "all linear layers" would leave it out.

    Example:
        >>> fused_experts(nn.Linear(2, 2))
        []
    """
    found = {
        ".".join(name.split(".")[-2:])
        for name, parameter in model.named_parameters()
        if parameter.dim() == 3 and "expert" in name
    }
    return sorted(found)


def output_head(model: nn.Module) -> nn.Module | None:
    """The layer that turns hidden states into logits over tokens; None for models without one."""
    if not isinstance(model, PreTrainedModel):
        return None
    untyped: Any = model
    head: nn.Module | None = untyped.get_output_embeddings()
    return head


def lora_config(model: nn.Module, spec: RunSpec, *, rank: int | None = None) -> LoraConfig:
    """The PEFT configuration that a spec asks for.

    ``"all-linear"`` means every dense layer of attention and feed-forward, that is: every `Linear` and `Conv1D` except
    the output head and, where there are fused experts, except the router; and the experts' tensors.

    Args:
        model: The base model.
        spec: The run.
        rank: Rank instead of the spec's, with alpha twice that.

    Returns:
        A configuration for causal language models, without a base model's name.

    Raises:
        AdapterError: Dropout or DoRA is asked for on fused experts, which PEFT cannot do.
    """
    targets: str | list[str] = spec.target_modules if isinstance(spec.target_modules, str) else [*spec.target_modules]
    experts = fused_experts(model) if targets == "all-linear" else []
    if experts:
        if spec.dropout or spec.use_dora:
            raise AdapterError(
                f"PEFT has no dropout and no DoRA for fused experts ({', '.join(experts)}): set dropout 0 and use_dora "
                "false, or name the target_modules"
            )
        # PEFT's own "all-linear" takes the router for a dense layer here.
        head = output_head(model)
        linear = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
        targets = [name for name, _ in linear]
    elif targets == "all-linear" and icq_layers(model):
        targets = dense_layers(model)  # PEFT's own "all-linear" does not see quantised layers
    kind: Callable[..., LoraConfig] = LoraConfig
    if spec.elastic is not None:
        if experts:
            raise AdapterError(
                f"fused experts ({', '.join(experts)}) have no elastic connections: leave out elastic, or name the "
                "target_modules"
            )
        kind = functools.partial(
            ElasticLoraConfig, elastic_source=spec.elastic != "u2", elastic_target=spec.elastic != "u1"
        )
    config = kind(
        task_type=TaskType.CAUSAL_LM,
        r=spec.rank if rank is None else rank,
        lora_alpha=spec.lora_alpha if rank is None else 2 * rank,
        lora_dropout=spec.dropout,
        target_modules=targets,
        target_parameters=experts or None,
        use_rslora=spec.use_rslora,
        use_dora=spec.use_dora,
    )
    return support_quantised(config)


def dense_layers(model: nn.Module) -> list[str]:
    """Names of all layers but the output head that multiply by a matrix, quantised or not: by their last parts if those
    name no other module.

    Example:
        >>> dense_layers(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
        ['0']
    """
    head = output_head(model)
    modules = dict(model.named_modules())
    wanted = {n for n, m in modules.items() if isinstance(m, nn.Linear | Conv1D | IcqLinear) and m is not head}
    last = {name.rpartition(".")[2] for name in wanted}
    alike = {name for name in modules if name.rpartition(".")[2] in last}
    return sorted(last if alike == wanted else wanted)


def attach_lora(
    model: nn.Module,
    spec: RunSpec,
    *,
    rank: int | None = None,
    prepare: Callable[[LoraConfig], None] | None = None,
) -> PeftModel:
    """Put a fresh adapter on a model, its initial values decided by the spec's seed alone.

    The update is zero at first (B = 0), so the model's outputs are unchanged.

    Args:
        model: A causal language model of transformers; changed in place.
        spec: The run.
        rank: Rank instead of the spec's; the base model is measured through a zero update of rank 1.
        prepare: Called with the configuration before the adapter is made.

    Returns:
        The PEFT model around ``model``.

    Raises:
        AdapterError: The rank is over a layer's smaller side, or no layer has such a name.
        InputError: One of several names is of no layer.
        ModelError: The model is not a causal language model, or already has an adapter.
    """
    name = type(model).__name__
    if isinstance(model, PeftModel) or hasattr(model, "peft_config"):
        raise ModelError(f"the model ({name}) already has an adapter: give the base model, model.unload()")
    if output_head(model) is None:
        raise ModelError(f"the model ({name}) has no language-model head: load it with AutoModelForCausalLM")
    dense = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)})
    config = lora_config(model, spec, rank=rank)
    if prepare is not None:
        prepare(config)
    with preserved_random_state(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")  # PEFT mends that itself for Conv1D
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # PEFT asks for it
        torch.manual_seed(derive_seed(spec.seed, "lora"))
        try:
            peft_model = get_peft_model(model, config)
        except (ValueError, re.error) as error:
            reason = " ".join(str(error).split())
            raise AdapterError(f"target_modules {spec.target_modules!r} do not fit this model: {reason}") from error
    try:
        _check_names(peft_model, spec, dense)
        check_rank(peft_model)
    except InputError:
        peft_model.unload()
        raise
    return peft_model


def _check_names(model: PeftModel, spec: RunSpec, known: list[str]) -> None:
    """Refuse a name of the list that no layer has, which PEFT passes over as long as another one fits."""
    names = [] if isinstance(spec.target_modules, str) else spec.target_modules
    found = model.targeted_module_names
    for name in names:
        if not any(layer == name or layer.endswith(f".{name}") for layer in found):
            raise unknown_name("layer in target_modules", name, known)


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
