"""Studies of quantisation as lines or bars. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from lorascope.core.errors import InputError
from lorascope.figures.style import GRID, LINES, MARKS, base_layout, safe, short


@dataclass(frozen=True)
class SeriesInfo:
    """Some rows of numbers over the same axis.

    Attributes:
        x_label: What the axis says.
        y_label: What is drawn.
        series: Name -> (places, numbers).
        lines: Lines over numbers, else bars over names.
        log_x: Whether places are spaced by their logarithms.
    """

    x_label: str
    y_label: str
    series: dict[str, tuple[tuple[Any, ...], tuple[float, ...]]]
    lines: bool
    log_x: bool = False


def series_info(
    records: Sequence[Mapping[str, Any]],
    *,
    x: str,
    y: str,
    by: str,
    x_label: str,
    y_label: str,
    name: str = "{}",
    log_x: bool = True,
) -> SeriesInfo:
    """One line for each value of a column.

    Args:
        records: Rows.
        x: Column of places.
        y: Column of numbers.
        by: Column that tells lines apart.
        x_label: What the axis says.
        y_label: What is drawn.
        name: How a line is called, with its value for ``{}``.
        log_x: Space places by their logarithms.

    Raises:
        InputError: There is no row.

    Example:
        >>> rows = [{"n": 1, "lam": 0.1, "gain": 0.05}, {"n": 10, "lam": 0.1, "gain": 0.07}]
        >>> series_info(rows, x="n", y="gain", by="lam", x_label="n", y_label="gain").series
        {'0.1': ((1, 10), (0.05, 0.07))}
    """
    if not records:
        raise InputError("nothing to draw: there is no row")
    series: dict[str, tuple[tuple[Any, ...], tuple[float, ...]]] = {}
    for value in dict.fromkeys(row[by] for row in records):
        rows = sorted((row for row in records if row[by] == value), key=lambda row: row[x])
        series[name.format(value)] = (tuple(row[x] for row in rows), tuple(float(row[y]) for row in rows))
    return SeriesInfo(x_label, y_label, series, True, log_x)


def bars_info(
    records: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, x: str, x_label: str, y_label: str
) -> SeriesInfo:
    """One group of bars a row, one bar a column.

    Args:
        records: Rows.
        columns: Column -> how it is called.
        x: Column with the name of a group.
        x_label: What the axis says.
        y_label: What is drawn.

    Raises:
        InputError: There is no row.

    Example:
        >>> bars_info([{"model": "a", "h": 3.7}], {"h": "entropy"}, x="model", x_label="", y_label="bits").series
        {'entropy': (('a',), (3.7,))}
    """
    if not records:
        raise InputError("nothing to draw: there is no row")
    places = tuple(row[x] for row in records)
    series = {label: (places, tuple(float(row[key]) for row in records)) for key, label in columns.items()}
    return SeriesInfo(x_label, y_label, series, False)


def plot_series(info: SeriesInfo) -> go.Figure:
    """Draw lines with marks, or bars; marks alone where bars from zero would look alike."""
    figure = go.Figure(layout=base_layout())
    drawn = [number for _, values in info.series.values() for number in values]
    alike = not info.lines and min(drawn) > 0.5 * max(drawn)
    for i, (name, (places, numbers)) in enumerate(info.series.items()):
        colour = LINES[i % len(LINES)]
        mark = {"symbol": MARKS[i % len(MARKS)], "size": 8 if info.lines else 11, "color": colour}
        if info.lines:
            line = {"color": colour, "width": 2}
            trace: Any = go.Scatter(
                x=places, y=numbers, name=safe(name), mode="lines+markers", marker=mark, line=line, cliponaxis=False
            )
        elif alike:
            groups = [short(place) for place in places]
            trace = go.Scatter(x=groups, y=numbers, name=safe(name), mode="markers", marker=mark, cliponaxis=False)
        else:
            trace = go.Bar(x=[short(place) for place in places], y=numbers, name=safe(name), marker={"color": colour})
        figure.add_trace(trace)
    figure.update_xaxes(title=safe(info.x_label), type="log" if info.log_x else None)
    if info.log_x:
        ticks = sorted({place for places, _ in info.series.values() for place in places})
        figure.update_xaxes(tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    figure.update_yaxes(title=safe(info.y_label), gridcolor=GRID)
    if not info.lines:
        figure.update_layout(barmode="group")
    return figure
