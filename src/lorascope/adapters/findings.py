"""What an adapter's own weights and configuration tell: numbers, start, shapes, what was trained, how much rank is used."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from torch import Tensor

from lorascope.core.environment import Finding
from lorascope.core.errors import AdapterError
from lorascope.information import effective_rank, low_rank_singular_values

_NEGLIGIBLE = 1e-8
"""Largest product of an entry of A and one of B below which an update counts as next to nothing; A starts at 0.01 to 0.1."""

_OTHERS = {
    ".lora_magnitude_vector": "DoRA's magnitudes",
    ".lora_B.bias": "biases",
    ".lora_A.bias": "biases",
    ".lora_embedding_": "factors of embeddings",
}

_HUGE = 1e5
"""Frobenius norm of an update beyond which it is no fine-tuning: weights of language models have some hundreds at most."""

LITTLE = 0.5
"""Share of the rank below which the rest counts as unused."""

_CONVERT = (
    "save it with save_pretrained(OUT, path_initial_model_for_weight_conversion=FIRST), FIRST being the adapter as saved "
    "before training: an ordinary adapter of twice the rank (lorascope train does this by itself)"
)

Factors = dict[str, dict[str, Tensor]]
"""Layer -> its two-dimensional factors ``A`` and ``B``."""


def other_kind(key: str) -> str | None:
    """What a tensor is that changes a model besides the factors; None for factors."""
    for marker, kind in _OTHERS.items():
        if marker in key:
            return kind
    return None if ".lora_" in key else "modules trained whole"


def numbers(tensors: Mapping[str, Tensor]) -> list[Finding]:
    """Whether every number is finite."""
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


def changes_base(config: Mapping[str, Any]) -> bool:
    """Whether the configuration names a start that took B A off the base weights."""
    init = str(config.get("init_lora_weights")).lower()
    return init.startswith("pissa") or init in ("olora", "corda", "lora_ga")


def updates(factors: Factors, first: Factors | None) -> Factors:
    """What each layer adds to the base as it was: B A, less the first B A where there was one.

    Raises:
        AdapterError: The first adapter has other layers or shapes.
    """
    made: Factors = {}
    for name, pair in factors.items():
        made[name] = pair
        if first is None or len(pair) != 2:
            continue
        before = first.get(name, {})
        if any(kind not in before or before[kind].shape != pair[kind].shape for kind in pair):
            raise AdapterError(
                f"the first adapter lacks layer '{name}', or has it of another shape: give the one this run started from"
            )
        if bool(before["B"].any()):
            made[name] = {"A": torch.cat([pair["A"], before["A"]]), "B": torch.cat([pair["B"], -before["B"]], 1)}
    return made


def sizes(config: Mapping[str, Any], added: Factors) -> list[Finding]:
    """Updates too large to be the result of training that went well."""
    power = 0.5 if config.get("use_rslora") else 1.0
    norms = {
        name: _scale_of(config, name) / max(1, _rank_of(config, name)) ** power * _norm(pair)
        for name, pair in added.items()
        if len(pair) == 2
    }
    huge = [name for name, norm in norms.items() if norm > _HUGE]
    if not huge:
        return []
    worst = max(huge, key=lambda name: norms[name])
    evidence = f"the update of {worst} has norm {norms[worst]:.1e}, and {len(huge)} layers are over {_HUGE:.0e}"
    remedy = "training diverged, or alpha is not the one it was trained with: take an earlier checkpoint"
    return [Finding("size", "error", evidence, remedy)]


def residual_start(config: Mapping[str, Any], first: Factors | None) -> list[Finding]:
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


def shapes(config: Mapping[str, Any], factors: Factors, tensors: Mapping[str, Tensor]) -> list[Finding]:
    """Whether there are two factors a layer, of the rank that the configuration says, under names that PEFT loads."""
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


def _norm(pair: Mapping[str, Tensor]) -> float:
    """Frobenius norm of B A."""
    a, b = pair["A"].double(), pair["B"].double()
    return float((b.T @ b * (a @ a.T)).sum().clamp_min(0).sqrt())


def _is_idle(pair: Mapping[str, Tensor]) -> bool:
    """Whether B A is zero up to the rounding of its own sum, as in an exported residual adapter that was not trained."""
    return _norm(pair) <= 1e-6 * float(pair["A"].double().norm() * pair["B"].double().norm())


def _scale_of(config: Mapping[str, Any], name: str) -> float:
    pattern = config.get("alpha_pattern") or {}
    return float(pattern.get(get_pattern_key(pattern.keys(), name), config.get("lora_alpha", 8)))


def was_trained(
    config: Mapping[str, Any],
    factors: Factors,
    added: Factors,
    initial: Factors | None,
    fresh: bool,
    others: list[str],
    residual: bool,
) -> list[Finding]:
    """Did training change anything, and everything?"""
    whole = {name: pair for name, pair in factors.items() if len(pair) == 2}
    if not whole:
        return []
    idle = [name for name in whole if not _scale_of(config, name) or _is_idle(added[name])]
    findings = []
    if len(idle) == len(whole) and fresh:
        remedy = "train it: PeftModel.from_pretrained(base, FOLDER, is_trainable=True)"
        return [Finding("did nothing", "note", "a first adapter of lorascope init, which was not trained yet", remedy)]
    if len(idle) == len(whole):
        silent = any(not _scale_of(config, name) for name in whole)
        zero = not any(bool(pair["B"].any()) for pair in whole.values())
        same = any(added[name] is not whole[name] for name in whole)
        why = "lora_alpha is 0" if silent else "B is zero" if zero else "B A is as it was" if same else "B A is zero"
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


def rank_used(added: Factors, *, doubled: bool = False) -> list[Finding]:
    """How many of the rank's directions the updates use.

    Args:
        added: Of `updates`.
        doubled: They hold the start beside what was trained, so that half of their rank was trained.
    """
    shares, used, ranks = [], [], []
    for pair in added.values():
        if len(pair) != 2 or _is_idle(pair):
            continue
        values = low_rank_singular_values(pair["A"].double(), pair["B"].double(), 1.0)
        used.append(float(effective_rank(values)))
        ranks.append(pair["A"].shape[0])
        shares.append(used[-1] / min(ranks[-1], *pair["A"].shape, *pair["B"].shape))
    if not used:
        return []
    share, most = statistics.median(shares), statistics.quantiles([*used, used[0]], n=10)[-1]
    many = f"{statistics.median(ranks):g}" + (f" ({min(ranks)} to {max(ranks)})" if min(ranks) < max(ranks) else "")
    evidence = (
        f"the update uses {statistics.median(used):.1f} of {many} directions in the median layer "
        f"(effective rank), {most:.1f} in nine layers of ten"
    )
    if doubled:
        evidence += ", with two directions for each that was trained, because the start is in it"
    if share < (LITTLE / 2 if doubled else LITTLE):
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
