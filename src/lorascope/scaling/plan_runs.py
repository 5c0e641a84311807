"""From a sweep's table to the runs of one decision: which rows count, what is averaged, what is left out and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lorascope.core.errors import InputError
from lorascope.core.metrics import METRICS
from lorascope.scaling.laws import AXES
from lorascope.scaling.settings import SETTINGS, even_out, settings_of
from lorascope.scaling.table import measured

_IDENTITY = ("model", "share", "train_limit", "length", "max_steps", "epochs", "prompt", "task")


@dataclass(frozen=True, eq=False)
class Runs:
    """The runs of one decision.

    Attributes:
        metric: Name of the metric.
        sign: 1 if more is better, -1 if less is.
        frame: One row a run: N, R, D, seed and ``y``, the metric; an axis that the table lacks is 1.
        axes: Axes that the table has.
        base: Metric of the base model without adapter, if the table has it.
        failed: Cells (N, R, D) where every run failed, with the first reason.
        rows: The table's rows behind ``frame``, with their costs; several can be one run of ``frame``.
        notes: What was left out or averaged, in words.
    """

    metric: str
    sign: int
    frame: pd.DataFrame
    axes: tuple[str, ...]
    base: float | None
    failed: dict[tuple[float, float, float], str]
    rows: pd.DataFrame
    notes: tuple[str, ...]


def direction(metric: str, better: str | None = None) -> int:
    """1 if more of a metric is better, -1 if less.

    Raises:
        InputError: It is not known, or ``better`` is neither ``higher`` nor ``lower``.
    """
    if better is None:
        better = METRICS[metric].better if metric in METRICS else "neither"
        if better == "neither":
            good = ", ".join(name for name, item in METRICS.items() if item.better != "neither")
            raise InputError(f"metric '{metric}' is neither better high nor low: say which with better, or use {good}")
    if better not in ("higher", "lower"):
        raise InputError(f"better is '{better}': use 'higher' or 'lower'")
    return 1 if better == "higher" else -1


def pick_metric(table: pd.DataFrame, metric: str) -> tuple[str, list[str]]:
    """The metric's name, or ``ce`` where accuracy was asked for and the table has none."""

    def there(name: str) -> bool:
        return name in table and bool(np.isfinite(_numbers(table, name)).any())

    if there(metric):
        return metric, []
    if metric == "accuracy" and there("ce"):
        return "ce", ["no accuracy in the table: planned by cross-entropy (ce)"]
    names = [name for name in measured(table) if there(name) and name != "seed"]
    raise InputError(f"the table has no values of '{metric}': choose from {', '.join(names) or 'none'}")


def prepare(
    table: pd.DataFrame, metric: str = "accuracy", *, better: str | None = None, allow_empty: bool = False
) -> Runs:
    """Pick the runs of one decision.

    Rows that failed, lack a number or are the base model (R = 0) are left out and counted. Where other settings vary
    (tasks, prompts ...), each run is the average over them, of the cells that have all of them; or, where only one
    setting is in all cells, that one is kept.

    Args:
        table: One row a run.
        metric: Column; accuracy falls back to ce.
        better: ``higher`` or ``lower`` for a metric that lorascope does not know.
        allow_empty: Whether a table without a usable run is accepted.

    Returns:
        The runs.

    Raises:
        InputError: A column is missing or not numeric, a value is not positive, settings vary in a way that cannot be
            averaged, or no run remains.
    """
    axes = tuple(axis for axis in AXES if axis in table)
    if not axes:
        raise InputError("the table has no column N, R or D: name at least one")
    if "R" not in axes:
        raise InputError("the table has no column R (rank): a plan needs it")
    if allow_empty and not len(table):
        sign = direction(metric, better)
        return Runs(metric, sign, _empty(), axes, None, {}, table, ())
    done = _done(table)
    metric, notes = pick_metric(table[done], metric) if done.any() or not allow_empty else (metric, [])
    sign = direction(metric, better)
    if (~done).any():
        notes.append(f"{int((~done).sum())} of {len(table)} cells not done: left out")
    frame = pd.DataFrame({axis: _numbers(table, axis) if axis in axes else 1.0 for axis in AXES}, index=table.index)
    frame["seed"] = pd.factorize(table["seed"])[0] if "seed" in table else np.arange(len(table)) * 0
    frame["y"] = _numbers(table, metric) if metric in table else np.nan
    usable = done & np.isfinite(frame["y"])
    if (done & ~usable).any():
        notes.append(f"{int((done & ~usable).sum())} rows without a finite {metric}: left out")
    is_base = usable & (frame["R"] == 0)
    known = np.isfinite(frame[list(AXES)]).all(axis=1)
    if (usable & ~is_base & ~known).any():
        notes.append(f"{int((usable & ~is_base & ~known).sum())} rows without N, R or D: left out")
    kept = usable & ~is_base & known
    for axis in axes:
        if (bad := kept & (frame[axis] <= 0)).any():
            raise InputError(f"{axis} is {frame[axis][bad].iloc[0]:g} in {int(bad.sum())} rows: give numbers above 0")
    base = float(frame["y"][is_base].mean()) if is_base.any() else None
    if not kept.any() and not allow_empty:
        raise InputError(
            f"no finished run with N, R, D and {metric} ({'; '.join(notes) or 'empty'}): run some cells first"
        )
    failed = _failures(table, frame, done, kept)
    averaged, behind, more = _averaged(table, frame, kept, metric)
    return Runs(metric, sign, averaged, axes, base, failed, table[behind], tuple(notes + more))


