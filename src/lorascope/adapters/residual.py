"""Adapters whose first update is not zero but was taken off the base weights: keeping, restoring and exporting them."""

from __future__ import annotations

import contextlib
import functools
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from lorascope.adapters._initial import base_weight, factor_parameters, is_quantised, set_base_weight
from lorascope.adapters._peft import Component, components
from lorascope.core.errors import AdapterError
from lorascope.core.files import atomic_write_bytes

_INITIAL = "initial"
WEIGHTS_FILE = "adapter_model.safetensors"


def take_off(component: Component, adapter: str) -> None:
    """Subtract an adapter's update from the frozen weight under it, so that the layer computes as before.

    The factors are taken as they are stored: rounding them first and subtracting then leaves one rounding of the base.
    """
    a, b, scaling = factor_parameters(component, adapter)
    weight = base_weight(component)
    weight -= scaling * (b.detach().float() @ a.detach().float())
    set_base_weight(component, weight)


def check_residual(model: PeftModel, found: list[Component], adapter: str) -> None:
    """Refuse what an initialisation that changes the base cannot do.

    Raises:
        AdapterError: The base is quantised, an adapted weight is used elsewhere too, there are other adapters, or the
            adapter is of a kind that PEFT cannot convert.
    """
    config: Any = model.peft_config[adapter]
    others = sorted(set(model.peft_config) - {adapter})
    if others:
        raise AdapterError(
            f"adapter '{others[0]}' is on this base too, and taking a part off the base would change what it does: start "
            "on a model of its own, or take a mode that leaves the base as it is, such as fisher"
        )
    biases = getattr(config, "bias", "none") != "none"
    for option, wanted, given in (
        ("lora_bias", "lora_bias false", bool(getattr(config, "lora_bias", False))),
        (f"bias='{config.bias}'", "bias 'none'", biases),
        ("elastic", "an ordinary LoraConfig", bool(getattr(config, "elastic", False))),
    ):
        if given:
            raise AdapterError(
                f"an adapter with {option} can't be converted into an ordinary one of twice the rank: take {wanted}, or a "
                "mode that leaves the base as it is, such as fisher"
            )
    extra = sorted({c.name for c in components(model)} - {c.name for c in found})
    if extra:
        raise AdapterError(
            f"layer '{extra[0]}' has no factors A and B to take off its weight (an embedding?): leave it out of "
            "target_modules"
        )
    for component in found:
        if is_quantised(component.base):
            base_weight(component)  # raises
    places: dict[int, str] = {}
    for component in found:
        untyped: Any = component.base
        other = places.setdefault(untyped.weight.data_ptr(), component.name)
        if other != component.name:
            raise AdapterError(
                f"layers '{other}' and '{component.name}' share one weight, from which an update can't be taken off twice: "
                "take a mode that leaves the base as it is, such as fisher"
            )
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        layer = places.get(weight.data_ptr()) if isinstance(weight, Tensor) and not weight.is_meta else None
        if layer is not None and not name.removesuffix(".base_layer").endswith(layer):
            raise AdapterError(
                f"the weight of layer '{layer}' is also that of '{name.removeprefix('base_model.model.')}', which taking a "
                "part off it would change: leave the layer out of target_modules, or take a mode such as fisher"
            )
    if config.use_dora:
        raise AdapterError("DoRA can't start from a part of the base weight: set use_dora false, or take mode fisher")
    if config.use_rslora and (config.rank_pattern or config.alpha_pattern):
        raise AdapterError(
            "PEFT can't convert an adapter with use_rslora and a rank_pattern or alpha_pattern: leave one of them out"
        )


def initial_factors(model: nn.Module, adapter: str) -> dict[str, Tensor]:
    """Copies of an adapter's factors, ``NAME.lora_A`` and ``NAME.lora_B``, on the CPU."""
    kept: dict[str, Tensor] = {}
    for component in components(model):
        a, b, _ = factor_parameters(component, adapter)
        for kind, factor in (("lora_A", a), ("lora_B", b)):
            kept[f"{component.name}.{kind}"] = factor.detach().to("cpu", copy=True).contiguous()
    return kept


