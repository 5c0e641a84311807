"""A first guess of the rank from one short run: how many directions did its layers' updates use?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lorascope.core.errors import DataError, InputError
from lorascope.scaling.plan_result import Plan

SATURATED = 0.8
"""Share of the rank from which on the update is taken to want more directions than it has."""

QUANTILE = 0.9
"""The layers' effective rank that the guess covers: nine layers in ten."""


def first_guess(record: Any) -> Plan:
    """Guess a rank from the spectra of one run.

    The guess is the 0.9 quantile over layers of the effective rank exp(-sum p ln p), p = s / sum s with s the singular
    values of the layer's update, rounded up to a power of two. Where that quantile is at least 0.8 of the run's rank,
    the layers used all they had: the guess is then twice the rank, and it is a direction rather than a number. Layers
    whose update is zero do not count. The guess knows nothing of the metric: a direction that is used need not be one
    that helps, and a short run uses fewer than a long one.

    Args:
        record: Content of a ``result.json`` (a mapping), or an object with ``layers`` such as a `RunRecord`.

    Returns:
        A plan with ``basis`` ``"one run"``, never settled, whose notes say what it rests on.

    Raises:
        DataError: The record has no layers with an effective rank.
        InputError: The run has no adapter (rank 0).

    Example:
        >>> layers = [{"rank": 16, "effective_rank": 3.1}, {"rank": 16, "effective_rank": 4.4}]
        >>> first_guess({"layers": layers}).rank
        8

    References:
        Roy and Vetterli (2007), The effective rank: a measure of effective dimensionality.
    """
    spec = record.get("spec", {}) if isinstance(record, Mapping) else getattr(record, "spec", {})
    layers = record.get("layers") if isinstance(record, Mapping) else getattr(record, "layers", None)
    if not isinstance(layers, list) or not all(isinstance(layer, Mapping) for layer in layers):
        raise DataError("the record has no layers: give the result.json of a finished run")
    spec = spec if isinstance(spec, Mapping) else {}
    if spec.get("rank") == 0:
        raise InputError("the run has rank 0 (the base model): give a run with an adapter")
    found = [layer for layer in layers if _number(layer.get("effective_rank")) and _number(layer.get("rank"))]
    idle = [layer for layer in found if layer.get("update_ratio") == 0]
    used = [layer for layer in found if layer.get("update_ratio") != 0]
    if not used:
        raise DataError(
            "no layer has an effective rank above 0: run with metrics that include 'spectrum', and train for some steps"
        )
    effective = np.array([float(layer["effective_rank"]) for layer in used])
    ranks = np.array([float(layer["rank"]) for layer in used])
    share = float(np.quantile(effective / ranks, QUANTILE))
    high, rank = float(np.quantile(effective, QUANTILE)), int(ranks.max())
    saturated = share >= SATURATED
    guess = 2 * rank if saturated else min(2 ** math.ceil(math.log2(max(high, 1.0)) - 1e-9), rank)
    notes = [
        f"Nine layers in ten use at most {high:.1f} of {rank} directions (effective rank; median "
        f"{np.median(effective):.1f}, {len(used)} layers).",
        f"Saturated: that is {share:.0%} of the rank. Try doubling, and look again."
        if saturated
        else f"Rounded up to a power of two: {guess}.",
    ]
    if idle:
        notes.append(f"{len(idle)} layers whose update is zero do not count.")
    stable = [float(layer["stable_rank"]) for layer in used if _number(layer.get("stable_rank"))]
    if stable:
        notes.append(f"Stable rank, which counts strong directions only: {np.quantile(stable, QUANTILE):.1f}.")
    notes.append(
        "Basis: the spectra of one run. Used directions need not help, and a longer run uses more: compare ranks "
        "with a small sweep before relying on it."
    )
    near = sorted({max(1, guess // 2), guess, 2 * guess})
    seed = spec.get("seed", 0)
    alpha = spec.get("alpha")
    targets = spec.get("target_modules", "all-linear")
    return Plan(
        basis="one run",
        metric="effective_rank",
        better="higher",
        goal="a first guess from the spectra of one run",
        choice={"N": None, "R": guess, "D": None},
        settled=False,
        lora={
            "r": guess,
            "lora_alpha": 2 * guess if alpha is None else float(alpha),
            "lora_dropout": float(spec.get("dropout") or 0.0),
            "target_modules": list(targets) if isinstance(targets, list | tuple) else str(targets),
            "task_type": "CAUSAL_LM",
            **{name: True for name in ("use_rslora", "use_dora") if spec.get(name) is True},
        },
        next_cells=[
            {"N": None, "R": item, "D": None, "seed": seed, "why": "the guess and its neighbours"} for item in near
        ],
        model={
            "layers": len(used),
            "rank": rank,
            "quantile": QUANTILE,
            "effective_rank": high,
            "share_of_rank": share,
            "saturated": saturated,
        },
        notes=notes,
    )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
