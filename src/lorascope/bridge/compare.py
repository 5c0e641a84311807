"""From the runs of a plan to the record: overlaps, errors, the theory's curve, and what can be said."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from lorascope.bridge.findings import findings_of
from lorascope.bridge.noise import EffectiveNoise, effective_noise, mean_and_error, relative_distance, residual
from lorascope.bridge.plan import REFERENCE_SEED, BridgePlan
from lorascope.bridge.result import BridgeResult
from lorascope.bridge.runs import FROZEN, adapted, adapter_folder, load_scores, run_plan
from lorascope.bridge.shape import (
    LARGEST_RANK,
    CurvePoint,
    ShapeFit,
    check_curve,
    error_at_overlap,
    fit_shape,
    theory_curve,
)
from lorascope.bridge.subspaces import (
    Factors,
    LayerAlignment,
    above_chance,
    compare_layers,
    factors_of,
    summarise_layers,
)
from lorascope.core.provenance import collect
from lorascope.measuring import load_model_and_tokenizer
from lorascope.results.store import RunStore

REFERENCE = "reference"
MEASURED = {"column_above": "overlap", "row_above": "overlap", "update": "overlap", "relative_error": "error"}
"""What is measured -> what the theory calls it. The squared cosine of two lines is the overlap of two subspaces."""
FALLBACK_NOISE = 1.0


def bridge(
    plan: BridgePlan,
    folder: str | Path,
    *,
    tokens: int = 2,
    ridge: float | int = 0.1,
    samples: int = 2**10,
    progress: bool = True,
) -> BridgeResult:
    """Train and score a plan's runs (those that are not there yet) and lay them beside the theory.

    Args:
        plan: What to run.
        folder: Where runs and scores are kept; see `run_plan`.
        tokens: T of the theory's curve.
        ridge: lambda' of the theory's curve.
        samples: Quasi-random points of the theory's average.
        progress: Show progress bars.

    Returns:
        The record.

    Raises:
        InputError: The task has no choices, there is one data size only, or a setting of the curve is out of range.
        OutputError: The folder holds another plan, or cannot be written.
        KeyboardInterrupt: Ctrl-C was pressed; the same call goes on from there.

    Example:
        >>> bridge(BridgePlan(sizes=(16, 320), seeds=(0, 1)), "out/bridge").findings  # doctest: +SKIP
    """
    check_curve(plan, tokens, ridge)
    place = Path(folder)
    run_plan(plan, place, progress=progress)
    return compare_runs(plan, place, tokens=tokens, ridge=ridge, samples=samples, progress=progress)


def compare_runs(
    plan: BridgePlan,
    folder: Path,
    *,
    tokens: int = 2,
    ridge: float | int = 0.1,
    samples: int = 2**10,
    progress: bool = True,
) -> BridgeResult:
    """The record of runs that are on disk; see `bridge`."""
    scores = {name: load_scores(folder, name) for name in (FROZEN, *(name for name, _ in plan.runs()))}
    frozen, reference = scores[FROZEN]["rows"], scores[REFERENCE]["rows"]
    noise = effective_noise(frozen, reference)
    factors = _all_factors(plan, folder, progress)
    store = RunStore(folder / "runs")
    records = {name: store.load(name) for name, _ in plan.runs()}
    parameters = records[REFERENCE].counts["adapter_parameters"]
    runs: list[dict[str, Any]] = [_frozen_row(scores[FROZEN])]
    layers: dict[str, list[LayerAlignment]] = {}
    for name, spec in plan.runs():
        rows = scores[name]["rows"]
        row: dict[str, Any] = {"name": name, "rows": spec.train_limit, "seed": spec.seed}
        row |= {"rows_per_parameter": (spec.train_limit or 0) / parameters, **_scored(scores[name])}
        if name != REFERENCE:
            layers[name] = compare_layers(factors[name], factors[REFERENCE])
            row["relative_error"] = relative_distance(rows, frozen, reference)
            row |= summarise_layers(layers[name])
            plain = summarise_layers(layers[name], weighted=False)
            row |= {f"{key}_plain": plain[key] for key in ("column", "row", "update", "column_chance", "row_chance")}
        runs.append(row)
    sizes = [_size_row(size, plan, runs, factors) for size in plan.sizes]
    columns = min(plan.rank, LARGEST_RANK)
    dn = FALLBACK_NOISE if noise.noise is None else noise.noise
    curve = theory_curve(noise=dn, rank=plan.rank, tokens=tokens, ridge=ridge, samples=samples)
    shapes = _shapes(curve, sizes)
    relations = [_relation(row, curve) for row in sizes]
    settings = {"tokens": tokens, "ridge": ridge, "noise": dn, "rank": columns}
    largest = [f"n{max(plan.sizes)}-s{seed}" for seed in plan.seeds]
    return BridgeResult(
        plan=plan.to_dict(),
        parameters=parameters,
        noise=noise.to_dict(),
        theory=settings,
        runs=runs,
        sizes=sizes,
        layers=_layer_rows([layers[name] for name in largest]),
        curve=[point.to_dict() for point in curve],
        shapes=[shape.to_dict() for shape in shapes],
        relations=relations,
        findings=findings_of(noise, sizes, shapes, relations, curve),
        warnings=_warnings(plan, noise),
        provenance=collect(seed=REFERENCE_SEED, extra={"runs": _costs(records)}),
    )


def _all_factors(plan: BridgePlan, folder: Path, progress: bool) -> dict[str, dict[str, Factors]]:
    model, _ = load_model_and_tokenizer(plan.model)
    found = {}
    for name, _ in tqdm(plan.runs(), desc="reading adapters", unit="run", disable=not progress):
        with adapted(model, adapter_folder(folder, name)) as changed:
            found[name] = factors_of(changed)
    return found


def _scored(score: dict[str, Any]) -> dict[str, Any]:
    """Accuracy, cross-entropy and residual variance of a model, with errors over questions."""
    found: dict[str, Any] = {}
    for name in ("accuracy", "ce"):
        found[name], found[f"{name}_error"] = score["metrics"][name], score["errors"].get(name)
    found["residual"], found["residual_error"] = mean_and_error([residual(row) for row in score["rows"]])
    return found


def _frozen_row(score: dict[str, Any]) -> dict[str, Any]:
    return {"name": FROZEN, "rows": 0, "seed": None, "rows_per_parameter": 0.0, **_scored(score), "relative_error": 1.0}


def _size_row(
    size: int, plan: BridgePlan, runs: Sequence[dict[str, Any]], factors: dict[str, dict[str, Factors]]
) -> dict[str, Any]:
    """Means over the seeds of one size, and how far its runs agree with each other."""
    names = [f"n{size}-s{seed}" for seed in plan.seeds]
    rows = [row for row in runs if row["name"] in names]
    found: dict[str, Any] = {"rows": size, "rows_per_parameter": rows[0]["rows_per_parameter"], "seeds": len(rows)}
    for name in ("accuracy", "ce", "residual", *MEASURED, "column", "row"):
        found[name], error = mean_and_error([row[name] for row in rows])
        found[f"{name}_error"] = None if math.isnan(error) else error
    found |= {name: rows[0][name] for name in ("column_chance", "row_chance")}
    pairs = [
        summarise_layers(compare_layers(factors[x], factors[y])) for x, y in itertools.combinations(sorted(names), 2)
    ]
    found["between"] = mean_and_error([pair["column_above"] for pair in pairs])[0] if pairs else None
    found["between_chance"] = pairs[0]["column_chance"] if pairs else None
    return found


def _shapes(curve: Sequence[CurvePoint], sizes: Sequence[dict[str, Any]]) -> list[ShapeFit]:
    ordered = sorted(sizes, key=lambda row: row["rows"])
    data = [row["rows_per_parameter"] for row in ordered]
    found = []
    for name, quantity in MEASURED.items():
        errors = [math.nan if row[f"{name}_error"] is None else row[f"{name}_error"] for row in ordered]
        found.append(fit_shape(curve, quantity, data, [row[name] for row in ordered], errors, measured=name))
    return found


def _relation(row: dict[str, Any], curve: Sequence[CurvePoint]) -> dict[str, Any]:
    return {
        "rows": row["rows"],
        "overlap": row["column_above"],
        "relative_error": row["relative_error"],
        "theory_error": error_at_overlap(curve, row["column_above"]),
        "between": row["between"],
        "theory_between": max(row["column_above"], 0.0) ** 2,
    }


def _layer_rows(runs: Sequence[Sequence[LayerAlignment]]) -> list[dict[str, Any]]:
    """Means over runs of every layer."""
    found = []
    for same in zip(*runs, strict=True):
        row: dict[str, Any] = {"name": same[0].name, "layer": same[0].layer, "projection": same[0].projection}
        for name in ("column", "row", "update"):
            known = [value for item in same if (value := getattr(item, name)) is not None]
            row[name] = mean_and_error(known)[0] if known else None
        row |= {name: getattr(same[0], name) for name in ("column_chance", "row_chance", "weight")}
        for side in ("column", "row"):
            value = row[side]
            row[f"{side}_above"] = None if value is None else above_chance(value, row[f"{side}_chance"])
        found.append(row)
    return found


def _warnings(plan: BridgePlan, noise: EffectiveNoise) -> list[str]:
    found = []
    if noise.noise is None:
        found.append(
            "the largest run is not better than the frozen model beyond two standard errors, so that the noise in units of "
            f"the update is not known; the theory's curve is drawn for Dn = {FALLBACK_NOISE:g}"
        )
    if len(plan.seeds) == 1:
        found.append("there is one seed: nothing is known about the spread between runs")
    elif len(plan.seeds) < 5:
        found.append(
            f"standard errors are over {len(plan.seeds)} seeds and are themselves uncertain by about half or more"
        )
    if plan.rank > LARGEST_RANK:
        found.append(f"the theory's curve is that of rank {LARGEST_RANK}, not {plan.rank}")
    return found


def _costs(records: dict[str, Any]) -> dict[str, Any]:
    """Seconds of training of all runs, and the machine of the first."""
    seconds = [record.settings["costs"]["seconds_training"] for record in records.values()]
    first = next(iter(records.values()))
    return {"count": len(records), "seconds_training": sum(seconds), "machine": first.provenance.get("machine", {})}
