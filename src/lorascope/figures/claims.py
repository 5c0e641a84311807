"""Metrics against an axis of a sweep, one panel a metric, and metrics ranked by how well they follow accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from lorascope.core.errors import InputError, unknown_name
from lorascope.core.metrics import METRICS
from lorascope.figures.finite import number
from lorascope.figures.style import GRID, LINES, MARKS, base_layout, label_of, safe, short

AXIS_LABELS = {
    "rank": "rank",
    "size": "model size (distinct parameters)",
    "data": "training rows",
    "length": "prompt length (tokens)",
}


@dataclass(frozen=True)
class AxisLine:
    """One metric along the axis in one cell.

    Attributes:
        cell: What is held fixed, in words.
        levels: Places on the axis, rising.
        labels: How each place is written.
        means: Mean over runs.
        deviations: Standard deviation over runs; None for a single one.
        runs: Runs at each place.
    """

    cell: str
    levels: tuple[float, ...]
    labels: tuple[str, ...]
    means: tuple[float, ...]
    deviations: tuple[float | None, ...]
    runs: tuple[int, ...]


@dataclass(frozen=True)
class MetricsAgainstAxisInfo:
    """Metrics along one axis: one panel a metric, one line a cell.

    Attributes:
        axis: ``"rank"``, ``"size"``, ``"data"`` or ``"length"``.
        label: Label of the axis.
        panels: Metric -> its lines; a cell has the same place in all of them.
        cells: Every cell, in the order of its colour.
    """

    axis: str
    label: str
    panels: dict[str, tuple[AxisLine, ...]]
    cells: tuple[str, ...]


@dataclass(frozen=True)
class RankingInfo:
    """Metrics by how well they follow accuracy, best first.

    Attributes:
        labels: Of the metrics, with the direction that goes with more accuracy.
        taus: Kendall's tau with accuracy in that direction.
        lows: Lower end of the interval; None where unknown.
        highs: Upper end.
        open: Whether the metric cannot be told from the first.
    """

    labels: tuple[str, ...]
    taus: tuple[float, ...]
    lows: tuple[float | None, ...]
    highs: tuple[float | None, ...]
    open: tuple[bool, ...]


def metrics_against_axis_info(
    rows: Sequence[Mapping[str, Any]], axis: str, metrics: Sequence[str] | None = None
) -> MetricsAgainstAxisInfo:
    """Compute what a figure of metrics against an axis shows (the paper's Figures 2 and 3).

    Args:
        rows: Mappings with ``cell``, ``level``, ``label``, ``metric``, ``mean``, ``sd``, ``runs``, as the rows of
            `lorascope.scaling.axis_data`.
        axis: ``"rank"``, ``"size"``, ``"data"`` or ``"length"``.
        metrics: Panels, from the top; default: all that occur.

    Returns:
        One panel a metric that has a finite value.

    Raises:
        InputError: The axis is unknown, or there is nothing to draw.

    Example:
        >>> row = {"cell": "towns", "label": "4", "metric": "ce", "sd": None, "runs": 1}
        >>> info = metrics_against_axis_info([{**row, "level": 16, "mean": 1.0}, {**row, "level": 4, "mean": 2.0}], "rank")
        >>> info.panels["ce"][0].means
        (2.0, 1.0)
    """
    if axis not in AXIS_LABELS:
        raise unknown_name("axis", axis, AXIS_LABELS)
    known = [row for row in rows if number(row.get("mean")) is not None and number(row.get("level")) is not None]
    wanted = list(dict.fromkeys(str(row["metric"]) for row in known)) if metrics is None else list(metrics)
    cells = tuple(dict.fromkeys(str(row.get("cell", "")) for row in known if row["metric"] in wanted))
    panels = {}
    for metric in wanted:
        lines = []
        for cell in cells:
            points = [row for row in known if row["metric"] == metric and str(row.get("cell", "")) == cell]
            points.sort(key=lambda row: float(row["level"]))
            if points:
                lines.append(
                    AxisLine(
                        cell=cell,
                        levels=tuple(float(row["level"]) for row in points),
                        labels=tuple(str(row.get("label", row["level"])) for row in points),
                        means=tuple(float(row["mean"]) for row in points),
                        deviations=tuple(number(row.get("sd")) for row in points),
                        runs=tuple(int(row.get("runs", 1)) for row in points),
                    )
                )
        if lines:
            panels[metric] = tuple(lines)
    if not panels:
        raise InputError(f"no two runs differ in {AXIS_LABELS[axis]} alone and have a metric: nothing to draw")
    return MetricsAgainstAxisInfo(axis=axis, label=AXIS_LABELS[axis], panels=panels, cells=cells)


def plot_metrics_against_axis(info: MetricsAgainstAxisInfo) -> go.Figure:
    """Draw one panel a metric above one shared axis; error bars are one standard deviation over seeds."""
    count = len(info.panels)
    layout = base_layout(showlegend=len(info.cells) > 1 or bool(info.cells[0]), height=120 + 220 * count)
    figure = go.Figure(layout=layout)
    places: dict[float, str] = {}
    gap = 0.08 if count > 1 else 0.0
    size = (1 - gap * (count - 1)) / count
    for panel, (metric, lines) in enumerate(info.panels.items()):
        name = "y" if panel == 0 else f"y{panel + 1}"
        for line in lines:
            index = info.cells.index(line.cell)
            color = LINES[index % len(LINES)]
            places.update(zip(line.levels, line.labels, strict=True))
            figure.add_scatter(
                x=list(line.labels),
                y=list(line.means),
                yaxis=name,
                mode="lines+markers",
                name=short(line.cell, 60),
                legendgroup=str(index),
                showlegend=panel == 0 or not any(line.cell == other.cell for other in next(iter(info.panels.values()))),
                line={"color": color, "width": 2},
                marker={"size": 9, "symbol": MARKS[index % len(MARKS)], "color": color},
                error_y={
                    "array": [deviation or 0.0 for deviation in line.deviations],
                    "thickness": 1.2,
                    "width": 4,
                    "color": color,
                },
                hovertemplate="%{x}: %{y:.5g}<extra></extra>",
            )
        top = 1 - panel * (size + gap)
        known = METRICS.get(metric)
        axis = layout.yaxis.to_plotly_json() | {
            "domain": [max(0.0, top - size), top],
            "title": {"text": safe(label_of(metric))},
            "tickformat": ".0%" if known is not None and known.unit == "fraction" else None,
        }
        figure.update_layout({f"yaxis{'' if panel == 0 else panel + 1}": axis})
    figure.update_xaxes(
        type="category",
        categoryorder="array",
        categoryarray=[places[level] for level in sorted(places)],
        title={"text": info.label},
        anchor="y" if count == 1 else f"y{count}",
    )
    return figure


def ranking_info(ranked: Sequence[Mapping[str, Any]]) -> RankingInfo:
    """Compute what a figure of ranked metrics shows.

    Args:
        ranked: Mappings with ``label``, ``better``, ``tau``, ``low``, ``high`` and ``behind_low``, best first, as
            `to_dict` of `lorascope.scaling.MetricRank` gives them.

    Returns:
        The numbers of the figure.

    Raises:
        InputError: There is no metric.

    Example:
        >>> ranking_info([{"label": "Cross-entropy", "better": "lower", "tau": 0.8}]).labels
        ('Cross-entropy (lower)',)
    """
    rows = [row for row in ranked if number(row.get("tau")) is not None]
    if not rows:
        raise InputError("no metric was ranked: nothing to draw")
    ahead = [number(row.get("behind_low")) for row in rows]
    return RankingInfo(
        labels=tuple(f"{row['label']} ({row['better']})" for row in rows),
        taus=tuple(float(row["tau"]) for row in rows),
        lows=tuple(number(row.get("low")) for row in rows),
        highs=tuple(number(row.get("high")) for row in rows),
        open=tuple(low is None or low <= 0 for low in ahead),
    )


def plot_ranking(info: RankingInfo) -> go.Figure:
    """Draw tau with its interval, best at the top; filled marks cannot be told from the first."""
    names = [short(label, 48) for label in info.labels]
    figure = go.Figure(layout=base_layout(showlegend=False, height=90 + 30 * len(names)))
    figure.add_scatter(
        x=list(info.taus),
        y=names,
        mode="markers",
        marker={
            "size": 10,
            "color": LINES[0],
            "symbol": ["circle" if same else "circle-open" for same in info.open],
        },
        error_x={
            "array": [_reach(tau, high) for high, tau in zip(info.highs, info.taus, strict=True)],
            "arrayminus": [_reach(low, tau) for low, tau in zip(info.lows, info.taus, strict=True)],
            "thickness": 1.5,
            "width": 4,
            "color": LINES[0],
        },
        hovertemplate="%{y}: %{x:+.2f}<extra></extra>",
    )
    figure.add_vline(x=0, line={"color": GRID, "width": 1.5})
    figure.update_xaxes(title={"text": "Kendall's tau with accuracy"}, range=[-1.05, 1.05])
    figure.update_yaxes(autorange="reversed")
    return figure


def _reach(low: float | None, high: float | None) -> float:
    """Length of one arm of an interval; 0 where it is unknown."""
    return 0.0 if low is None or high is None else max(0.0, high - low)
