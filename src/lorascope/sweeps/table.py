"""The table of a sweep: one row a cell, what was asked, what came out, and what it cost."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import pandas as pd

from lorascope.core.errors import DataError
from lorascope.core.files import atomic_write_bytes, atomic_write_text
from lorascope.core.metrics import METRICS
from lorascope.results import RunRecord
from lorascope.sweeps.cells import Cell, plain_spec
from lorascope.sweeps.folder import SweepFolder

QUANTIZATION = ("bits_per_weight", "code_entropy_bits", "seconds_quantizing")
"""Columns before those of `COSTS`, there if any cell's base is quantised."""

HEAD = ("name", "status", "reason", "N", "R", "D", "D_tokens", "length", "seed", "task", "model", "share", "prompt")
"""The first columns of the table, there for every sweep."""

COSTS = (
    "seconds_training",
    "seconds_measuring",
    "seconds_evaluating",
    "seconds_total",
    "cpu_seconds_training",
    "threads",
    "train_steps",
    "train_tokens_seen",
    "adapter_parameters",
    "peak_memory_bytes",
)
"""The last columns: what a cell cost."""

_IN_HEAD = ("rank", "length", "seed", "task", "model", "share", "prompt")


def sweep_table(
    folder: str | Path | SweepFolder, *, cache: MutableMapping[str, RunRecord] | None = None
) -> pd.DataFrame:
    """All cells of a sweep as a table, read from their records.

    Columns: those of `HEAD`; every other setting that differs between cells; every metric that any cell has; those of
    `QUANTIZATION` if a base is quantised; those of `COSTS`. ``N`` is the number of distinct parameters of the base model,
    ``R`` the rank (0 is the base model), ``D`` the number of distinct training rows that were seen and ``D_tokens`` their
    tokens (both 0 where nothing is trained). What is not known is missing (NaN in pandas, empty in CSV).

    Args:
        folder: Folder of the sweep.
        cache: Records of cells that are done, by name, kept from an earlier call; new ones are added.

    Returns:
        One row a cell, ordered by rank, training rows, seed and name.

    Raises:
        DataError: The folder holds no sweep, or the record of a cell's settings is damaged.

    Example:
        >>> table = sweep_table("out")  # doctest: +SKIP
        >>> table[table.status == "done"].groupby("R").accuracy.mean()  # doctest: +SKIP
    """
    place = folder if isinstance(folder, SweepFolder) else SweepFolder.open(folder)
    cache = {} if cache is None else cache
    cells = place.cells()
    varying = _varying(cells)
    rows = [_row(place, cell, varying, cache) for cell in cells]
    found = {name for row in rows for name in row["totals"]}
    metrics = [*(name for name in METRICS if name in found), *sorted(found - METRICS.keys())]
    stored = [name for name in QUANTIZATION if any(name in row["costs"] for row in rows)]
    flat = [{**row["head"], **{name: row["totals"].get(name) for name in metrics}, **row["costs"]} for row in rows]
    table = pd.DataFrame.from_records(flat, columns=[*HEAD, *varying, *metrics, *stored, *COSTS])
    for name in ("N", "D", "D_tokens", "share", "threads", "train_steps", "train_tokens_seen", "adapter_parameters"):
        table[name] = table[name].astype("Int64")
    table["peak_memory_bytes"] = table["peak_memory_bytes"].astype("Int64")
    return table


def write_table(place: SweepFolder, *, cache: MutableMapping[str, RunRecord] | None = None) -> pd.DataFrame:
    """Write ``table.csv``, and ``table.parquet`` if pyarrow is installed, each whole or not at all.

    Args:
        place: The sweep.
        cache: See `sweep_table`.

    Returns:
        The table.

    Raises:
        OutputError: The disk is full, or the place cannot be written.
    """
    with place.guard():  # what another sweep has just finished must not be missing from the later file
        table = sweep_table(place, cache=cache)
        atomic_write_text(place.root / "table.csv", table.to_csv(index=False, lineterminator="\n"))
        if importlib.util.find_spec("pyarrow") is not None:
            buffer = io.BytesIO()
            table.to_parquet(buffer, index=False, engine="pyarrow")
            atomic_write_bytes(place.root / "table.parquet", buffer.getvalue())
    return table


def _row(
    place: SweepFolder, cell: Cell, varying: list[str], cache: MutableMapping[str, RunRecord]
) -> dict[str, dict[str, Any]]:
    status, reason, record = place.status(cell.name), "", cache.get(cell.name)
    if status == "done" and record is None:
        try:
            record = cache[cell.name] = place.store.load(cell.name)
        except DataError as error:
            status, reason = "failed", str(error)
    elif status == "failed":
        failure = place.failure(cell.name)
        reason = "" if failure is None else failure.reason
    spec = plain_spec(cell.spec)
    head: dict[str, Any] = {"name": cell.name, "status": status, "reason": reason or None}
    head |= {"N": None, "R": cell.spec.rank, "D": None, "D_tokens": None}
    head |= {name: _text(spec.get(name)) for name in (*_IN_HEAD[1:], *varying)}
    if spec.get("length") is not None:
        head["length"] = "{}-{}".format(*spec["length"])
    if record is None:
        return {"head": head, "totals": {}, "costs": dict.fromkeys(COSTS)}
    costs = record.settings.get("costs", {})
    head["N"] = record.counts.get("model_parameters")
    head["D"], head["D_tokens"] = _data_seen(cell, record.counts, costs)
    found = {name: costs.get(name) for name in COSTS}
    found["adapter_parameters"] = record.counts.get("adapter_parameters", costs.get("adapter_parameters"))
    if (facts := record.settings.get("quantization")) is not None:
        found |= {name: facts.get(name.removesuffix("_quantizing")) for name in QUANTIZATION}
    return {"head": head, "totals": dict(record.totals), "costs": found}


def _data_seen(cell: Cell, counts: Mapping[str, int], costs: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Distinct training rows that were seen, and their tokens: all of them, or those of a part of one pass."""
    if cell.spec.rank == 0:
        return 0, 0
    rows, tokens = counts.get("train_samples"), counts.get("train_tokens")
    steps = costs.get("train_steps")
    if rows is None or steps is None or steps * cell.spec.batch_size >= rows:
        return rows, tokens
    return int(steps * cell.spec.batch_size), costs.get("train_tokens_seen")


def _varying(cells: list[Cell]) -> list[str]:
    """Settings other than those of the first columns that differ between cells with training."""
    specs = [plain_spec(cell.spec) for cell in cells]
    trained = [spec for spec in specs if spec["rank"] > 0] or specs
    names = [name for name in (trained[0] if trained else {}) if name not in _IN_HEAD]
    return [name for name in names if any(spec.get(name) != trained[0].get(name) for spec in trained)]


def _text(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, list) else value
