"""Which columns of a table say how a run was made, beside those that say what came of it and what it cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lorascope.core.errors import InputError
from lorascope.core.metrics import METRICS

# Costs, outcomes and bookkeeping: never a setting.
_NO_SETTING = frozenset(
    "name status reason seed D_tokens train_steps train_tokens_seen adapter_parameters model_parameters "  # noqa: SIM905
    "peak_memory_bytes threads train_samples train_tokens".split()
)
# What a sweep can vary beside N, R, D and the seed.
SETTINGS = tuple(
    "task prompt length alpha dropout target_modules use_rslora use_dora preset learning_rate optimizer weight_decay "  # noqa: SIM905
    "batch_size max_steps epochs schedule warmup_steps init quantize variant tokens text_task max_length eval_limit "
    "data_dir model share".split()
)
# In the order in which they name a cell.
_IDENTITY = ("task", "model", "prompt", "length", "R", "share", "N", "D")
# What goes with N, R and D: a law has them as its axes.
_OF_AXES = frozenset({"N", "R", "D", "rank", "share", "train_limit"})


def settings_of(table: pd.DataFrame) -> list[str]:
    """The columns that say how a run was made and differ between runs.

    Metrics, costs and bookkeeping are none; nor is a column of text or fractions that lorascope does not know and that
    differs in more than half of at least four rows (a comment, a date, a score of another tool).

    Example:
        >>> settings_of(pd.DataFrame({"R": [4, 8], "N": [1, 1], "ce": [2.0, 1.0], "seed": [0, 0]}))
        ['R']
    """
    found = []
    columns = list(map(str, table.columns))
    for column in sorted(columns, key=lambda name: _IDENTITY.index(name) if name in _IDENTITY else len(_IDENTITY)):
        if column in METRICS or column in _NO_SETTING or "seconds_" in column:
            continue
        if column == "rank" and "R" in table:
            continue
        if column == "N" and "share" in table and not _adds(table, "N", ("model", "share")):
            continue
        distinct = text_column(table[column]).nunique()
        foreign = column not in _IDENTITY and not pd.api.types.is_integer_dtype(table[column].dtype)
        if distinct > 1 and not (foreign and len(table) >= 4 and distinct > len(table) / 2):
            found.append(column)
    return found


def _adds(table: pd.DataFrame, column: str, others: tuple[str, ...]) -> bool:
    """Whether a column differs where the others are the same."""
    key = pd.Series([""] * len(table), index=table.index, dtype=object)
    for other in others:
        if other in table:
            key = key + text_column(table[other]) + ";"
    return bool((text_column(table[column]).groupby(key).nunique() > 1).any())


def text_column(column: pd.Series) -> pd.Series:
    """Values as text, so that missing ones and lists can be compared too."""
    return column.map(as_text)


def as_text(value: Any) -> str:
    """A setting as text: ``none`` where missing, whole numbers without a point."""
    if missing(value):
        return "none"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def missing(value: Any) -> bool:
    """Whether a table has nothing there: None, NaN or pandas' NA."""
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def mixed_settings(table: pd.DataFrame) -> list[str]:
    """Settings beside N, R and D that differ between the runs: a law over N, R and D mixes them.

    What follows from rank, model or data alone (``alpha``, the model's name, rows in a file) is none, nor is a value of
    its own for each run.

    Args:
        table: Finished runs.

    Example:
        >>> mixed_settings(pd.DataFrame({"R": [4, 8, 4, 8], "alpha": [8, 16, 8, 16], "prompt": ["main", "main", "a", "a"]}))
        ['prompt']
    """
    axes = tuple(axis for axis in ("N", "R", "D") if axis in table)
    found = []
    for name in settings_of(table):
        column = text_column(table[name])
        if name in _OF_AXES or column.nunique() > len(table) / 2:
            continue
        if any(column.groupby(text_column(table[axis])).nunique().max() == 1 for axis in axes):
            continue
        found.append(name)
    return found


@dataclass(frozen=True, eq=False)
class Evened:
    """Which runs can be set beside each other although other settings vary among them.

    Attributes:
        kept: Rows to use, (n,).
        names: Settings that vary between runs of one cell and seed.
        blocks: How many combinations of those there are; 0 where nothing varies.
        alone: Whether one combination alone is kept; otherwise all cells that are kept have every combination.
        note: What was left out, in words; empty where nothing was.
    """

    kept: np.ndarray
    names: tuple[str, ...] = ()
    blocks: int = 0
    alone: bool = False
    note: str = ""


def even_out(table: pd.DataFrame, cells: pd.DataFrame, names: Sequence[str] = SETTINGS) -> Evened:
    """Choose runs such that a difference between cells is none of other settings.

    Where a setting (a prompt, a task ...) varies between runs of one cell and seed, the cells that have all its values are
    kept, with all of these; or, where one value alone is in all cells and the others only in some, that one is kept.

    Args:
        table: Finished runs.
        cells: The columns that tell a cell and its seed, in the same rows.
        names: Columns of the table that are settings.

    Raises:
        InputError: No cell has all values, and none is in all cells.

    Example:
        >>> runs = pd.DataFrame({"R": [4, 8, 8], "prompt": ["main", "main", "letters"]})
        >>> found = even_out(runs, runs[["R"]])
        >>> found.kept.tolist(), found.note
        ([True, True, False], 'only runs with prompt main: 1 with other settings left out')
    """
    keys = [cells[name] for name in cells]
    texts = {name: text_column(table[name]) for name in names if name in table}
    varying = [
        name for name, column in texts.items() if len(column) and column.groupby(keys, dropna=False).nunique().max() > 1
    ]
    everything = np.ones(len(table), dtype=bool)
    if not varying:
        return Evened(everything)
    block = pd.DataFrame({name: texts[name] for name in varying}).agg("/".join, axis=1)
    blocks = sorted(block.unique())
    cell = cells.groupby(list(cells), sort=False, dropna=False).ngroup()
    sizes = block.groupby(cell).nunique()
    whole = sizes[sizes == len(blocks)]
    reach = cell.groupby(block).nunique()
    usual = str(min(reach.index, key=lambda name: (-reach[name], block.tolist().index(name))))
    if len(whole) < reach[usual] == len(sizes):
        told = ", ".join(f"{name} {value}" for name, value in zip(varying, usual.split("/"), strict=True))
        note = f"only runs with {told}: {int((block != usual).sum())} with other settings left out"
        return Evened((block == usual).to_numpy(), tuple(varying), len(blocks), alone=True, note=note)
    if not len(whole):
        raise InputError(
            f"the table mixes {len(blocks)} settings of {', '.join(varying)}, and no cell has all of them: keep one, "
            f"such as --where {varying[0]}={blocks[0].split('/')[0]}"
        )
    lost = len(sizes) - len(whole)
    note = f"{lost} cell{'s' if lost > 1 else ''} without all of those: left out" if lost else ""
    return Evened(cell.isin(whole.index).to_numpy(), tuple(varying), len(blocks), note=note)