def save_factors(factors: dict[str, Tensor], path: Path) -> None:
    """Write what `initial_factors` gave."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, save(factors))


def load_factors(path: Path) -> dict[str, Tensor]:
    """Read what `save_factors` wrote."""
    return dict(load_file(str(path)))


def export_as_ordinary(model: PeftModel, adapter: str, initial: dict[str, Tensor] | None = None) -> None:
    """Let ``model.save_pretrained`` write an ordinary adapter from here on.

    The adapter's update minus its first one is an adapter of twice the rank on the base model as it was. Checkpoints of a
    trainer are ordinary adapters then too; to go on from one, the residual model has to be made again.

    Args:
        model: With the fresh residual adapter.
        adapter: Its name.
        initial: Its first factors; by default those it has now.
    """
    untyped: Any = model
    kept = initial if initial is not None else initial_factors(model, adapter)
    untyped.peft_config[adapter].init_lora_weights = True  # loading it again must not change the base again
    untyped._lorascope_initial = kept
    untyped.save_pretrained = functools.partial(_save_converted, model, adapter)


def is_residual(model: nn.Module) -> bool:
    """Whether `export_as_ordinary` was called for a model."""
    return "_lorascope_initial" in vars(model)


def save_residual(model: PeftModel, folder: str | Path, **options: Any) -> None:
    """Save an adapter as it is trained, for checkpoints: of a residual one it loads on the residual model only."""
    type(model).save_pretrained(model, str(folder), **options)


def _save_converted(model: PeftModel, adapter: str, save_directory: str | Path, **options: Any) -> None:
    untyped: Any = model
    kept: dict[str, Tensor] = untyped._lorascope_initial
    with tempfile.TemporaryDirectory(prefix="lorascope-") as folder:
        path = Path(folder) / _INITIAL
        now = {c.name: factor_parameters(c, adapter)[:2] for c in components(model)}
        trained = {name: (a.detach().clone(), b.detach().clone()) for name, (a, b) in now.items()}
        try:
            _put(now, {name: (kept[f"{name}.lora_A"], kept[f"{name}.lora_B"]) for name in now})
            plain = {key: value for key, value in options.items() if key == "save_embedding_layers"}
            type(model).save_pretrained(model, str(path), selected_adapters=[adapter], **plain)
        finally:
            _put(now, trained)
        if adapter != "default":
            path = path / adapter
            path = path.rename(path.with_name(f"{adapter}-{_INITIAL}"))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            # Of the first weights PEFT asks whether the vocabulary has grown, whatever save_embedding_layers says.
            warnings.filterwarnings("ignore", message="Could not find a config file in")
            warnings.filterwarnings("ignore", message="Unable to fetch remote file")
            type(model).save_pretrained(
                model, str(save_directory), path_initial_model_for_weight_conversion=str(path), **options
            )
    _add_whole_modules(model, adapter, Path(save_directory))


def _add_whole_modules(model: PeftModel, adapter: str, folder: Path) -> None:
    """Add what was trained whole beside the factors (a classifier's head): PEFT leaves it out of what it converts."""
    file = (folder if adapter == "default" else folder / adapter) / WEIGHTS_FILE
    state = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items() if ".lora_" not in name}
    if whole and file.is_file():
        save_file({**load_file(str(file)), **whole}, str(file), metadata={"format": "pt"})


def _put(parameters: dict[str, tuple[nn.Parameter, nn.Parameter]], values: dict[str, tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for name, pair in parameters.items():
            for parameter, value in zip(pair, values[name], strict=True):
                parameter.copy_(value)


@contextlib.contextmanager
def base_weights_kept(model: nn.Module) -> Iterator[None]:
    """Give a model the weights of its linear layers back that are changed in here.

    Args:
        model: The base model, before an adapter is put on it.
    """
    kept = {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2 and parameter.is_floating_point()
    }
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                clean = name.replace(".base_layer.", ".")
                if clean in kept:
                    parameter.data = kept[clean]
