"""What is wrong with a saved adapter, from its files alone or beside its base model."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorascope.adapters._initial import factor_parameters, write_factors
from lorascope.adapters._peft import adapters_disabled, components
from lorascope.adapters.checks import fingerprints
from lorascope.adapters.elastic import ELASTIC_TYPE
from lorascope.adapters.fold import fold_weights
from lorascope.adapters.load import CONFIG_FILE, WEIGHTS_FILE, quantization_of, read_adapter_record
from lorascope.core.environment import SEVERITIES, Finding
from lorascope.core.errors import AdapterError, DataError
from lorascope.core.files import read_json
from lorascope.core.seeds import preserved_random_state
from lorascope.information import effective_rank, low_rank_singular_values

_NEGLIGIBLE = 1e-8
"""Largest product of an entry of A and one of B below which an update counts as next to nothing; A starts at 0.01 to 0.1."""

_OTHERS = {
    ".lora_magnitude_vector": "DoRA's magnitudes",
    ".lora_B.bias": "biases",
    ".lora_A.bias": "biases",
    ".lora_embedding_": "factors of embeddings",
}

LITTLE = 0.5
"""Share of the rank below which the rest counts as unused."""

_CONVERT = (
    "save it with save_pretrained(OUT, path_initial_model_for_weight_conversion=FIRST), FIRST being the adapter as saved "
    "before training: an ordinary adapter of twice the rank (lorascope train does this by itself)"
)

Factors = dict[str, dict[str, Tensor]]


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
    findings = _numbers(tensors)
    factors, first = _factors(tensors), _initial_factors(initial)
    findings += _residual(config, first)
    started = read_adapter_record(folder).get("init")
    started = started if isinstance(started, Mapping) else {}
    findings += _shapes(config, factors, tensors)
    if not any(finding.severity == "error" for finding in findings if finding.check in ("numbers", "shapes")):
        kinds = {_other_kind(key) for key, tensor in tensors.items() if bool(tensor.any())}
        others = sorted(name for name in kinds if name is not None)
        found = _trained(config, factors, first, started.get("trained") is False, others, bool(started.get("residual")))
        findings += found
        if all(finding.severity != "error" for finding in found):
            findings += _rank_used(config, factors)
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


def _other_kind(key: str) -> str | None:
    """What a tensor is that changes a model besides the factors; None for factors."""
    for marker, kind in _OTHERS.items():
        if marker in key:
            return kind
    return None if ".lora_" in key else "modules trained whole"


def _numbers(tensors: Mapping[str, Tensor]) -> list[Finding]:
    bad = [
        key
        for key, tensor in tensors.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all())
    ]
    if bad:
        evidence = f"NaN or infinity in {len(bad)} of {len(tensors)} tensors, such as {bad[0]}"
        remedy = "training diverged: take an earlier checkpoint, or train again with a smaller learning rate"
        return [Finding("numbers", "error", evidence, remedy)]
    return [Finding("numbers", "good", f"all {len(tensors)} tensors are finite")]


def _residual(config: Mapping[str, Any], first: Factors | None) -> list[Finding]:
    """Initialisations that changed the base weight, told by the configuration, and by the first weights if there are any."""
    init = str(config.get("init_lora_weights")).lower()
    moved = "disable_adapter() gives the residual model, not the base: every comparison with the base is wrong"
    if init.startswith("pissa_niter"):
        evidence = (
            f"init_lora_weights is '{init}': loading draws another random decomposition than training did; {moved}"
        )
        return [Finding("residual start", "error", evidence, _CONVERT)]
    if init.startswith("pissa") or init == "olora":
        evidence = f"init_lora_weights is '{init}': loading changes the base weights again; {moved}"
        return [Finding("residual start", "warning", evidence, _CONVERT)]
    if init == "corda":
        evidence = f"a CorDA adapter saved as it is does not load (its decomposition is not in the file); {moved}"
        return [Finding("residual start", "error", evidence, _CONVERT)]
    if init == "lora_ga":
        evidence = f"a LoRA-GA adapter saved as it is loads on the wrong base weights without a word; {moved}"
        return [Finding("residual start", "error", evidence, _CONVERT)]
    if init == "loftq":
        evidence = "init_lora_weights is 'loftq': the adapter corrects a quantised base, and is wrong on the full one"
        return [
            Finding("residual start", "warning", evidence, "use it on the base that LoftQ quantised, saved beside it")
        ]
    moved_off = [name for name, pair in (first or {}).items() if len(pair) == 2 and not _is_idle(pair)]
    if moved_off:
        evidence = (
            f"the first update is not zero in {len(moved_off)} layers, such as {moved_off[0]}: if it was taken off the base "
            f"weights, this adapter is wrong on the base as it was, and {moved}"
        )
        return [Finding("residual start", "warning", evidence, _CONVERT)]
    evidence = "the configuration names no start that changes the base weights"
    return [Finding("residual start", "good", evidence)]


def _shapes(config: Mapping[str, Any], factors: Factors, tensors: Mapping[str, Tensor]) -> list[Finding]:
    findings = []
    alone = [name for name, pair in factors.items() if len(pair) != 2]
    if alone:
        findings.append(
            Finding("shapes", "error", f"{len(alone)} layers have one factor only, such as {alone[0]}", "save it again")
        )
    if not factors:
        kinds = sorted({key.rsplit(".", 1)[-1] for key in tensors}) or ["nothing"]
        evidence = f"no two-dimensional factors A and B in the file (it holds {', '.join(kinds[:4])})"
        findings.append(
            Finding("shapes", "warning" if tensors else "error", evidence, "" if tensors else "save it again")
        )
    strange = [key for key in tensors if ".lora_" in key and not key.startswith("base_model.model.")]
    if strange:
        evidence = f"{len(strange)} tensors, such as {strange[0]}, do not begin with base_model.model.: PEFT loads none"
        findings.append(Finding("shapes", "error", evidence, "save it with PEFT's save_pretrained, or rename them"))
    wrong, wide = [], []
    for name, pair in factors.items():
        if len(pair) != 2:
            continue
        rank, smallest = pair["A"].shape[0], min(pair["A"].shape[1], pair["B"].shape[0])
        if rank != pair["B"].shape[1] or rank != _rank_of(config, name):
            wrong.append(f"{name} ({rank}, the configuration says {_rank_of(config, name)})")
        if rank > smallest > 1:
            wide.append(f"{name} (rank {rank}, smaller side {smallest})")
    if wrong:
        remedy = "the configuration and the weights are of different runs: save the adapter again"
        findings.append(Finding("shapes", "error", f"ranks differ in {len(wrong)} layers, such as {wrong[0]}", remedy))
    if wide:
        remedy = "a smaller rank there changes nothing: set rank_pattern"
        findings.append(Finding("rank over size", "warning", f"{len(wide)} layers, such as {wide[0]}", remedy))
    return findings


def _rank_of(config: Mapping[str, Any], name: str) -> int:
    pattern = config.get("rank_pattern") or {}
    return int(pattern.get(get_pattern_key(pattern.keys(), name), config.get("r", 0)))


def _is_idle(pair: Mapping[str, Tensor]) -> bool:
    """Whether B A is zero up to the rounding of its own sum, as in an exported residual adapter that was not trained."""
    a, b = pair["A"].double(), pair["B"].double()
    update = float((b.T @ b * (a @ a.T)).sum().clamp_min(0).sqrt())
    return update <= 1e-6 * float(a.norm() * b.norm())


def _scale_of(config: Mapping[str, Any], name: str) -> float:
    pattern = config.get("alpha_pattern") or {}
    return float(pattern.get(get_pattern_key(pattern.keys(), name), config.get("lora_alpha", 8)))


def _trained(
    config: Mapping[str, Any],
    factors: Factors,
    initial: Factors | None,
    fresh: bool,
    others: list[str],
    residual: bool,
) -> list[Finding]:
    """Did training change anything, and everything?"""
    whole = {name: pair for name, pair in factors.items() if len(pair) == 2}
    if not whole:
        return []
    idle = [name for name, pair in whole.items() if not _scale_of(config, name) or _is_idle(pair)]
    findings = []
    if len(idle) == len(whole) and fresh:
        remedy = "train it: PeftModel.from_pretrained(base, FOLDER, is_trainable=True)"
        return [Finding("did nothing", "note", "a first adapter of lorascope init, which was not trained yet", remedy)]
    if len(idle) == len(whole):
        silent = any(not _scale_of(config, name) for name in whole)
        zero = not any(bool(pair["B"].any()) for pair in whole.values())
        why = "lora_alpha is 0" if silent else "B is zero" if zero else "B A is zero"
        remedy = (
            "it was saved before training, its weights were frozen (is_trainable=True when loading to train), or the "
            "trainer's optimiser did not have them: look at requires_grad and the number of trainable parameters"
        )
        if others:
            evidence = f"{why} in all {len(whole)} layers: only {' and '.join(others)} can change the model"
            return [
                Finding("did nothing", "warning", evidence, "fine if that is what was trained; otherwise " + remedy)
            ]
        return [
            Finding("did nothing", "error", f"{why} in all {len(whole)} layers: the adapter changes nothing", remedy)
        ]
    largest = max(float(pair["B"].abs().max()) * float(pair["A"].abs().max()) for pair in whole.values())
    if idle:
        evidence = f"the update is zero in {len(idle)} of {len(whole)} layers, such as {idle[0]}"
        remedy = "these layers got no gradient or were frozen: leave them out of target_modules, or find out why"
        findings.append(Finding("never updated", "warning", evidence, remedy))
    elif largest < _NEGLIGIBLE:
        evidence = f"the largest product of entries of A and B is {largest:.1e}: the update is next to nothing"
        remedy = "the learning rate was tiny or training was short: compare the model's answers with and without it"
        findings.append(Finding("did nothing", "warning", evidence, remedy))
    else:
        findings.append(Finding("did nothing", "good", f"every one of {len(whole)} layers has an update"))
    active = {name: pair for name, pair in whole.items() if name not in idle}
    if initial is not None:
        for name, pair in whole.items():
            before = initial.get(name, {})
            if any(kind not in before or before[kind].shape != pair[kind].shape for kind in pair):
                raise AdapterError(
                    f"the first adapter lacks layer '{name}', or has it of another shape: give the one this run started from"
                )
        frozen = [name for name, pair in active.items() if torch.equal(pair["A"], initial[name]["A"])]
        both = [name for name in whole if all(torch.equal(whole[name][k], initial[name][k]) for k in ("A", "B"))]
        if both:
            evidence = f"{len(both)} of {len(whole)} layers are exactly as they started, such as {both[0]}"
            findings.append(Finding("never updated", "warning", evidence, "they were frozen, or got no gradient"))
        frozen = [name for name in frozen if name not in both]
        how = "exactly as it started"
    elif residual:
        frozen, how = [], ""  # half of its A is that of the start, by design
    else:
        frozen = [name for name, pair in active.items() if _as_drawn(pair["A"])]
        how = "within the range PEFT draws it from, or orthonormal as lorascope starts it"
    if frozen:
        evidence = f"A is {how} in {len(frozen)} of {len(whole)} layers, such as {frozen[0]}, while B is not zero"
        remedy = "fine if A was frozen on purpose; otherwise it got no gradient, or the learning rate was tiny"
        findings.append(Finding("A as it started", "warning" if initial is not None else "note", evidence, remedy))
    return findings


def _as_drawn(a: Tensor) -> bool:
    """Whether A can still be what it was made as: inside PEFT's range and nearly up to its edge, or orthonormal."""
    wide = a.double()
    bound = a.shape[1] ** -0.5
    largest = float(wide.abs().max()) / bound
    uniform = a.numel() >= 256 and 0.98 <= largest <= 1.0 + 1e-6
    gram = wide @ wide.T * 3
    return uniform or float((gram - torch.eye(len(gram), dtype=gram.dtype)).abs().max()) < 1e-5


def _rank_used(config: Mapping[str, Any], factors: Factors) -> list[Finding]:
    shares, used, ranks = [], [], []
    for pair in factors.values():
        if len(pair) != 2 or _is_idle(pair):
            continue
        values = low_rank_singular_values(pair["A"].double(), pair["B"].double(), 1.0)
        used.append(float(effective_rank(values)))
        ranks.append(pair["A"].shape[0])
        shares.append(used[-1] / min(ranks[-1], *pair["A"].shape, *pair["B"].shape))
    if not used:
        return []
    share, most = statistics.median(shares), statistics.quantiles([*used, used[0]], n=10)[-1]
    evidence = (
        f"the update uses {statistics.median(used):.1f} of {statistics.median(ranks):g} directions in the median layer "
        f"(effective rank), {most:.1f} in nine layers of ten"
    )
    if share < LITTLE:
        return [
            Finding(
                "unused rank", "note", evidence, f"a rank of {max(1, round(most))} may do: compare with a short run"
            )
        ]
    if share > 0.9:
        return [
            Finding(
                "unused rank", "note", f"{evidence}: all it has", "a larger rank may help: compare with a short run"
            )
        ]
    return [Finding("unused rank", "good", evidence)]


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
