"""From a table of runs to curves along one axis, and to the units that a claim is tested on."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lorascope.core.errors import InputError, unknown_name
from lorascope.core.metrics import METRICS
from lorascope.scaling.claims_statistics import FEWEST
from lorascope.scaling.settings import missing, settings_of, text_column
from lorascope.scaling.table import as_table

LEDGER_AXES: dict[str, str] = {"rank": "R", "size": "N", "data": "D", "length": "length"}
# What moves along with an axis by its nature and so is no setting of its own.
_COMPANIONS = {
    "rank": ("R", "rank", "alpha"),
    "size": ("N", "share"),
    "data": ("D", "train_limit"),
    "length": ("length", "D"),
}


@dataclass(frozen=True)
class Curve:
    """Metrics along an axis, with everything else fixed.

    Attributes:
        cell: What is fixed, in words.
        seed: The seed; empty where there is none or where seeds were averaged.
        levels: Places on the axis, rising.
        values: Metric -> value at each level; NaN where unknown.
    """

    cell: str
    seed: str
    levels: tuple[float, ...]
    values: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Units:
    """The curves that count as independent in a test.

    Attributes:
        axis: ``"rank"``, ``"size"``, ``"data"`` or ``"length"``.
        curves: The units: one a cell (seeds averaged) or one a cell and seed.
        cells: Number of cells.
        averaged: Whether seeds were averaged, so that the units are cells.
        every: One curve a cell and seed.
        origin: How many tasks and models they come from, in brackets; empty where that is not known.
    """

    axis: str
    curves: tuple[Curve, ...]
    cells: int
    averaged: bool
    every: tuple[Curve, ...]
    origin: str = ""

    @property
    def scope(self) -> str:
        """What a verdict on these units speaks of, as a sentence."""
        if self.averaged:
            return f"This speaks of cells like these{self.origin}."
        return f"This speaks of {'this cell' if self.cells == 1 else f'these {self.cells} cells'} only."

    def word(self, n: int) -> str:
        """The name of n units."""
        plain = self.averaged or all(curve.seed == "" for curve in self.curves)
        return (
            ("cell" if plain else "curve (cell and seed)")
            if n == 1
            else ("cells" if plain else "curves (cell and seed)")
        )


def finished(table: pd.DataFrame | Mapping[str, Any] | str | Path) -> pd.DataFrame:
    """The rows of finished runs, checked.

    Args:
        table: A frame, arrays by column, or a path, as for `lorascope.scaling.fit_scaling_law`.

    Raises:
        InputError: There is none, a column stands twice, or an axis or a metric holds text.
    """
    rows = as_table(table)
    columns = list(map(str, rows.columns))
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise InputError(f"the table has {columns.count(twice[0])} columns '{twice[0]}': keep one")
    if "status" in rows:
        rows = rows[rows["status"].astype(str).str.strip().str.lower() == "done"]
    if not len(rows):
        raise InputError("the table has no finished run: run the sweep first")
    for name in columns:
        if name in METRICS or name in ("N", "R", "D", "share"):
            text = rows[name][pd.to_numeric(rows[name], errors="coerce").isna() & rows[name].notna()]
            if len(text):
                raise InputError(f"column '{name}' has {text.iloc[0]!r}: give numbers, or leave it empty")
    return rows.reset_index(drop=True)


def level_of(axis: str, value: Any) -> float:
    """A place on an axis as a number; of a length bin such as ``"1-100"`` the lower end; NaN where missing.

    Example:
        >>> level_of("length", "101-200"), level_of("rank", 16)
        (101.0, 16.0)
    """
    if missing(value):
        return np.nan
    if axis == "length":
        digits = re.search(r"\d+", str(value))
        return float(digits.group()) if digits else np.nan
    return float(value)


def with_bounds(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with ``miub_joint = ln 2 JS`` and ``mi_joint_lower = (2 / ln 2) JS`` filled in from ``joint_js``."""
    js = number_column(rows, "joint_js")
    made = {"miub_joint": math.log(2), "mi_joint_lower": 2 / math.log(2)}
    return rows.assign(**{name: number_column(rows, name).fillna(factor * js) for name, factor in made.items()})


