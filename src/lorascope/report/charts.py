"""The report's charts as data for the page's script, each with a summary in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from lorascope.core.metrics import METRICS
from lorascope.figures import (
    layer_heatmap_info,
    loss_curves_info,
    metric_against_rank_info,
    plot_layer_heatmap,
    plot_loss_curves,
    plot_metric_against_rank,
)
from lorascope.figures.finite import number
from lorascope.figures.layers import NO_LAYER
from lorascope.report.facts import accuracy_error
from lorascope.report.groups import group_records
from lorascope.report.tables import run_names
from lorascope.report.text import listing, plural, show, show_metrics
from lorascope.results import AdapterMeasurement, RunRecord
from lorascope.results.plain import plain

Drawing = tuple[go.Figure, str]


@dataclass(frozen=True)
class Selector:
    """A drop-down of a chart.

    Attributes:
        label: What is chosen.
        options: Key and label of each choice.
        chosen: Key of the first one shown.
    """

    label: str
    options: tuple[tuple[str, str], ...]
    chosen: str


@dataclass(frozen=True)
class Chart:
    """A chart with its drop-downs.

    Attributes:
        name: Identifier in the page.
        title: Heading.
        intro: How to read it.
        selectors: Drop-downs; the figure shown is that of the chosen keys joined by ``|``.
        figures: Keys joined by ``|`` -> plotly figure as JSON-ready mapping with ``caption``, its summary in words.
    """

    name: str
    title: str
    intro: str
    selectors: tuple[Selector, ...]
    figures: dict[str, dict[str, Any]]

    @property
    def first(self) -> dict[str, Any]:
        """The figure that is shown first."""
        return self.figures["|".join(selector.chosen for selector in self.selectors)]


def charts(records: Sequence[AdapterMeasurement]) -> tuple[Chart, ...]:
    """Every chart that the records have numbers for."""
    makers: tuple[Callable[[Sequence[AdapterMeasurement]], Chart | None], ...] = (_rank, _layers, _losses)
    return tuple(chart for make in makers if (chart := make(records)) is not None)


def entry(figure: go.Figure, caption: str) -> dict[str, Any]:
    """A figure as the page's script reads it, with its summary in words."""
    made = figure.to_plotly_json()
    return {"data": _short(plain(made["data"])), "layout": plain(made["layout"]), "caption": caption}


def _short(value: Any) -> Any:
    """Six significant digits are more than a screen shows and halve the file."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, list) else value


def _metric_selector(names: Sequence[str]) -> Selector:
    chosen = "miub_js" if "miub_js" in names else names[0]
    return Selector("Metric", tuple((name, METRICS[name].label) for name in names), chosen)


def _layers(records: Sequence[AdapterMeasurement]) -> Chart | None:
    labels = run_names(records)
    figures: dict[str, dict[str, Any]] = {}
    seen: dict[int, None] = {}
    metrics = [name for name, metric in METRICS.items() if metric.per_layer and _in_layers(records, name)]
    for index, record in enumerate(records):
        for metric in metrics:
            if _in_layers([record], metric):
                info = layer_heatmap_info(record.layers, metric)
                (low_layer, low_name, low), (high_layer, high_name, high) = info.extremes
                caption = f"{METRICS[metric].label}, {labels[index]}: "
                if low == high:
                    caption += f"the same in every cell ({show(low)})."
                else:
                    caption += f"largest in {_place(high_layer, high_name)} ({show(high)}), "
                    caption += f"smallest in {_place(low_layer, low_name)} ({show(low)})."
                if info.logarithmic:
                    caption += " Colours are on a logarithmic scale."
                if max(count for row in info.components for count in row) > 1:
                    caption += " Components of one layer and projection are averaged."
                figures[f"{index}|{metric}"] = entry(plot_layer_heatmap(info), caption)
                seen[index] = None
    if not figures:
        return None
    metric_choice = _metric_selector(metrics)
    with_metric = [index for index in seen if f"{index}|{metric_choice.chosen}" in figures]
    chosen = max(with_metric, key=lambda index: records[index].rank or 0)
    runs = Selector("Run", tuple((str(index), labels[index]) for index in seen), str(chosen))
    return Chart(
        "layers",
        "Where in the network",
        "One cell for each layer (input at the top) and projection. The stronger the colour, the more.",
        (runs, metric_choice),
        figures,
    )


def _in_layers(records: Sequence[AdapterMeasurement], metric: str) -> bool:
    return any(number(layer.get(metric)) is not None for record in records for layer in record.layers)


def _place(layer: str, projection: str) -> str:
    return projection if layer == NO_LAYER else f"layer {layer}, {projection}"


def _rank(records: Sequence[AdapterMeasurement]) -> Chart | None:
    groups = [group for group in group_records(records) if group.runs]
    rows = []
    for group in groups:
        for record in (group.base, *group.runs):
            if record is not None and record.rank is not None:
                totals = {name: number(value) for name, value in record.totals.items()}
                head = {"rank": record.rank, "group": group.name, "accuracy_se": accuracy_error(record)}
                rows.append({**totals, **head})
    if len({row["rank"] for row in rows if row["rank"]}) < 1 or len({row["rank"] for row in rows}) < 2:
        return None
    metrics = [name for name in METRICS if sum(row.get(name) is not None for row in rows) > 1]
    figures = {}
    for metric in metrics:
        info = metric_against_rank_info(rows, metric)
        parts = []
        for line in info.series:
            points = [
                f"{text} at {'the base' if rank == 0 else f'rank {rank}'}"
                for rank, text, value in zip(line.ranks, show_metrics(metric, line.values), line.values, strict=True)
                if value is not None
            ]
            if points and len(info.series) <= 4:
                parts.append(f"{line.name}: {listing(points)}" if line.name else listing(points))
        caption = (
            f"{METRICS[metric].label}: {'; '.join(parts) or plural(len(info.series), 'line') + ', see the table'}."
        )
        if metric != "accuracy" and any(value is not None for line in info.series for value in line.accuracy):
            caption += " Below it, accuracy with one standard error."
        figures[metric] = entry(plot_metric_against_rank(info), caption)
    if not figures:
        return None
    intro = "A metric against the rank, with the accuracy of the same adapters. Ranks are spaced evenly."
    return Chart("rank", "What rank buys", intro, (_metric_selector(metrics),), figures)


def _losses(records: Sequence[AdapterMeasurement]) -> Chart | None:
    histories = {
        label: record.history
        for label, record in zip(run_names(records), records, strict=True)
        if isinstance(record, RunRecord)
        and any(
            isinstance(entry.get("step"), int) and number(entry.get("loss")) is not None for entry in record.history
        )
    }
    if not histories:
        return None
    info = loss_curves_info(histories)
    parts = [
        f"{name} from {show(losses[0])} (step {steps[0]}) to {show(losses[-1])} (step {steps[-1]})"
        for name, (steps, losses) in info.curves.items()
    ]
    caption = (
        f"Training loss: {listing(parts)}." if len(parts) <= 6 else f"Training loss of {plural(len(parts), 'run')}."
    )
    intro = "The loss on the training rows, as the trainer logged it."
    return Chart("loss", "While training", intro, (), {"": entry(plot_loss_curves(info), caption)})
