"""A first guess of the rank before any training: over how many directions does the data's curvature spread?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lorascope.core.errors import DataError
from lorascope.scaling.plan_result import Plan

QUANTILE = 0.9
"""The layers' effective number of directions that the guess covers: nine layers in ten."""

LARGEST = 256


def guess_from_curvature(values: Mapping[str, Any]) -> Plan:
    """Guess a rank from the Fisher factors of the layers' inputs.

    The guess is the 0.9 quantile over layers of exp(-sum p ln p), p the eigenvalues of F_in = E |g|^2 a a^T over their sum,
    rounded up to a power of two, at most 256. It says over how many directions of a layer's input the first gradient of B
    spreads, and nothing about how many of them training needs: curvature at the start bounds neither.

    Args:
        values: Content of the ``initialization.json`` of ``lorascope init``.

    Returns:
        A plan with ``basis`` ``"curvature"``, never settled, whose notes say what it rests on.

    Raises:
        DataError: The content has no layers with Fisher columns, or is of another version or damaged.

    Example:
        >>> row = {"directions": 11.2, "captured": 0.9, "fisher_trace": 1.0, "d_in": 64, "d_out": 64, "rank": 16}
        >>> guess_from_curvature({"layers": [row]}).rank
        16

    References:
        Roy and Vetterli (2007), The effective rank: a measure of effective dimensionality.
    """
    if values.get("schema_version", 1) != 1:
        raise DataError(
            f"an initialisation of schema_version {values['schema_version']!r}, and this lorascope reads 1: use the version "
            "that wrote it"
        )
    layers = values.get("layers")
    rows = [row for row in layers if isinstance(row, Mapping)] if isinstance(layers, list) else []
    used = [row for row in rows if _above_zero(row.get("directions"))]
    if not used:
        raise DataError(
            "the initialisation has no Fisher factors of its layers: make it again with  lorascope init  (its mode does not "
            "matter)"
        )
    pattern = values.get("rank_pattern") or {}
    wrong = next((key for row in used for key in ("d_in", "d_out", "rank") if not _above_zero(row.get(key))), None)
    if wrong or not isinstance(pattern, Mapping):
        raise DataError(
            f"the initialisation has no numbers for '{wrong or 'rank_pattern'}': the file was changed or damaged; make it "
            "again with  lorascope init"
        )
    directions = np.array([float(row["directions"]) for row in used])
    high = float(np.quantile(directions, QUANTILE))
    side = max(min(int(row["d_in"]), int(row["d_out"])) for row in used)
    guess = int(min(2 ** math.ceil(math.log2(max(high, 1.0)) - 1e-9), LARGEST, 2 ** int(math.log2(side))))
    ranks = sorted({int(row["rank"]) for row in used})
    given = f"A rank of {ranks[0]} holds" if len(ranks) == 1 else f"The ranks given ({ranks[0]} to {ranks[-1]}) hold"
    captured = np.array([float(row["captured"]) for row in used if _above_zero(row.get("captured"))])
    settings = values.get("settings") if isinstance(values.get("settings"), Mapping) else {}
    assert isinstance(settings, Mapping)
    notes = [
        f"Before training: in nine layers of ten the curvature of the data spreads over at most {high:.1f} directions of "
        f"the input (effective number; median {np.median(directions):.1f}, {len(used)} layers). Rounded: {guess}.",
        f"{given} {np.median(captured):.0%} of it in the median layer."
        if len(captured)
        else "No direction holds any of it.",
        "Basis: statistics at the start. How many directions training uses is known after a short run only: give that run's "
        "result.json to lorascope plan next, then a small sweep.",
    ]
    if pattern:
        notes.append(
            f"A budget was spread over the layers: {len(pattern)} ranks of their own, which one rank for all does not keep. "
            "They are in the adapter_config.json beside the given file: train that adapter, or copy its rank_pattern."
        )
    near = sorted({max(1, guess // 2), guess, 2 * guess})
    targets = settings.get("target_modules") or "all-linear"
    return Plan(
        basis="curvature",
        metric="effective_rank",
        better="higher",
        goal="a first guess from the curvature of the data",
        choice={"N": None, "R": guess, "D": None},
        settled=False,
        lora={"r": guess, "lora_alpha": 2 * guess, "target_modules": targets, "task_type": "CAUSAL_LM"},
        next_cells=[
            {"N": None, "R": item, "D": None, "seed": settings.get("seed", 0), "why": "the guess and its neighbours"}
            for item in near
        ],
        model={"layers": len(used), "rank": ranks[-1], "quantile": QUANTILE, "directions": high},
        notes=notes,
    )


def _above_zero(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