def curves_of(table: pd.DataFrame, axis: str, metrics: Sequence[str]) -> tuple[Curve, ...]:
    """The curves of a table along one axis.

    Args:
        table: One row a run, columns as a sweep writes them.
        axis: Key of `LEDGER_AXES`.
        metrics: Columns to follow; those that the table lacks are NaN.

    Returns:
        Curves with at least two levels. On the size axis models are compared with each other only where no model has
        two sizes of its own (by sharing layers).

    Raises:
        InputError: The axis is unknown.
    """
    if axis not in LEDGER_AXES:
        raise unknown_name("axis", axis, LEDGER_AXES)
    column = LEDGER_AXES[axis]
    if column not in table:
        return ()
    rows = table.assign(_level=[level_of(axis, value) for value in table[column]])
    rows = rows[rows["_level"].notna()]
    if "R" in rows:
        rows = rows[pd.to_numeric(rows["R"], errors="coerce").fillna(1) > 0]  # rank 0 is the base model, no adapter
    keys = [key for key in settings_of(rows) if key not in (*_COMPANIONS[axis], "_level")] if len(rows) else []
    found = _grouped(rows, keys, metrics)
    if axis == "size" and not found and "model" in keys:
        found = _grouped(rows, [key for key in keys if key != "model"], metrics)
    return found


def _grouped(rows: pd.DataFrame, keys: Sequence[str], metrics: Sequence[str]) -> tuple[Curve, ...]:
    cells = pd.Series([""] * len(rows), index=rows.index, dtype=object)
    if keys:
        cells = pd.DataFrame(
            {key: text_column(rows[key]).map(lambda text, key=key: _named(key, text)) for key in keys}
        ).agg(", ".join, axis=1)
    seeds = text_column(rows["seed"]) if "seed" in rows else pd.Series([""] * len(rows), index=rows.index, dtype=object)
    curves = []
    for (cell, seed), group in rows.groupby([cells, seeds], sort=False):
        numbers = pd.DataFrame({name: number_column(group, name) for name in metrics}, index=group.index)
        means = numbers.groupby(group["_level"]).mean().sort_index()
        if len(means) >= 2:
            values = {name: tuple(float(value) for value in means[name]) for name in metrics}
            curves.append(Curve(str(cell), str(seed), tuple(float(level) for level in means.index), values))
    return tuple(curves)


def _named(key: str, text: str) -> str:
    return text if key in ("task", "model", "prompt") else f"{'rank' if key == 'R' else key} {text}"


def number_column(rows: pd.DataFrame, name: str) -> pd.Series:
    """A column as finite floats, NaN elsewhere and where the table lacks it."""
    if name not in rows:
        return pd.Series(np.nan, index=rows.index, dtype=float)
    return pd.to_numeric(rows[name], errors="coerce").astype(float).replace([np.inf, -np.inf], np.nan)


def origin_of(rows: pd.DataFrame) -> str:
    """How many tasks and models a table is about.

    Example:
        >>> origin_of(pd.DataFrame({"task": ["a", "b"], "model": ["x", "x"]}))
        ' (2 tasks, 1 model)'
    """
    counts = [(rows[name].nunique(), name) for name in ("task", "model") if name in rows]
    known = [f"{count} {name}{'' if count == 1 else 's'}" for count, name in counts if count]
    return f" ({', '.join(known)})" if known else ""


def make_units(axis: str, curves: Sequence[Curve], origin: str = "") -> Units:
    """The units of a test: cells if there are at least `FEWEST` (seeds averaged), else every curve."""
    cells: dict[str, list[Curve]] = {}
    for curve in curves:
        cells.setdefault(curve.cell, []).append(curve)
    averaged = len(cells) >= FEWEST
    chosen = tuple(_average(group) for group in cells.values()) if averaged else tuple(curves)
    return Units(axis, chosen, len(cells), averaged, tuple(curves), origin)


def _average(curves: Sequence[Curve]) -> Curve:
    """The mean over seeds at each level."""
    if len(curves) == 1:
        return Curve(curves[0].cell, "", curves[0].levels, curves[0].values)
    frames = [pd.DataFrame(dict(curve.values), index=list(curve.levels)) for curve in curves]
    means = pd.concat(frames).groupby(level=0).mean().sort_index()
    values = {str(name): tuple(float(value) for value in means[name]) for name in means}
    return Curve(curves[0].cell, "", tuple(float(level) for level in means.index), values)
