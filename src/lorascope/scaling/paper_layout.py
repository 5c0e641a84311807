"""A sweep in the layout of the paper's Tables 1 to 3, and the data of its Figures 2 and 3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lorascope.core.errors import InputError, unknown_name
from lorascope.scaling.claims_cells import LEDGER_AXES, curves_of, finished, level_of, number_column, with_bounds

Table = pd.DataFrame | Mapping[str, Any] | str | Path
_NAMES = {"accuracy": "ACC", "ce": "CE", "miub_js": "MIUB (Eq. 9)", "miub_joint": "MIUB (Theorem 3)", "mi_joint": "MI"}
TABLE1_METRICS: dict[str, str] = {key: _NAMES[key] for key in ("accuracy", "ce", "miub_js", "miub_joint")}
TABLE2_METRICS: dict[str, str] = {key: _NAMES[key] for key in ("accuracy", "miub_js", "miub_joint")}
TABLE3_METRICS: dict[str, str] = {key: _NAMES[key] for key in ("accuracy", "miub_js", "miub_joint", "mi_joint")}
AVERAGE = "AVG"


def layout_table1(
    table: Table, *, metrics: Mapping[str, str] = TABLE1_METRICS, share_rank: int | None = None
) -> pd.DataFrame:
    """Table 1: tasks and models down, ranks and share sizes across, each metric in a row of its own.

    Values are means over seeds. Where a sweep varies more than the paper did, the table shows: the main prompt (or the
    first in the alphabet), no length bin, and the largest number of training rows of each task; other settings are averaged.

    Args:
        table: One row a run, as `lorascope.scaling.read_table` gives it.
        metrics: Column -> name in the table; columns that the sweep lacks are left out.
        share_rank: Rank of the runs in the share columns; None takes the rank with the most runs that share layers.

    Returns:
        Rows (task, model, metric), with the mean over tasks as task ``"AVG"`` where there are several; columns ``"rank 32"``
        ... then ``"share 8"`` ... ``"share 1"``. A run without sharing stands in both ``share 1`` and its rank. Cells that
        were not run are NaN, and so is an average of which a task is missing.

    Raises:
        InputError: No run has a rank above 0 and one of the metrics.

    Example:
        >>> runs = [{"task": "a", "model": "m", "R": r, "accuracy": r / 100} for r in (4, 16)]
        >>> layout_table1(pd.DataFrame(runs)).loc[("a", "m", "ACC"), "rank 16"].item()
        0.16

    References:
        arXiv 2501.03152, Table 1.
    """
    return _average_rows(_laid_out(_reference(_adapters(table)), ("task", "model"), metrics, share_rank))


def layout_table2(
    table: Table, *, metrics: Mapping[str, str] = TABLE2_METRICS, share_rank: int | None = None
) -> pd.DataFrame:
    """Table 2: prompts down, ranks and share sizes across, averaged over the tasks of each model.

    Args:
        table: One row a run.
        metrics: Column -> name in the table.
        share_rank: As in `layout_table1`.

    Returns:
        Rows (model, prompt, metric); NaN where a task of the model lacks the cell, so that all cells average the same tasks.

    Raises:
        InputError: No run has a rank above 0 and one of the metrics.

    References:
        arXiv 2501.03152, Table 2.
    """
    rows = _reference(_adapters(table), keep=("prompt",))
    wide = _laid_out(rows, ("task", "model", "prompt"), metrics, share_rank)
    return _over_tasks(wide)


def layout_table3(
    table: Table, *, metrics: Mapping[str, str] = TABLE3_METRICS, share_rank: int | None = None
) -> pd.DataFrame:
    """Table 3: mutual information beside its bounds, averaged over the tasks of each model.

    Args:
        table: One row a run.
        metrics: Column -> name in the table.
        share_rank: As in `layout_table1`.

    Returns:
        Rows (model, metric), columns as in `layout_table1`.

    Raises:
        InputError: No run has a rank above 0 and one of the metrics.

    References:
        arXiv 2501.03152, Table 3.
    """
    return _over_tasks(_laid_out(_reference(_adapters(table)), ("task", "model"), metrics, share_rank))


def why_empty(wide: pd.DataFrame) -> str:
    """Why cells of a table have no number, in a sentence or two; empty where all have one.

    Args:
        wide: What `layout_table1`, `layout_table2` or `layout_table3` gave.

    Example:
        >>> runs = [{"R": r, "prompt": p, "ce": 1.0} for r, p in ((4, "main"), (16, "main"), (16, "letters"))]
        >>> why_empty(layout_table2(pd.DataFrame(runs), metrics={"ce": "CE"}))
        'A dash is a cell that was not run (an average needs every task): of all letters only rank 16.'
    """
    keys = [name for name in wide.index.names if name != "metric"]
    ran: dict[tuple[str, ...], list[str]] = {}
    unmeasured: dict[tuple[str, ...], list[str]] = {}
    for place, rows in wide.groupby(keys, sort=False):
        name = " ".join(map(str, place if isinstance(place, tuple) else (place,)))
        there = rows.columns[rows.notna().any()]
        lacking = tuple(map(str, rows.index.get_level_values("metric")[rows[there].isna().any(axis=1)]))
        if len(there) < len(rows.columns):
            ran.setdefault(tuple(map(str, there)), []).append(name)
        if lacking and len(there):
            unmeasured.setdefault(lacking, []).append(name)
    averaged = "task" not in keys or AVERAGE in wide.index.get_level_values("task")
    said = [f"of {', '.join(names)} only {', '.join(there) or 'nothing'}" for there, names in ran.items()]
    parts = [f"was not run{' (an average needs every task)' if averaged else ''}: {'; '.join(said)}"] if said else []
    said = [f"{', '.join(metrics)} of {', '.join(names)}" for metrics, names in unmeasured.items()]
    parts += [f"was not measured in every run: {'; '.join(said)}"] if said else []
    return f"A dash is a cell that {', or '.join(parts)}." if parts else ""


def axis_data(table: Table, axis: str, metrics: Sequence[str]) -> pd.DataFrame:
    """The data of Figures 2 and 3: metrics along an axis, everything else the same.

    Figure 2 is ``axis="size"`` with MIUB and ``ppl`` for the language modelling tasks; Figure 3 is ``axis="length"`` with
    accuracy and MIUB.

    Args:
        table: One row a run.
        axis: ``"rank"``, ``"size"``, ``"data"`` or ``"length"``.
        metrics: Columns; those that the table lacks are left out.

    Returns:
        Tidy rows with ``cell`` (what is held fixed), ``level`` (the place on the axis as a number), ``label`` (as the sweep
        names it), ``metric``, ``mean``, ``sd`` (over seeds; NaN for one) and ``runs``. Empty where no two runs differ in the
        axis alone.

    Raises:
        InputError: The axis is unknown, or no metric is in the table.

    Example:
        >>> runs = pd.DataFrame({"R": [4, 16, 4, 16], "seed": [0, 0, 1, 1], "ce": [2.0, 1.0, 4.0, 3.0]})
        >>> axis_data(runs, "rank", ["ce"])["mean"].tolist()
        [3.0, 2.0]

    References:
        arXiv 2501.03152, Figures 2 and 3.
    """
    rows = with_bounds(finished(table))
    if axis not in LEDGER_AXES:
        raise unknown_name("axis", axis, LEDGER_AXES)
    names = [name for name in metrics if number_column(rows, name).notna().any()]
    if not names:
        raise InputError(f"the table has none of {', '.join(metrics)}: measure at least one")
    labels = (
        {level_of(axis, value): str(value) for value in rows[LEDGER_AXES[axis]]}
        if axis == "length" and "length" in rows
        else {}
    )
    points: dict[tuple[str, float, str], list[float]] = {}
    for curve in curves_of(rows, axis, names):
        for name in names:
            for level, value in zip(curve.levels, curve.values[name], strict=True):
                if np.isfinite(value):
                    points.setdefault((curve.cell, level, name), []).append(value)
    found = [
        {
            "cell": cell,
            "level": level,
            "label": labels.get(level, f"{level:g}"),
            "metric": name,
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else np.nan,
            "runs": len(values),
        }
        for (cell, level, name), values in points.items()
    ]
    return pd.DataFrame(found, columns=["cell", "level", "label", "metric", "mean", "sd", "runs"])


def _adapters(table: Table) -> pd.DataFrame:
    rows = with_bounds(finished(table))
    if "R" not in rows:
        raise InputError("the table has no column R (the rank): Tables 1 to 3 are laid out by rank")
    rows = rows[number_column(rows, "R").fillna(0) > 0]
    if not len(rows):
        raise InputError("the table has no run with a rank above 0: train at least one adapter")
    named: dict[str, Any] = {name: "all" for name in ("task", "model") if name not in rows}
    named |= {name: rows[name].fillna("all").astype(str) for name in ("task", "model", "prompt") if name in rows}
    return rows.assign(**({"prompt": "main"} if "prompt" not in rows else {}), **named)


def _reference(rows: pd.DataFrame, keep: Sequence[str] = ()) -> pd.DataFrame:
    """The runs at the settings that the paper's tables hold fixed."""
    if "prompt" not in keep:
        prompts = sorted(set(rows["prompt"]))
        rows = rows[rows["prompt"] == ("main" if "main" in prompts else prompts[0])]
    binned = "length" in rows and rows["length"].notna().all()
    if "length" in rows and not binned:
        rows = rows[rows["length"].isna()]
    if "D" in rows and not binned:
        most = rows.groupby(["task", "model"])["D"].transform("max")
        rows = rows[(rows["D"] == most) | rows["D"].isna()]
    return rows