def _empty() -> pd.DataFrame:
    return pd.DataFrame({name: np.empty(0) for name in (*AXES, "y")} | {"seed": np.empty(0, dtype=int)})


def _done(table: pd.DataFrame) -> Any:
    if "status" not in table:
        return pd.Series(True, index=table.index)
    return table["status"].astype(str).str.strip().str.lower() == "done"


def _numbers(table: pd.DataFrame, name: str) -> np.ndarray:
    column = table[name]
    if isinstance(column, pd.DataFrame):
        raise InputError(f"the table has {column.shape[1]} columns '{name}': keep one")
    found = pd.to_numeric(column, errors="coerce")
    bad = found.isna() & column.notna()
    if bad.any():
        raise InputError(f"column '{name}' has {column[bad].iloc[0]!r}: give numbers, or leave it empty")
    return found.to_numpy(dtype=float, na_value=np.nan)


def _failures(table: pd.DataFrame, frame: pd.DataFrame, done: Any, kept: Any) -> dict[tuple[float, float, float], str]:
    """Cells where every run failed. A failed row may lack N and D: a finished one with the same settings tells them."""
    if "status" not in table:
        return {}
    lost = table["status"].astype(str).str.strip().str.lower() == "failed"
    keys = [name for name in _IDENTITY if name in table]
    found: dict[tuple[float, float, float], str] = {}
    finished = {tuple(cell) for cell in frame.loc[kept, list(AXES)].to_numpy()}
    for index in table.index[lost]:
        cell = frame.loc[index, list(AXES)].to_numpy(dtype=float).copy()
        for place, axis in enumerate(AXES):
            if not np.isfinite(cell[place]):
                drop = "train_limit" if axis == "N" else "model"
                alike = kept.copy()
                for key in keys:
                    if key not in (drop, "share" if axis == "D" else ""):
                        here: Any = table.at[index, key]
                        alike &= table[key].isna() if pd.isna(here) else table[key] == here
                values = frame.loc[alike, axis].unique()
                cell[place] = values[0] if len(values) == 1 else np.nan
        if np.isfinite(cell).all() and tuple(cell) not in finished:
            reason: Any = table.at[index, "reason"] if "reason" in table else ""
            found.setdefault((cell[0], cell[1], cell[2]), "" if pd.isna(reason) else str(reason))
    return found


def _averaged(
    table: pd.DataFrame, frame: pd.DataFrame, kept: Any, metric: str
) -> tuple[pd.DataFrame, pd.Series, list[str]]:
    """One row a cell and seed, and the table's rows behind them; see `even_out` for what is kept of other settings."""
    group = [*AXES, "seed"]
    others = [
        name for name in settings_of(table[kept]) if name not in (*SETTINGS, *AXES, "rank", "train_limit", metric)
    ]
    found = even_out(table[kept], frame.loc[kept, group], (*SETTINGS, *others))
    behind = kept.copy()
    behind[kept] = found.kept
    notes = [f"{found.note} (--where chooses others)" if found.alone else found.note] if found.note else []
    if found.blocks > 1 and not found.alone:
        notes = [f"each run is the average over {found.blocks} settings of {', '.join(found.names)}", *notes]
    return frame[behind].groupby(group, as_index=False)["y"].mean(), behind, notes


def candidates_of(
    given: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]] | pd.DataFrame | None, runs: Runs
) -> np.ndarray:
    """The configurations to choose from, (m, 3) for N, R, D: a grid, single cells, or (None) those of the table.

    Raises:
        InputError: An axis is missing or not a number above 0, or nothing is given.
    """
    seen = {axis: np.unique(runs.frame[axis]) for axis in AXES}
    if given is None:
        lists = [seen[axis] for axis in AXES]
        return (
            np.array(np.meshgrid(*lists, indexing="ij")).reshape(3, -1).T if all(map(len, lists)) else np.empty((0, 3))
        )
    if isinstance(given, Mapping):
        unknown = [key for key in given if key not in (*AXES, "seed")]
        if unknown:
            raise InputError(f"unknown axis '{unknown[0]}' among the candidates: use N, R and D")
        columns = []
        for axis in AXES:
            values = np.atleast_1d(np.asarray(given.get(axis, seen[axis]), dtype=float))
            columns.append(np.unique(values if len(values) else np.ones(1)))
        found = np.array(np.meshgrid(*columns, indexing="ij")).reshape(3, -1).T
    else:
        cells = given.to_dict("records") if isinstance(given, pd.DataFrame) else list(given)
        rows = []
        for cell in cells:
            row = []
            for axis in AXES:
                value = cell.get(axis, seen[axis][0] if len(seen[axis]) == 1 else (None if axis in runs.axes else 1.0))
                if value is None:
                    raise InputError(f"candidate {dict(cell)} has no {axis}: give N, R and D")
                row.append(float(value))
            rows.append(row)
        found = np.unique(np.array(rows).reshape(-1, 3), axis=0)
    if not len(found):
        raise InputError("no candidates: give at least one N, R, D")
    if not (np.isfinite(found) & (found > 0)).all():
        raise InputError(
            f"candidate {found[~(found > 0).all(1)][0].tolist()} has a value that is not above 0: give N, R, D > 0"
        )
    return np.asarray(found)
