"""The report's tables as plain text cells: comparison of runs, components, counts, specification and provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorascope.core.metrics import METRICS
from lorascope.figures.finite import number
from lorascope.report.facts import display_name, recorded_error, total
from lorascope.report.groups import group_records
from lorascope.report.text import DASH, is_fraction, show, show_change, show_metrics, unit_of
from lorascope.results import AdapterMeasurement, RunRecord

COMPONENT_ROWS = 6000
"""Most component rows in one report; runs beyond that are named, with how to read their tables."""

_SHAPE = ("name", "layer", "projection", "rank", "d_in", "d_out", "adapter")
_BLOCKS = ("What the model can do", "What changed inside", "Also recorded")
_WITH_CHANGE = ("accuracy", "accuracy_norm", "ce", "ppl", "text_ppl", "mi_joint")


@dataclass(frozen=True)
class Cell:
    """One number of the comparison.

    Attributes:
        text: The number.
        notes: Its standard error and its change against the base, where there are any.
    """

    text: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MetricRow:
    """One metric of all runs."""

    name: str
    label: str
    unit: str
    meaning: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class ComponentTable:
    """The components of one run; ``left_out`` says why there are no rows."""

    run: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left_out: str = ""


@dataclass(frozen=True)
class FactTable:
    """Facts of all runs: what they share, and what differs (one value a run)."""

    shared: tuple[tuple[str, str], ...]
    differing: tuple[tuple[str, tuple[str, ...]], ...]


def run_names(records: Sequence[AdapterMeasurement]) -> tuple[str, ...]:
    """A name for each record, made unique by a number where two have the same."""
    names: list[str] = []
    for index, record in enumerate(records):
        name = display_name(record, index, len(records))
        names.append(name if name not in names else f"{name} ({index + 1})")
    return tuple(names)


def comparison(records: Sequence[AdapterMeasurement]) -> tuple[tuple[str, tuple[MetricRow, ...]], ...]:
    """Every total of every run in named blocks: what the model can do, then what changed inside; with changes against
    the run's base."""
    base_of = {id(run): group.base for group in group_records(records) for run in group.runs}
    found = dict.fromkeys(name for record in records for name in record.totals)
    names = [name for name in METRICS if name in found] + [name for name in found if name not in METRICS]
    blocks: dict[str, list[MetricRow]] = {title: [] for title in _BLOCKS}
    for name in names:
        known = METRICS.get(name)
        texts = show_metrics(name, [record.totals.get(name) for record in records])
        cells = tuple(
            Cell(text, _notes(record, base_of.get(id(record)), name))
            for text, record in zip(texts, records, strict=True)
        )
        if known is None and all(cell.text == DASH for cell in cells):
            continue
        title = _BLOCKS[2] if known is None else _BLOCKS[1] if known.per_layer else _BLOCKS[0]
        blocks[title].append(
            MetricRow(
                name=name,
                label=known.label if known else name,
                unit=unit_of(name),
                meaning=known.meaning if known else "",
                cells=cells,
            )
        )
    if "accuracy" in found:
        blocks[_BLOCKS[0]].sort(key=lambda row: not row.name.startswith("accuracy"))
    return tuple((title, tuple(rows)) for title, rows in blocks.items() if rows)


def _notes(record: AdapterMeasurement, base: RunRecord | None, name: str) -> tuple[str, ...]:
    value = total(record, name)
    notes = []
    if value is not None and (error := recorded_error(record, name)):
        notes.append(f"± {100 * error:.1f}" if is_fraction(name) else f"± {show(error, 2)}")
    before = total(base, name) if base is not None else None
    if value is not None and before is not None and name in _WITH_CHANGE:
        notes.append(f"{show_change(name, value - before)} vs base")
    return tuple(notes)


def component_tables(records: Sequence[AdapterMeasurement]) -> tuple[ComponentTable, ...]:
    """One table a run that has components; shapes first, then metrics in their own order, then the rest."""
    tables = []
    left = COMPONENT_ROWS
    for record, name in zip(records, run_names(records), strict=True):
        if not record.layers:
            continue
        if len(record.layers) > left:
            reason = (
                f"{len(record.layers):,} components, too many for this page: "
                "AdapterMeasurement.load(path).table() gives them from the run's result.json."
            )
            tables.append(ComponentTable(name, (), (), reason))
            continue
        left -= len(record.layers)
        present = dict.fromkeys(str(key) for layer in record.layers for key in layer)
        keys = [key for key in (*_SHAPE, *METRICS) if key in present]
        keys += [key for key in present if key not in keys]
        rows = tuple(tuple(_value(layer.get(key)) for key in keys) for layer in record.layers)
        columns = tuple(METRICS[key].label if key in METRICS else key.replace("_", " ") for key in keys)
        tables.append(ComponentTable(name, columns, rows))
    return tuple(tables)


def facts_of(records: Sequence[AdapterMeasurement], *fields: str) -> FactTable:
    """Some fields of all records as flat facts, those that all share apart from those that differ.

    Args:
        records: Measurements and runs.
        *fields: Names of mapping fields: ``counts``, ``spec``, ``settings``, ``provenance``.

    Returns:
        The facts; a fact that only some records have counts as differing.
    """
    flat = [
        _flatten({key: value for field in fields for key, value in getattr(record, field, {}).items()})
        for record in records
    ]
    keys = dict.fromkeys(key for facts in flat for key in facts)
    shared, differing = [], []
    for key in keys:
        values = tuple(facts.get(key, DASH) for facts in flat)
        if len(set(values)) == 1:
            shared.append((key, values[0]))
        else:
            differing.append((key, values))
    return FactTable(tuple(shared), tuple(differing))


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key} / "))
        else:
            flat[f"{prefix}{key}".replace("_", " ")] = _value(value)
    return flat


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if value is None or isinstance(value, float):
        return show(number(value))
    if isinstance(value, list | tuple):
        return ", ".join(_value(item) for item in value) or DASH
    return str(value) or DASH