def _laid_out(
    rows: pd.DataFrame, keys: tuple[str, ...], metrics: Mapping[str, str], share_rank: int | None
) -> pd.DataFrame:
    present = {name: label for name, label in metrics.items() if number_column(rows, name).notna().any()}
    if not present:
        raise InputError(f"no adapter in the table has any of {', '.join(metrics)}: measure at least one")
    ranks = number_column(rows, "R").astype(int)
    shares = number_column(rows, "share").fillna(1).astype(int)
    if share_rank is None:
        shared = ranks[shares > 1]
        share_rank = int(shared.mode().min()) if len(shared) else None
    numbers = pd.DataFrame({label: number_column(rows, name) for name, label in present.items()}, index=rows.index)
    parts = [_half(rows, keys, numbers, "rank", ranks, shares == 1, sorted(set(ranks[shares == 1])))]
    if (shares > 1).any():
        sizes = sorted(set(shares[ranks == share_rank]), reverse=True)
        parts.append(_half(rows, keys, numbers, "share", shares, ranks == share_rank, sizes))
    wide = pd.concat(parts, axis=1)
    order = [
        (*place, label) for place in dict.fromkeys(entry[:-1] for entry in wide.index) for label in present.values()
    ]
    wide = wide.reindex(pd.MultiIndex.from_tuples(order, names=[*keys, "metric"]))
    wide.attrs["share_rank"] = share_rank
    return wide


