"""What each candidate costs, from the dimensions of the model where they are known and from the sweep's own rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from lorascope.scaling.cost import adapter_file_bytes, adapter_parameters, cost_of
from lorascope.scaling.cost_shapes import ModelShape

KINDS = ("flops", "seconds", "memory", "adapter")


@dataclass(frozen=True, eq=False)
class CostBook:
    """Costs of configurations.

    Attributes:
        rows: Finished rows of the sweep, with whatever columns of cost it has.
        shape: Dimensions of the base model; None takes 4 operations a parameter and token.
        target_modules: Which layers the adapter sits on, for ``shape``.
        notes: What was assumed, in words.
        calibration: How far the time and memory models are from the sweep's own rows, leaving one cell out: median
            and largest relative error, and how many rows.
    """

    rows: pd.DataFrame
    shape: ModelShape | None
    target_modules: str | tuple[str, ...]
    notes: tuple[str, ...] = ()
    calibration: dict[str, dict[str, float]] = field(default_factory=dict)
    time: np.ndarray | None = None
    memory: np.ndarray | None = None

    def of(self, cells: np.ndarray) -> dict[str, np.ndarray]:
        """Cost of cells (m, 3) of N, R, D by kind: ``flops``, ``seconds``, ``memory``, ``adapter`` (bytes); NaN unknown."""
        n, r, d = cells[:, 0], cells[:, 1], cells[:, 2]
        tokens, flops = self.tokens(d), self.flops(cells)
        unknown = np.full(len(cells), np.nan)
        per_rank = self.per_rank(n)
        adapter = 4 * r * per_rank
        if self.shape is not None:
            sizes = {
                rank: adapter_file_bytes(self.shape, int(rank), self._targets()) for rank in np.unique(np.round(r))
            }
            adapter = np.array([sizes[rank] for rank in np.round(r)], dtype=float)
        seconds, memory = unknown, unknown
        if self.time is not None:
            seconds = self.time[0] * flops + self.time[1] * self.lookup("train_steps", d)
        if self.memory is not None:
            memory = self.memory[0] + self.memory[1] * n + self.memory[2] * np.nan_to_num(r * per_rank)
        return {"flops": flops, "seconds": seconds, "memory": memory, "adapter": adapter, "tokens": tokens}

    def flops(self, cells: np.ndarray) -> np.ndarray:
        """Operations of training: tokens times those of a token (4 N + 6 adapter parameters, or from the shape)."""
        n, r, d = cells[:, 0], cells[:, 1], cells[:, 2]
        tokens = self.tokens(d)
        if self.shape is None:
            return np.asarray(tokens * (4 * self.active(n) + 6 * np.nan_to_num(r * self.per_rank(n))))
        length = max(1, round(float(np.nanmedian(self.tokens_a_row()))))
        each = {
            rank: cost_of(
                self.shape, rank=int(rank), batch_size=1, length=length, target_modules=self._targets()
            ).step_flops
            / length
            for rank in np.unique(np.round(r))
        }
        return np.asarray(tokens * np.array([each[rank] for rank in np.round(r)]))

    def tokens(self, d: np.ndarray) -> np.ndarray:
        """Training tokens for a number of rows: as the sweep saw them, else D itself."""
        for name in ("train_tokens_seen", "D_tokens"):
            if _has(self.rows, name):
                return self.lookup(name, d)
        return np.asarray(d, dtype=float)

    def tokens_a_row(self) -> np.ndarray:
        """Tokens of a training row, one number a run; 1 where unknown."""
        if _has(self.rows, "D_tokens") and "D" in self.rows:
            return np.asarray(_column(self.rows, "D_tokens") / _column(self.rows, "D"))
        return np.ones(1)

    def lookup(self, name: str, d: np.ndarray) -> np.ndarray:
        """A column as a function of D: the median where D was run, else along a power law between and beyond."""
        if not _has(self.rows, name):
            return np.zeros(len(d))
        values = _column(self.rows, name)
        where = _column(self.rows, "D") if "D" in self.rows else np.ones(len(values))
        return _along(where, values, d)

    def active(self, n: np.ndarray) -> np.ndarray:
        """Parameters that a token passes: those of the unshared model where the sweep shares layers."""
        if not _has(self.rows, "share"):
            return n
        full: dict[float, float] = {}
        for _, rows in self.rows.groupby("model" if "model" in self.rows else np.zeros(len(self.rows))):
            sizes = _column(rows, "N")
            full.update(dict.fromkeys(sizes.tolist(), float(sizes.max())))
        return np.array([full.get(float(size), float(size)) for size in n])

    def per_rank(self, n: np.ndarray) -> np.ndarray:
        """Adapter parameters for each unit of rank, by model; NaN where unknown."""
        if self.shape is not None:
            return np.full(len(n), float(adapter_parameters(self.shape, 1, self._targets())))
        if not _has(self.rows, "adapter_parameters"):
            return np.full(len(n), np.nan)
        each = _column(self.rows, "adapter_parameters") / _column(self.rows, "R")
        return _along(_column(self.rows, "N") if "N" in self.rows else np.ones(len(each)), each, n)

    def _targets(self) -> str | list[str]:
        return self.target_modules if isinstance(self.target_modules, str) else list(self.target_modules)


def cost_book(
    rows: pd.DataFrame,
    *,
    shape: ModelShape | None = None,
    target_modules: str | tuple[str, ...] = "all-linear",
) -> CostBook:
    """Calibrate a cost book on a sweep's rows.

    Time: seconds = FLOPs / rate + seconds a step, both from the rows' ``seconds_training``; the second only where it
    predicts left-out cells better. Memory: ``peak_memory_bytes`` = constant + bytes a parameter of base and adapter.

    Args:
        rows: Finished rows (R above 0).
        shape: Dimensions of the base model.
        target_modules: As in `cost_of`.

    Returns:
        The book, with the error of each model on cells that it was not calibrated on.
    """
    notes: list[str] = []
    if not _has(rows, "train_tokens_seen"):
        notes.append(
            "no train_tokens_seen in the table: one pass over "
            + (
                "D_tokens is assumed"
                if _has(rows, "D_tokens")
                else "D tokens is assumed, so FLOPs compare candidates only"
            )
        )
    if shape is None and not _has(rows, "N"):
        notes.append("neither N nor the model's shape is known: FLOPs compare candidates only")
    book = CostBook(rows, shape, target_modules)
    cells = _cells(rows)
    calibration: dict[str, dict[str, float]] = {}
    time = memory = None
    if _has(rows, "seconds_training") and len(cells):
        seconds = _column(rows, "seconds_training")
        good = np.isfinite(seconds) & (seconds > 0)
        design = np.column_stack([book.flops(cells), book.lookup("train_steps", cells[:, 2])])[good]
        if good.any():
            time, calibration["seconds"] = _calibrate(design, seconds[good], cells[good], ((0,), (0, 1)))
    if _has(rows, "peak_memory_bytes") and len(cells):
        peak = _column(rows, "peak_memory_bytes")
        good = np.isfinite(peak) & (peak > 0)
        size = np.nan_to_num(cells[:, 1] * book.per_rank(cells[:, 0]))
        design = np.column_stack([np.ones(len(cells)), cells[:, 0], size])[good]
        if good.any():
            memory, calibration["memory"] = _calibrate(design, peak[good], cells[good], ((0,), (0, 1), (0, 1, 2)))
    return CostBook(rows, shape, target_modules, tuple(notes), calibration, time, memory)


def _calibrate(
    design: np.ndarray, y: np.ndarray, cells: np.ndarray, choices: tuple[tuple[int, ...], ...]
) -> tuple[np.ndarray, dict[str, float]]:
    """Non-negative relative least squares with the columns that predict left-out cells best, and that error."""
    _, label = np.unique(cells, axis=0, return_inverse=True)
    label = label.reshape(-1)

    def solve(columns: tuple[int, ...], rows: np.ndarray) -> np.ndarray:
        chosen = design[rows][:, list(columns)]
        scale = np.maximum(np.abs(chosen).max(0), 1e-300)
        found = np.zeros(design.shape[1])
        found[list(columns)] = nnls(chosen / y[rows, None] / scale, np.ones(int(rows.sum())))[0] / scale
        return found

    best: tuple[np.ndarray, np.ndarray] | None = None
    for columns in choices:
        if label.max() == 0:
            errors = np.full(len(y), np.nan)
        else:
            errors = np.concatenate(
                [
                    np.abs(design[label == i] @ solve(columns, label != i) / y[label == i] - 1)
                    for i in range(label.max() + 1)
                ]
            )
        # A further constant must earn its place: a tenth less error.
        if best is None or np.median(errors) < 0.9 * np.median(best[1]):
            best = (solve(columns, np.ones(len(y), dtype=bool)), errors)
    assert best is not None
    errors = best[1]
    facts = {"rows": float(len(y)), "median_error": float(np.median(errors)), "largest_error": float(np.max(errors))}
    return best[0], facts


def _along(where: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    good = np.isfinite(where) & np.isfinite(values) & (where > 0) & (values > 0)
    if not good.any():
        return np.full(len(at), np.nan)
    places = np.unique(where[good])
    medians = np.array([np.median(values[good & (where == place)]) for place in places])
    x, y, z = np.log(places), np.log(medians), np.log(at)
    if len(places) == 1:
        return np.asarray(np.exp(y[0] + z - x[0]))
    found = np.interp(z, x, y)
    low, high = (y[1] - y[0]) / (x[1] - x[0]), (y[-1] - y[-2]) / (x[-1] - x[-2])
    found = np.where(z < x[0], y[0] + low * (z - x[0]), found)
    return np.asarray(np.exp(np.where(z > x[-1], y[-1] + high * (z - x[-1]), found)))


def _has(rows: pd.DataFrame, name: str) -> bool:
    return name in rows and bool(pd.to_numeric(rows[name], errors="coerce").notna().any())


def _column(rows: pd.DataFrame, name: str) -> np.ndarray:
    return pd.to_numeric(rows[name], errors="coerce").to_numpy(dtype=float, na_value=np.nan)


def _cells(rows: pd.DataFrame) -> np.ndarray:
    ones = np.ones(len(rows))
    return np.column_stack([_column(rows, axis) if axis in rows else ones for axis in "NRD"])


def cost_dict(costs: Mapping[str, np.ndarray], index: int) -> dict[str, Any]:
    """The cost of one cell; None where unknown."""
    return {kind: float(v[index]) if np.isfinite(v[index]) else None for kind, v in costs.items()}
