"""From a table of runs to the numbers of a fit, with a clear line for everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lorascope.core.errors import DataError, InputError
from lorascope.scaling.laws import AXES
from lorascope.scaling.settings import even_out, mixed_settings, text_column


@dataclass(frozen=True, eq=False)
class Observations:
    """The runs of one fit.

    Attributes:
        metric: Name of the metric.
        y: Its value in each run, (n,), in its unit.
        data: Axis -> its value in each run, for each axis of the table.
        axes: The axes that vary.
        reference: Geometric mean of each axis over the runs.
        x: ln(value / reference) of the axes that vary, (n, k).
        groups: Number of each run's group, (n,); runs of one group are resampled together.
        notes: What was left out, in words.
    """

    metric: str
    y: np.ndarray
    data: dict[str, np.ndarray]
    axes: tuple[str, ...]
    reference: dict[str, float]
    x: np.ndarray
    groups: np.ndarray
    notes: tuple[str, ...]

    @property
    def settings(self) -> int:
        """Number of different places (N, R, D)."""
        return len(np.unique(self.x, axis=0))


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a table of runs.

    Args:
        path: A CSV or Parquet file, or the folder of a sweep (its ``table.csv``).

    Returns:
        One row a run, as written; `fit_scaling_law` picks the rows and columns it needs.

    Raises:
        DataError: The file is missing, empty, of another kind, or cannot be read.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "runs.csv"
        >>> _ = path.write_text("N,R,D,ce\\n1e8,4,1000,2.5\\n1e8,8,1000,2.4\\n")
        >>> read_table(path)["R"].tolist()
        [4, 8]
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "table.csv").is_file():
            raise DataError(f"no table.csv in folder '{path}': give the folder of a sweep, or a CSV or Parquet file")
        path = path / "table.csv"
    if not path.is_file():
        raise DataError(f"no file '{path}': give the folder of a sweep, or a CSV or Parquet file")
    kind = path.suffix.lower()
    if kind not in (".csv", ".tsv", ".parquet", ".pq"):
        raise DataError(f"'{path}' ends in '{path.suffix}': give a .csv, .tsv or .parquet file, or a sweep's folder")
    try:
        if kind in (".parquet", ".pq"):
            table = pd.read_parquet(path)
        else:
            table = pd.read_csv(path, sep="\t" if kind == ".tsv" else ",", skipinitialspace=True)
    except (ValueError, OSError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"cannot read '{path}' as a table ({reason}): check the file") from error
    table.columns = [str(name).strip() for name in table.columns]
    if not len(table):
        raise DataError(f"'{path}' has no rows: give a table with one row a run")
    return table


def as_table(table: pd.DataFrame | Mapping[str, Any] | str | Path) -> pd.DataFrame:
    """A table given as a frame, as arrays by column, or as a path.

    Raises:
        InputError: It is none of these, or the columns differ in length.
    """
    if isinstance(table, pd.DataFrame):
        return table
    if isinstance(table, str | Path):
        return read_table(table)
    if isinstance(table, Mapping):
        try:
            return pd.DataFrame({str(name): np.atleast_1d(np.asarray(column)) for name, column in table.items()})
        except ValueError as error:
            raise InputError(f"the columns do not make a table ({error}): give arrays of one length") from error
    raise InputError(f"a table of type {type(table).__name__}: give a DataFrame, a mapping of arrays or a path")


def observe(table: pd.DataFrame, metric: str, group: str | None = None, *, pool: bool = False) -> Observations:
    """Pick the runs and numbers of one fit.

    Rows that are not done, rows without a metric, and rows of the base model (R = 0) are left out and counted. Where a
    setting beside N, R and D (a prompt, a task ...) varies within cells, the same rows are kept as `recommend` keeps.

    Args:
        table: One row a run with at least one of N, R, D, and the metric.
        metric: Name of the metric's column.
        group: Column of which runs are resampled together.
        pool: Whether all settings are fitted together, whatever cells they were run in.

    Raises:
        InputError: A column is missing or not numeric, a value is not positive, no axis varies, too few runs remain, or
            settings vary such that no cell has all of them and none is in all cells.
    """
    columns = [str(name) for name in table.columns]
    for name in {metric, *AXES} & set(columns):
        if columns.count(name) > 1:
            raise InputError(f"the table has {columns.count(name)} columns '{name}': keep one")
    axes = [axis for axis in AXES if axis in columns]
    if not axes:
        raise InputError(f"the table has no column N, R or D (it has {_names(columns)}): name at least one")
    if metric not in columns:
        raise InputError(f"the table has no column '{metric}': choose from {_names(measured(table))}")
    if metric in AXES:
        raise InputError(f"'{metric}' is an axis of the law: choose a metric from {_names(measured(table))}")
    if group is not None and group not in columns:
        raise InputError(f"the table has no column '{group}' to group by (it has {_names(columns)})")
    notes: list[str] = []
    if "status" in columns:
        done = table["status"].astype(str).str.strip().str.lower() == "done"
        if not done.all():
            notes.append(f"{_rows(int((~done).sum()))} not done: left out")
        table = table[done]
    numbers = {name: _numeric(table, name) for name in (*axes, metric)}
    kept = np.isfinite(numbers[metric])
    if not kept.all():
        notes.append(f"{_rows(int((~kept).sum()))} without a finite {metric}: left out")
    for axis in axes:
        unknown = kept & np.isnan(numbers[axis])
        if unknown.any():
            notes.append(f"{_rows(int(unknown.sum()))} without {axis}: left out")
            kept &= ~unknown
    if "R" in axes and (base := kept & (numbers["R"] == 0)).any():
        notes.append(f"{_rows(int(base.sum()))} of rank 0 (the base model): left out, a power law has no place for it")
        kept &= ~base
    for axis in axes:
        bad = kept & ~(np.isfinite(numbers[axis]) & (numbers[axis] > 0))
        if bad.any():
            worst = numbers[axis][bad][0]
            raise InputError(
                f"{axis} is {worst:g} in {_rows(int(bad.sum()))}: a power law needs numbers greater than 0"
            )
    if not pool and kept.any():
        cells = pd.DataFrame({axis: numbers[axis][kept] for axis in axes})
        if "seed" in columns:
            cells["seed"] = pd.factorize(table["seed"].to_numpy()[kept])[0]
        even = even_out(table[kept].reset_index(drop=True), cells)
        if even.note:
            notes.append(f"{even.note} ({'--where chooses others, ' if even.alone else ''}--pool takes all)")
        kept[kept] = even.kept
    numbers = {name: column[kept] for name, column in numbers.items()}
    count = len(numbers[metric])
    if count < 2:
        reason = f" ({'; '.join(notes)})" if notes else ""
        raise InputError(f"{_rows(count)} with N, R, D and {metric}{reason}: a law needs at least 2, better 10 or more")
    logs = {axis: np.log(numbers[axis]) for axis in axes}
    varying = tuple(axis for axis in axes if np.ptp(logs[axis]) > 1e-9)
    if not varying:
        raise InputError(f"{' and '.join(axes)} the same in all {count} runs: run at least 3 values of one of them")
    rows = table[kept]
    for name in mixed_settings(rows):
        values = text_column(rows[name]).value_counts()
        some = ", ".join(values.index[:3]) + (" ..." if len(values) > 3 else "")
        notes.append(
            f"the runs also differ in {name} ({some}), which a law over {', '.join(axes)} does not know: keep one value, "
            f"such as --where {name}={values.index[0]}"
        )
    groups = np.arange(count) if group is None else pd.factorize(table[group].to_numpy()[kept])[0]
    if group is not None and (groups < 0).any():
        raise InputError(f"{_rows(int((groups < 0).sum()))} without '{group}': fill the column, or group by another")
    return Observations(
        metric=metric,
        y=numbers[metric],
        data={axis: numbers[axis] for axis in axes},
        axes=varying,
        reference={axis: float(np.exp(logs[axis].mean())) for axis in axes},
        x=np.stack([logs[axis] - logs[axis].mean() for axis in varying], axis=1),
        groups=groups,
        notes=tuple(notes),
    )


def measured(table: pd.DataFrame) -> list[str]:
    """The numeric columns that could be a metric: known metrics if there are any, else all but the axes."""
    from lorascope.core.metrics import METRICS

    numeric = [str(name) for name in table.columns if pd.api.types.is_numeric_dtype(table[name])]
    known = [name for name in METRICS if name in numeric]
    return known or [name for name in numeric if name not in AXES]


def _numeric(table: pd.DataFrame, name: str) -> np.ndarray:
    column = table[name]
    if pd.api.types.is_datetime64_any_dtype(column) or pd.api.types.is_complex_dtype(column):
        raise InputError(f"column '{name}' has {column.iloc[0]!r} and the like: give real numbers")
    found = pd.to_numeric(column, errors="coerce")
    bad = found.isna() & column.notna()
    if bad.any():
        value = column[bad].iloc[0]
        raise InputError(f"column '{name}' has {value!r} in {_rows(int(bad.sum()))}: give numbers, or leave it empty")
    return found.to_numpy(dtype=float, na_value=np.nan)


def _rows(count: int) -> str:
    return f"{count} row{'' if count == 1 else 's'}"


def _names(names: list[str]) -> str:
    return ", ".join(names) or "none"
