"""Tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lorascope.core.metrics import METRICS
from lorascope.results import AdapterMeasurement, RunRecord
from lorascope.scaling.settings import as_text

if TYPE_CHECKING:
    import pandas as pd


def number(value: float | None) -> str:
    """A number as a person wants to read it; a dash for what is not known."""
    if value is None or math.isnan(value):
        return "-"
    if math.isinf(value) or value == 0:
        return f"{value:g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 3)}f}" if abs(value) >= 0.01 else f"{value:.2e}"


def keep_where(table: pd.DataFrame, where: Sequence[str]) -> pd.DataFrame:
    """The rows that have every value of ``--where column=value``; a refusal names what there is."""
    from lorascope.core.errors import InputError

    for item in where:
        name, sign, value = item.partition("=")
        if not sign:
            raise InputError(f"--where '{item}': write column=value")
        if name not in table:
            raise InputError(f"--where '{item}': the table has no column '{name}' (it has {', '.join(table.columns)})")
        rows = table[table[name].map(as_text) == value]
        if not len(rows):
            known = ", ".join(sorted({as_text(item) for item in table[name]})[:8])
            raise InputError(f"--where '{item}': no row has that value; there is {known}")
        table = rows
    return table


def metric_names(records: Iterable[AdapterMeasurement]) -> list[str]:
    """The metrics that any record has: what the model does first, then what the adapter does."""
    found = {name for record in records for name in record.totals}
    known = [name for name in METRICS if name in found]
    return sorted(known, key=lambda name: METRICS[name].per_layer)


def compact_table(title: str) -> Table:
    """A table with as little between its columns as can be, for many of them in 80 columns."""
    table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False, collapse_padding=True, header_style="bold")
    table.title, table.title_justify = escape(title), "left"
    return table


def comparison(records: Sequence[RunRecord], *, title: str) -> Table:
    """One column a run, one row a metric."""
    table = Table(title=escape(title), title_justify="left", header_style="bold")
    table.add_column("metric", no_wrap=True)
    table.add_column("unit", style="dim")
    for record in records:
        table.add_column(escape(record.name), justify="right", no_wrap=True)
    for name in metric_names(records):
        metric = METRICS[name]
        table.add_row(metric.label, metric.unit, *(number(record.totals.get(name)) for record in records))
    return table


def totals(measurement: AdapterMeasurement, *, title: str) -> Table:
    """One row a metric, with its meaning."""
    table = Table(title=escape(title), title_justify="left", header_style="bold")
    table.add_column("metric", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("unit", style="dim", no_wrap=True)
    table.add_column("what it says", style="dim")
    for name in metric_names([measurement]):
        metric = METRICS[name]
        table.add_row(metric.label, number(measurement.totals[name]), metric.unit, metric.meaning)
    return table


def largest(measurement: AdapterMeasurement, metric: str = "miub_js", count: int = 5) -> Table | None:
    """The layers with the most of a metric; None if no layer has it."""
    rows = [record for record in measurement.layers if metric in record]
    if not rows:
        return None
    whole = sum(record[metric] for record in rows) or 1.0
    table = Table(title=f"Most of {METRICS[metric].label}", title_justify="left", header_style="bold")
    table.add_column("layer", no_wrap=True)
    table.add_column(METRICS[metric].unit, justify="right")
    table.add_column("share", justify="right")
    for record in sorted(rows, key=lambda record: -record[metric])[:count]:
        table.add_row(escape(record["name"]), number(record[metric]), f"{record[metric] / whole:.0%}")
    return table


def say_warnings(console: Console, records: Iterable[AdapterMeasurement]) -> None:
    """Each warning once."""
    for note in dict.fromkeys(note for record in records for note in record.warnings):
        console.print(f"[yellow]note:[/yellow] {escape(note)}")