def _half(
    rows: pd.DataFrame,
    keys: tuple[str, ...],
    numbers: pd.DataFrame,
    word: str,
    levels: pd.Series,
    chosen: pd.Series,
    order: Sequence[int],
) -> pd.DataFrame:
    places = [rows.loc[chosen, key] for key in keys]
    means = numbers[chosen].groupby([*places, levels[chosen].rename("level")]).mean()
    means.columns.name = "metric"
    wide = pd.DataFrame(means.stack(future_stack=True).unstack("level")).reindex(columns=list(order))
    wide.columns = pd.Index([f"{word} {level}" for level in order])
    return wide


def _average_rows(wide: pd.DataFrame) -> pd.DataFrame:
    """Add the mean over tasks of each model, NaN where a task is missing."""
    tasks = list(dict.fromkeys(wide.index.get_level_values("task")))
    if len(tasks) < 2:
        return wide
    means = _over_tasks(wide)
    means.index = pd.MultiIndex.from_tuples([(AVERAGE, *place) for place in means.index], names=wide.index.names)
    joined = pd.concat([wide, means])
    joined.attrs.update(wide.attrs)
    return joined


def _over_tasks(wide: pd.DataFrame) -> pd.DataFrame:
    """The mean over tasks. A task that lacks a metric altogether (no accuracy for text) does not count for that metric."""
    keys = [name for name in wide.index.names if name != "task"]
    metric = wide.index.get_level_values("metric")
    task = wide.index.get_level_values("task")
    measured = wide.notna().any(axis=1).groupby([task, metric]).transform("any")
    kept = wide[measured]
    tasks_of = pd.Series(task, index=wide.index)[measured].groupby(kept.index.get_level_values("metric")).nunique()
    grouped = kept.groupby(keys, sort=False)
    means, counts = grouped.mean(), grouped.count()
    needed = tasks_of.reindex(means.index.get_level_values("metric")).to_numpy()
    result = means.where(counts.to_numpy() == needed[:, None])
    result.attrs.update(wide.attrs)
    return result
