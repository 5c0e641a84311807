"""Which cells to run next: those that are expected to improve the decision most for what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lorascope.core.errors import InputError
from lorascope.scaling.cost_shapes import ModelShape
from lorascope.scaling.laws import AXES
from lorascope.scaling.plan_costs import cost_book
from lorascope.scaling.plan_problem import Problem, choose, is_settled, pose
from lorascope.scaling.plan_runs import Runs, candidates_of, prepare
from lorascope.scaling.table import as_table

_OPENING = 4  # runs before the surface is asked
_NEGLIGIBLE = 1e-2  # of the noise: a smaller knowledge gradient is that of no run at all
_COST_POWER = 0.5  # value / cost ** power: between greed for value and greed for cheapness


def next_cells(
    table: pd.DataFrame | Mapping[str, Any] | str | None,
    grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]],
    n: int = 3,
    *,
    metric: str = "accuracy",
    better: str | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    seed: int = 0,
    shape: ModelShape | None = None,
    max_cost: float | int | None = None,
    settle: bool = True,
    about: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """The next cells to run, the most useful first; none when the decision is settled.

    From nothing, four cells open: the cheapest model and data at the smallest and at the largest rank, the largest model
    and data at the middle rank, then what is missing of the corners. After that each cell is chosen by its knowledge
    gradient, the expected rise of the best candidate's posterior mean when the cell is seen, over the square root of its
    cost. Where no single run is expected to change the choice, the cell that narrows the difference between the choice and
    its closest rival most is taken instead. Cells of one batch are chosen as if the earlier ones were seen.

    Args:
        table: The runs so far (a frame, columns, a path), or None.
        grid: What can be run: axis -> values, or single cells with N, R, D.
        n: How many cells to return at most.
        metric: What the decision is about.
        better: ``higher`` or ``lower`` for a metric that lorascope does not know.
        seeds: Seeds that can be run, in this order; runs of one seed are compared with each other.
        seed: Seed of the draws.
        shape: Dimensions of the base model, for costs.
        max_cost: Leave out cells that cost more FLOPs than this, taken together; the rest goes on.
        settle: Return nothing once the decision is settled (`recommend`).
        about: A cell of the grid; ask what tells most of its mean, as for a target that it may or may not reach.

    Returns:
        Mappings with N, R, D, seed, ``flops`` and ``why``.

    Raises:
        InputError: The grid or the table cannot be used.

    Example:
        >>> [cell["R"] for cell in next_cells(None, {"N": [1e8], "R": [2, 8, 32], "D": [100, 1000]})]
        [2, 32, 8]

    References:
        Frazier, Powell and Dayanik (2009), the knowledge-gradient policy for correlated normal beliefs.
    """
    if isinstance(n, bool) or n < 1:
        raise InputError(f"n {n!r} must be a whole number of at least 1")
    if not len(seeds):
        raise InputError("seeds is empty: give at least one")
    frame = as_table(table) if table is not None else pd.DataFrame({name: np.empty(0) for name in AXES})
    runs = prepare(frame, metric, better=better, allow_empty=True)
    cells = candidates_of(grid, runs)
    cells = np.array([cell for cell in cells if tuple(cell) not in runs.failed]).reshape(-1, 3)
    if not len(cells):
        raise InputError("every cell of the grid failed: give others")
    book = cost_book(runs.rows, shape=shape)
    done = _done_seeds(frame, runs)
    flops = book.of(cells)["flops"]
    room = math.inf if max_cost is None else float(max_cost)
    picked: list[dict[str, Any]] = []
    taken = {key: set(value) for key, value in done.items()}

    def add(index: int, why: str) -> None:
        nonlocal room
        key = tuple(cells[index])
        number = next(item for item in seeds if item not in taken.get(key, set()))
        taken.setdefault(key, set()).add(number)
        room -= float(flops[index])
        picked.append({**_cell(cells[index]), "seed": number, "flops": float(flops[index]), "why": why})

    def free(index: int) -> bool:
        left = any(item not in taken.get(tuple(cells[index]), set()) for item in seeds)
        return left and bool(flops[index] <= room)

    seen = len(runs.frame)
    for index, why in _opening(cells, flops):
        if len(picked) < n and seen + len(picked) < _OPENING and free(index) and not taken.get(tuple(cells[index])):
            add(index, why)
    if len(picked) == n or (picked and seen < _OPENING):
        return picked
    if not len(runs.frame):
        for index in np.argsort(flops, kind="stable"):
            if len(picked) < n and free(int(index)):
                add(int(index), "cheapest cell left")
        return picked
    problem = pose(runs, cells, book, seed=seed, use_law=False)
    order = {tuple(cell): index for index, cell in enumerate(cells)}
    everything = np.ones(len(problem.cells), dtype=bool)
    if settle and is_settled(problem, everything):
        return picked
    subject = None
    if about is not None:
        wanted = tuple(float(about[axis]) for axis in AXES)
        subject = next((i for i, cell in enumerate(problem.cells.tolist()) if tuple(cell) == wanted), None)
        if subject is None:
            raise InputError(f"about {dict(about)} is no cell of the grid: give one of its N, R, D")
    for place, why in _ask(problem, n - len(picked), lambda i: free(order[tuple(problem.cells[i])]), subject):
        add(order[tuple(problem.cells[place])], why)
    return picked


def _opening(cells: np.ndarray, flops: np.ndarray) -> list[tuple[int, str]]:
    """The opening design as indices of cells, each with its reason."""
    low, high = cells.min(0), cells.max(0)
    ranks = np.unique(cells[:, 1])
    middle = ranks[len(ranks) // 2]
    wanted = [
        ((low[0], low[1], low[2]), "cheapest corner, smallest rank"),
        ((low[0], high[1], low[2]), "cheapest corner, largest rank"),
        ((high[0], middle, high[2]), "largest model and data, middle rank"),
        ((low[0], middle, high[2]), "smallest model, most data"),
        ((high[0], middle, low[2]), "largest model, least data"),
        ((low[0], middle, low[2]), "cheapest corner, middle rank"),
    ]
    span = np.maximum(np.ptp(np.log(cells), axis=0), 1e-9)
    found: list[tuple[int, str]] = []
    for target, why in wanted:
        gap = (((np.log(cells) - np.log(np.array(target))) / span) ** 2).sum(1)
        index = int(np.lexsort((flops, gap.round(12)))[0])
        if index not in [item for item, _ in found]:
            found.append((index, why))
    return found


def _ask(problem: Problem, n: int, free: Callable[[int], bool], about: int | None) -> list[tuple[int, str]]:
    """The n most useful candidates, each as if the earlier ones were seen, with the reason."""
    mean = problem.draws.mean(0)
    centred = problem.draws - mean
    covariance = centred.T @ centred / max(len(centred) - 1, 1)
    noise = max(problem.noise, 1e-9 * max(1.0, float(np.abs(mean).max()))) ** 2
    power = problem.costs["flops"] ** _COST_POWER
    choice = about if about is not None else choose(problem, np.ones(len(mean), dtype=bool))[0]
    found: list[tuple[int, str]] = []
    available = np.ones(len(mean), dtype=bool)
    for _ in range(n):
        gain = _knowledge_gradient(mean, covariance, noise)
        told = f"seeing it is expected to improve the choice by {{:.2g}} {problem.runs.metric}"
        if about is not None or gain[available].max(initial=0.0) < _NEGLIGIBLE * np.sqrt(noise):
            gain, told = _narrowing(mean, covariance, noise, choice, alone=about is not None)
            told = told.format(unit=problem.runs.metric, value="{:.2g}")
        score = np.maximum(gain, 0.0) / power
        for index in np.argsort(-score, kind="stable"):
            if available[index] and free(int(index)):
                break
        else:
            return found
        available[index] = False
        found.append((int(index), told.format(max(float(gain[index]), 0.0))))
        column = covariance[:, index].copy()
        covariance = covariance - np.outer(column, column) / (column[index] + noise)
    return found


def _knowledge_gradient(mean: np.ndarray, covariance: np.ndarray, noise: float) -> np.ndarray:
    """Expected rise of the highest posterior mean by one run of each candidate, (m,)."""
    nodes = np.linspace(-3.0, 3.0, 41)
    density = np.exp(-(nodes**2) / 2)
    density /= density.sum()
    slope = covariance / np.sqrt(np.diagonal(covariance) + noise)[None]  # column c: change of all means by seeing c
    tops = (mean[:, None, None] + slope[:, :, None] * nodes).max(0)  # (cells, nodes)
    return np.asarray(tops @ density - mean.max())


def _narrowing(
    mean: np.ndarray, covariance: np.ndarray, noise: float, choice: int, *, alone: bool
) -> tuple[np.ndarray, str]:
    """By how much one run of each candidate lowers the standard deviation of the choice's mean, or of what the closest
    rival is better by, (m,); and what to call it.

    The rival is the candidate most likely to be better than the choice by more than the noise of a run.
    """
    variance = np.diagonal(covariance)
    if alone or len(mean) == 1:
        shared, before = covariance[choice], variance[choice]
        told = "seeing it narrows what is known of the choice by {value} {unit}"
    else:
        spread = np.sqrt(np.maximum(variance + variance[choice] - 2 * covariance[choice], 1e-300))
        far = (mean - mean[choice] - np.sqrt(noise)) / spread
        far[choice] = -np.inf
        rival = int(np.argmax(far))
        shared, before = covariance[rival] - covariance[choice], spread[rival] ** 2
        told = "seeing it narrows the gap between the choice and its closest rival by {value} {unit}"
    after = np.maximum(before - shared**2 / (variance + noise), 0.0)
    return np.sqrt(before) - np.sqrt(after), told


def _done_seeds(frame: pd.DataFrame, runs: Runs) -> dict[tuple[float, ...], set[Any]]:
    """Cell -> seeds that were run, under the names that the table gives them."""
    found: dict[tuple[float, ...], set[Any]] = {}
    rows = runs.rows
    for _, row in rows.iterrows():
        key = tuple(float(row[axis]) if axis in rows and pd.notna(row[axis]) else 1.0 for axis in AXES)
        number = row["seed"] if "seed" in rows else 0
        found.setdefault(key, set()).add(int(number) if isinstance(number, int | float | np.number) else number)
    return found


def _cell(cell: np.ndarray) -> dict[str, Any]:
    return {
        axis: int(value) if float(value).is_integer() else float(value) for axis, value in zip(AXES, cell, strict=True)
    }
