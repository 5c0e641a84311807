"""What is wrong with a saved adapter, from its files alone or beside its base model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorascope.adapters._initial import factor_parameters, write_factors
from lorascope.adapters._peft import adapters_disabled, components
from lorascope.adapters.checks import fingerprints
from lorascope.adapters.elastic import ELASTIC_TYPE
from lorascope.adapters.findings import (
    Factors,
    changes_base,
    numbers,
    other_kind,
    rank_used,
    residual_start,
    shapes,
    sizes,
    updates,
    was_trained,
)
from lorascope.adapters.fold import fold_weights
from lorascope.adapters.load import CONFIG_FILE, WEIGHTS_FILE, quantization_of, read_adapter_record
from lorascope.core.environment import SEVERITIES, Finding
from lorascope.core.errors import AdapterError, DataError
from lorascope.core.files import read_json
from lorascope.core.seeds import preserved_random_state


def examine_adapter(
    adapter: str | Path, *, base: nn.Module | None = None, initial: str | Path | None = None
) -> list[Finding]:
    """Look at a saved LoRA adapter.

    Args:
        adapter: Folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
        base: The base model that it will be used on, to check that it is the right one.
        initial: Folder of the adapter as it was saved before training, to tell layers that never changed.

    Returns:
        Findings, the worst first.

    Raises:
        AdapterError: There is no such folder, or it holds no adapter.

    Example:
        >>> examine_adapter("out/adapter")[0].severity                # doctest: +SKIP
    """
    folder = Path(adapter)
    config = _config(folder)
    kind = str(config.get("peft_type"))
    if kind not in ("LORA", ELASTIC_TYPE):
        return [Finding("kind", "note", f"a {kind} adapter: only LoRA adapters are examined")]
    if not (folder / WEIGHTS_FILE).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        evidence = "the weights are a pickle (adapter_model.bin)" if pickled else f"no {WEIGHTS_FILE}"
        return [Finding("file", "error", evidence, "load it where you trust it and save it again with save_pretrained")]
    try:
        tensors = fold_weights(load_file(str(folder / WEIGHTS_FILE)))
    except (SafetensorError, OSError) as error:
        return [Finding("file", "error", f"{WEIGHTS_FILE} is cut short or damaged ({error})", "copy or save it again")]
    findings = numbers(tensors)
    factors, first = _factors(tensors), _initial_factors(initial)
    findings += residual_start(config, first)
    started = read_adapter_record(folder).get("init")
    started = started if isinstance(started, Mapping) else {}
    findings += shapes(config, factors, tensors)
    if not any(finding.severity == "error" for finding in findings if finding.check in ("numbers", "shapes")):
        kinds = {other_kind(key) for key, tensor in tensors.items() if bool(tensor.any())}
        others = sorted(name for name in kinds if name is not None)
        findings += _training(config, factors, first, started, others)
    if kind == ELASTIC_TYPE:
        findings.append(
            Finding(
                "kind",
                "note",
                "an elastic adapter, examined as the ordinary one that it folds into; PEFT alone refuses it",
                "lorascope fold makes it ordinary",
            )
        )
    findings += _base(folder, config, factors, base)
    if saved := config.get("modules_to_save"):
        names = [saved] if isinstance(saved, str) else map(str, saved)
        findings.append(Finding("whole modules", "note", f"trained whole beside LoRA: {', '.join(names)}"))
    return sorted(findings, key=lambda finding: -SEVERITIES.index(finding.severity))


def examine_libraries() -> list[Finding]:
    """Whether torch and PEFT work as lorascope needs them: a tiny adapter is made, found, and switched off."""
    findings = []
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    evidence = f"torch {torch.__version__} on {device or 'the CPU'}, {torch.get_num_threads()} threads"
    findings.append(Finding("torch", "good", evidence))
    try:
        with preserved_random_state(), torch.no_grad():
            model = get_peft_model(nn.Sequential(nn.Linear(4, 3)), LoraConfig(r=2, target_modules=["0"])).eval()
            x, (component,) = torch.ones(1, 4), components(model)
            before = model(x)
            a, b, _ = factor_parameters(component, "default")
            write_factors(component, "default", torch.ones_like(a), torch.ones_like(b))
            changed = not torch.equal(model(x), before)
            with adapters_disabled(model):
                same = torch.equal(model(x), before)
    except Exception as error:  # whatever another version of PEFT raises, it means the same
        evidence = f"a tiny adapter fails with {type(error).__name__}: {' '.join(str(error).split())[:160]}"
        return [
            *findings,
            Finding("peft", "error", evidence, "install the version that lorascope was tested with: peft 0.21"),
        ]
    if not (changed and same):
        evidence = "an adapter is not applied, or not switched off"
        return [
            *findings,
            Finding("peft", "error", evidence, "install the version that lorascope was tested with: peft 0.21"),
        ]
    return [*findings, Finding("peft", "good", "a tiny adapter is found, written, applied and switched off")]


def _training(
    config: Mapping[str, Any], factors: Factors, first: Factors | None, started: Mapping[str, Any], others: list[str]
) -> list[Finding]:
    """What training did, as far as the files tell."""
    if not any(len(pair) == 2 for pair in factors.values()):
        return []
    if first is None and changes_base(config):
        evidence = "B A holds what the start took off the base weights, so that it does not tell what training changed"
        remedy = "give the adapter as it was saved before training with --initial"
        return [Finding("did nothing", "note", evidence, remedy)]
    added, residual = updates(factors, first), bool(started.get("residual"))
    found = was_trained(config, factors, added, first, started.get("trained") is False, others, residual)
    findings = [*found, *sizes(config, added)]
    if any(finding.severity == "error" for finding in found):
        return findings
    moved = any(added[name] is not factors[name] for name in factors)
    return [*findings, *rank_used(added, doubled=moved or residual)]


def _config(folder: Path) -> Mapping[str, Any]:
    if not folder.is_dir():
        raise AdapterError(f"no adapter at '{folder}': give a folder with {CONFIG_FILE} and {WEIGHTS_FILE}")
    if not (folder / CONFIG_FILE).is_file():
        nested = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_FILE}"))
        hint = f"; did you mean '{folder / nested[0]}'?" if nested else ""
        raise AdapterError(f"no {CONFIG_FILE} in '{folder}': it is no PEFT adapter{hint}")
    try:
        config = read_json(folder / CONFIG_FILE)
    except DataError as error:
        raise AdapterError(str(error)) from error
    if not isinstance(config, Mapping) or not isinstance(config.get("peft_type"), str):
        raise AdapterError(f"'{folder / CONFIG_FILE}' was not written by PEFT: it names no peft_type")
    if config["peft_type"] in ("LORA", ELASTIC_TYPE):
        ranks = [config.get("r"), *_values(config, folder, "rank_pattern")]
        wrong = [rank for rank in ranks if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1]
        if wrong:
            raise AdapterError(
                f"'{folder / CONFIG_FILE}' has {wrong[0]!r} for a rank: it was changed by hand or damaged"
            )
        for scale in (config.get("lora_alpha", 8), *_values(config, folder, "alpha_pattern")):
            if isinstance(scale, bool) or not isinstance(scale, int | float):
                raise AdapterError(
                    f"'{folder / CONFIG_FILE}' has {scale!r} for alpha: it was changed by hand or damaged"
                )
    return config


def _values(config: Mapping[str, Any], folder: Path, name: str) -> list[Any]:
    """The values of a pattern, whose keys must be regular expressions."""
    pattern = config.get(name) or {}
    if not isinstance(pattern, Mapping):
        raise AdapterError(f"'{folder / CONFIG_FILE}' has {pattern!r} for {name}, where a mapping belongs")
    for key in pattern:
        try:
            re.compile(key)
        except re.error as error:
            raise AdapterError(
                f"'{folder / CONFIG_FILE}': {name} names '{key}', which is no pattern ({error})"
            ) from error
    return list(pattern.values())


def _factors(tensors: Mapping[str, Tensor]) -> Factors:
    """Layer -> its two-dimensional factors ``A`` and ``B``."""
    found: Factors = {}
    for key, tensor in tensors.items():
        for kind in ("A", "B"):
            marker = f".lora_{kind}."
            if marker in key and tensor.dim() == 2:
                name = key.split(marker)[0].removeprefix("base_model.model.")
                found.setdefault(name, {})[kind] = tensor
    return found


def _initial_factors(initial: str | Path | None) -> Factors | None:
    if initial is None:
        return None
    path = Path(initial) / WEIGHTS_FILE
    if not path.is_file():
        raise AdapterError(f"no {WEIGHTS_FILE} in '{initial}': give the folder of the adapter as saved before training")
    try:
        return _factors(fold_weights(load_file(str(path))))
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"'{path}' is cut short or damaged ({error}): copy or save it again") from error


def _base(folder: Path, config: Mapping[str, Any], factors: Factors, base: nn.Module | None) -> list[Finding]:
    named = config.get("base_model_name_or_path")
    if base is None:
        if not named:
            remedy = "note which model it is for; check it with --model"
            return [Finding("base", "warning", "the adapter names no base model", remedy)]
        return [Finding("base", "note", f"made for '{named}', which was not looked at", "pass --model to check it")]
    record = read_adapter_record(folder)
    known = {key: value for key, value in record.items() if key.startswith("base_fingerprint")}
    modules = dict(base.named_modules())
    lacking = [name for name in factors if name not in modules]
    if lacking:
        evidence = f"{len(lacking)} of {len(factors)} layers are not in this model, such as {lacking[0]}"
        return [Finding("base", "error", evidence, f"take the model it was trained on: '{named}'")]
    for name, pair in factors.items():
        weight = getattr(modules[name], "weight", None)
        sides = {pair["A"].shape[1], pair["B"].shape[0]} if len(pair) == 2 else set()
        plain = isinstance(weight, Tensor) and weight.dim() == 2 and weight.is_floating_point()
        if sides and plain and isinstance(weight, Tensor) and set(weight.shape) != sides:
            evidence = f"layer '{name}' is {tuple(weight.shape)} here, and the adapter is for {sorted(sides)}"
            return [Finding("base", "error", evidence, f"take the model it was trained on: '{named}'")]
    there, now = record.get("quantization"), quantization_of(base)
    if known and there != now:
        evidence = (
            f"trained on {there or 'weights that were not quantised'}, and this is "
            f"{now or 'a model that is not quantised'}: it corrects errors of another base"
        )
        return [Finding("base", "warning", evidence, "quantise the base in the same way")]
    if known:
        here = fingerprints(base)
        if any(known.get(kind, value) != value for kind, value in here.items()):
            evidence = "the weights of this model have another fingerprint than those it was trained on"
            return [Finding("base", "error", evidence, f"take the model it was trained on: '{named}'")]
        return [Finding("base", "good", "the weights have the fingerprint of those it was trained on")]
    evidence = (
        f"all {len(factors)} layers fit this model in shape; whether its weights are the right ones is not recorded"
    )
    missed = _missed(config, factors, modules)
    if missed:
        evidence = f"target_modules name {missed} more linear layers of this model than the file has factors for"
        return [
            Finding("base", "warning", evidence, "the file is not whole, or it is for another model: save it again")
        ]
    given = str(getattr(getattr(base, "config", None), "_name_or_path", "") or "")
    if named and given and Path(str(named)).name != Path(given).name:
        evidence += f"; it was made for '{named}', and this is '{given}'"
        return [Finding("base", "warning", evidence, f"take '{named}', unless this is a copy of it under another name")]
    return [Finding("base", "note", evidence)]


def _missed(config: Mapping[str, Any], factors: Factors, modules: Mapping[str, nn.Module]) -> int:
    """How many linear layers ``target_modules`` names, as a plain list, that the file does not have."""
    names = config.get("target_modules")
    narrowed = any(config.get(key) for key in ("layers_to_transform", "exclude_modules", "layers_pattern"))
    if not isinstance(names, list) or narrowed:
        return 0
    ends = tuple(f".{name}" for name in names)
    wanted = [
        name
        for name, module in modules.items()
        if isinstance(module, nn.Linear | Conv1D) and (name in names or name.endswith(ends))
    ]
    return len([name for name in wanted if name not in factors])
