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
from lorascope.scaling.settings import SETTINGS, text_column

_SHARED = 0.8  # of the usual share of the processors: less went to other programs

_FEW = 3  # runs that tell their processor time, above which those that do not are left out of the time model

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
            batch = self.lookup("train_tokens_seen", d) / np.maximum(self.lookup("train_steps", d), 1)
            memory = np.column_stack([np.ones(len(d)), n, np.nan_to_num(r * per_rank), batch]) @ self.memory
        return {"flops": flops, "seconds": seconds, "memory": memory, "adapter": adapter, "tokens": tokens}

    def flops(self, cells: np.ndarray, tokens: np.ndarray | None = None) -> np.ndarray:
        """Operations of training: tokens times those of a token (4 N + 6 adapter parameters, or from the shape)."""
        n, r, d = cells[:, 0], cells[:, 1], cells[:, 2]
        tokens = self.tokens(d) if tokens is None else tokens
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

    Time: seconds = FLOPs / rate + seconds a step, both from the rows' ``seconds_training`` (`quiet_seconds` of it); the
    second only where it predicts left-out cells better. Memory: ``peak_memory_bytes`` = constant + bytes a parameter of
    base and adapter + bytes a token of a step. A cell that is left out is one of the sweep, all seeds of it, and not all
    prompts and lengths of one N, R, D at once: those hold most of what is known about tokens.

    Args:
        rows: Finished rows (R above 0).
        shape: Dimensions of the base model.
        target_modules: As in `cost_of`.

    Returns:
        The book, with the error of each model on cells that it was not calibrated on; ``seconds_by_the_clock`` is that
        of the time model against what the clock showed where other programs ran beside the sweep.
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
    cells, labels = _cells(rows), _numbered(rows)
    calibration: dict[str, dict[str, float]] = {}
    time = memory = None
    if _has(rows, "seconds_training") and len(cells):
        clock = _column(rows, "seconds_training")
        good = np.isfinite(clock) & (clock > 0)
        told = good & _processor_known(rows)
        if told.sum() > _FEW and len(np.unique(cells[told], axis=0)) > 1 and told.sum() < good.sum():
            silent = int(good.sum() - told.sum())
            notes.append(f"{silent} runs do not tell how long their processors worked: the time model leaves them out")
            good = told
        own = _column(rows, "train_tokens_seen") if _has(rows, "train_tokens_seen") else book.tokens(cells[:, 2])
        own = np.where(np.isfinite(own) & (own > 0), own, book.tokens(cells[:, 2]))
        steps = _column(rows, "train_steps") if _has(rows, "train_steps") else np.zeros(len(cells))
        design = np.column_stack([book.flops(cells, own), np.nan_to_num(steps)])[good]
        if good.any():
            quiet, busy = quiet_seconds(rows.loc[good])
            time, calibration["seconds"], guess = _calibrate(design, quiet, labels[good], ((0,), (0, 1)))
            shared = int((busy < _SHARED).sum())
            if shared:
                errors = np.abs(guess / clock[good] - 1)
                facts = {"rows": float(len(errors)), "median_error": float(np.median(errors))}
                calibration["seconds_by_the_clock"] = {**facts, "largest_error": float(np.max(errors))}
                notes.append(
                    f"{shared} of {len(busy)} runs shared their processors with other programs (down to {busy.min():.0%} of "
                    "what the others got): times are those of an undisturbed run"
                )
    if _has(rows, "peak_memory_bytes") and len(cells):
        peak = _column(rows, "peak_memory_bytes")
        good = np.isfinite(peak) & (peak > 0)
        size = np.nan_to_num(cells[:, 1] * book.per_rank(cells[:, 0]))
        batch = np.zeros(len(cells))
        if _has(rows, "train_tokens_seen") and _has(rows, "train_steps"):
            batch = np.nan_to_num(_column(rows, "train_tokens_seen") / np.maximum(_column(rows, "train_steps"), 1))
        design = np.column_stack([np.ones(len(cells)), cells[:, 0], size, batch])[good]
        if good.any():
            memory, calibration["memory"], _ = _calibrate(
                design, peak[good], labels[good], ((0,), (0, 1), (0, 1, 2), (0, 1, 2, 3))
            )
    return CostBook(rows, shape, target_modules, tuple(notes), calibration, time, memory)


