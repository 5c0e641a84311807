"""The paper's claims on a user's own sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lorascope.core.errors import InputError
from lorascope.scaling.claims import Claim
from lorascope.scaling.claims_cells import (
    LEDGER_AXES,
    Units,
    curves_of,
    finished,
    make_units,
    number_column,
    origin_of,
    with_bounds,
)
from lorascope.scaling.claims_paper import PROMPT_ORDER
from lorascope.scaling.claims_rules import (
    Bootstrap,
    Quantity,
    follows,
    follows_better,
    law_better,
    less_noise,
    less_spread,
    steady,
)
from lorascope.scaling.claims_sets import in_order, stays_close
from lorascope.scaling.claims_theorem import printed_bound, valid_bounds
from lorascope.scaling.settings import settings_of
from lorascope.scaling.settings import text_column as text

QUANTITIES = (
    Quantity("miub_js", "Eq. 9", "MIUB (Eq. 9)"),
    Quantity("mi_joint", "Theorem 3, I", "Mutual information"),
    Quantity("miub_joint", "Theorem 3, bound", "MIUB (Theorem 3)"),
)
RIVALS = {"ce": Quantity("ce", "CE", "cross-entropy"), "ppl": Quantity("ppl", "PPL", "perplexity")}
_CE = Quantity("ce", "CE", "Cross-entropy")
_ACCURACY = Quantity("accuracy", "accuracy", "Accuracy")
_METRICS = ("miub_js", "mi_joint", "miub_joint", "ce", "ppl", "accuracy")


def claims_sweep(
    table: pd.DataFrame | Mapping[str, Any] | str | Path, *, n_boot: int = 10_000, seed: int = 0
) -> list[Claim]:
    """Test each claim of the paper on the runs of a sweep.

    The quantity of Eq. 9 (``miub_js``) and those of Theorem 3 (``mi_joint``, ``miub_joint``) are judged separately. Only
    finished runs count, and for the curves only adapters (rank above 0). What the table cannot tell is ``"undecided"``, with
    the reason and, where it is known, how many units would do.

    Args:
        table: One row a run, as `lorascope.scaling.read_table` gives it (or a path, or arrays by column): N, R, D, settings,
            ``seed``, metrics. ``miub_joint`` is made from ``joint_js`` where it is missing.
        n_boot: Resamples of the bootstrap intervals.
        seed: Of the resampling.

    Returns:
        One `Claim` for each claim and quantity. The rules stand in docs/science/claims.md.

    Raises:
        InputError: The table has no finished run, or none of the axes R, N, D and length, or ``n_boot`` is below 1000.

    Example:
        >>> runs = [{"R": r, "seed": s, "miub_js": r + s / 9} for r in (4, 16, 64) for s in range(3)]
        >>> next(claim for claim in claims_sweep(pd.DataFrame(runs)) if claim.key == "falls_rank").verdict
        'contradicted'

    References:
        arXiv 2501.03152.
    """
    boot = Bootstrap(n_boot, seed)
    rows = with_bounds(finished(table))
    if not any(column in rows for column in LEDGER_AXES.values()):
        raise InputError(
            f"the table has none of the columns {', '.join(LEDGER_AXES.values())}: give at least one of them"
        )
    units = {axis: make_units(axis, curves_of(rows, axis, _METRICS), origin_of(rows)) for axis in LEDGER_AXES}
    claims: list[Claim] = []
    for axis in LEDGER_AXES:
        claims += [steady(f"falls_{axis}", units[axis], quantity) for quantity in QUANTITIES]
        claims.append(steady(f"ce_falls_{axis}", units[axis], _CE))
        claims.append(steady(f"accuracy_rises_{axis}", units[axis], _ACCURACY, falls=False))
    for axis in ("rank", "size"):
        claims += _against_rivals(axis, units[axis], boot)
    for rival in RIVALS:
        widest = max(units.values(), key=lambda candidate: len(candidate.every))
        claims += [less_noise(f"noise_{rival}", widest, quantity, RIVALS[rival]) for quantity in QUANTITIES]
    adapters = rows[number_column(rows, "R").fillna(1) > 0] if "R" in rows else rows
    claims += _closeness(adapters) + _prompts(adapters) + _theorem(rows)
    return claims


def _against_rivals(axis: str, units: Units, boot: Bootstrap) -> list[Claim]:
    claims: list[Claim] = []
    for key, rival in RIVALS.items():
        claims += [law_better(f"law_{axis}_{key}", units, quantity, rival, boot) for quantity in QUANTITIES]
        claims += [less_spread(f"spread_{axis}_{key}", units, quantity, rival) for quantity in QUANTITIES]
    claims += [follows(f"follows_{axis}", units, quantity, boot) for quantity in QUANTITIES]
    for key, rival in RIVALS.items():
        claims += [follows_better(f"follows_{axis}_{key}", units, quantity, rival, boot) for quantity in QUANTITIES]
    return claims


def _closeness(rows: pd.DataFrame) -> list[Claim]:
    mi = number_column(rows, "mi_joint").tolist()
    claims = []
    for quantity in (QUANTITIES[0], QUANTITIES[2]):
        pairs = [
            (a, b)
            for a, b in zip(mi, number_column(rows, quantity.metric).tolist(), strict=True)
            if math.isfinite(a) and math.isfinite(b)
        ]
        claims.append(stays_close("close", quantity, pairs, "runs", ""))
    return claims


def _prompts(rows: pd.DataFrame) -> list[Claim]:
    """The order of the prompts, with everything else the same."""
    claims = []
    for quantity in QUANTITIES:
        sets: Sequence[Sequence[float]] = []
        if "prompt" in rows:
            keys = [key for key in settings_of(rows) if key != "prompt"]
            frame = pd.DataFrame({key: text(rows[key]) for key in keys}, index=rows.index)
            frame["seed"] = text(rows["seed"]) if "seed" in rows else ""
            frame = frame.assign(prompt=rows["prompt"].astype(str), value=number_column(rows, quantity.metric))
            wide = frame.pivot_table(
                index=[*keys, "seed"], columns="prompt", values="value", aggfunc="mean", dropna=True
            )
            sets = wide.reindex(columns=list(PROMPT_ORDER)).to_numpy(dtype=float).tolist() if len(wide) else []
        claims.append(in_order("prompt_order", quantity, sets, PROMPT_ORDER, "settings (with seed)"))
    return claims


def _theorem(rows: pd.DataFrame) -> list[Claim]:
    mi, printed, lower, upper = (
        number_column(rows, name).to_numpy(dtype=float)
        for name in ("mi_joint", "miub_joint", "mi_joint_lower", "mi_joint_upper")
    )
    note = " Summed over layers: where the sum breaks the bound, at least one layer does."
    known = np.isfinite(mi) & np.isfinite(lower)
    return [
        printed_bound(mi.tolist(), printed.tolist(), "runs", note),
        valid_bounds(lower[known].tolist(), mi[known].tolist(), upper[known].tolist(), "runs"),
    ]