def _calibrate(
    design: np.ndarray, y: np.ndarray, labels: np.ndarray, choices: tuple[tuple[int, ...], ...]
) -> tuple[np.ndarray, dict[str, float], np.ndarray]:
    """Non-negative relative least squares with the columns that predict left-out cells best; that error; the predictions."""
    _, label = np.unique(labels, return_inverse=True)

    def solve(columns: tuple[int, ...], rows: np.ndarray) -> np.ndarray:
        chosen = design[rows][:, list(columns)]
        scale = np.maximum(np.abs(chosen).max(0), 1e-300)
        found = np.zeros(design.shape[1])
        found[list(columns)] = nnls(chosen / y[rows, None] / scale, np.ones(int(rows.sum())))[0] / scale
        return found

    best: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    for columns in choices:
        guess = np.full(len(y), np.nan)
        if label.max() > 0:
            for i in range(label.max() + 1):
                guess[label == i] = design[label == i] @ solve(columns, label != i)
        errors = np.abs(guess / y - 1)
        # A further constant must earn its place: a tenth less error.
        if best is None or np.median(errors) < 0.9 * np.median(best[1]):
            best = (solve(columns, np.ones(len(y), dtype=bool)), errors, guess)
    assert best is not None
    found, errors, guess = best
    facts = {"rows": float(len(y)), "median_error": float(np.median(errors)), "largest_error": float(np.max(errors))}
    return found, facts, guess


def _processor_known(rows: pd.DataFrame) -> np.ndarray:
    """Runs that tell how long their processors worked in training, (n,)."""
    if not (_has(rows, "cpu_seconds_training") and _has(rows, "threads")):
        return np.zeros(len(rows), dtype=bool)
    worked, threads = _column(rows, "cpu_seconds_training"), _column(rows, "threads")
    return np.asarray(np.isfinite(worked) & (worked > 0) & (threads > 0))


def quiet_seconds(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Seconds that training would have taken with the processors to itself, and how busy each run kept them.

    A run that computes on processors keeps its threads busy for the same part of the time whenever nothing else runs: b =
    ``cpu_seconds_training`` / (``threads`` ``seconds_training``). Where b is lower than in the sweep's busiest runs (their
    upper decile, b0), the rest went to other programs, and an undisturbed run takes ``cpu_seconds_training`` / (``threads``
    b0). Runs without these columns, as on a GPU, are taken by the clock.

    Args:
        rows: Finished rows with ``seconds_training`` above 0.

    Returns:
        Seconds, (n,); and b / b0 of the runs, at most 1, 1 where it is not known, (n,).

    Example:
        >>> rows = pd.DataFrame({"seconds_training": [10.0, 40.0], "cpu_seconds_training": [9.0, 9.0], "threads": [1, 1]})
        >>> [column.round(2).tolist() for column in quiet_seconds(rows)]
        [[10.0, 10.81], [1.0, 0.27]]
    """
    clock = _column(rows, "seconds_training")
    known = _processor_known(rows)
    if not known.any():
        return clock, np.ones(len(clock))
    busy = _column(rows, "cpu_seconds_training") / (_column(rows, "threads") * clock)
    usual = float(np.quantile(busy[known], 0.9))
    share = np.where(known, np.minimum(busy / usual, 1.0), 1.0)
    return np.asarray(clock * share), share


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


def _numbered(rows: pd.DataFrame) -> np.ndarray:
    """The number of each row's cell, (n,): what a sweep varies beside the seed, prompts and lengths included."""
    names = [name for name in ("N", "R", "D", *SETTINGS) if name in rows]
    if not names:
        return np.zeros(len(rows), dtype=int)
    return np.asarray(pd.DataFrame({name: text_column(rows[name]) for name in names}).groupby(names).ngroup())


def cost_dict(costs: Mapping[str, np.ndarray], index: int) -> dict[str, Any]:
    """The cost of one cell; None where unknown."""
    return {kind: float(v[index]) if np.isfinite(v[index]) else None for kind, v in costs.items()}
