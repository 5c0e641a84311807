"""A real model beside the theory: curves against data, error against overlap, layers. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lorascope.core.errors import InputError
from lorascope.figures.finite import number
from lorascope.figures.style import GRID, INK, LINES, MARKS, base_layout, safe, short

_NAMES = {
    "column_above": "column spaces, chance out",
    "row_above": "row spaces, chance out",
    "update": "cosine of updates",
    "relative_error": "error against the largest run",
}


@dataclass(frozen=True)
class BridgeCurvesInfo:
    """The theory's curve and the measured ones, each against its own amount of data per parameter.

    Attributes:
        label: Vertical axis in words.
        theory: (data per parameter, value, valid) of each point, rising.
        measured: Name in words -> (rows per parameter, value, standard error or None) of each size, rising.
        names: Rows of each size, for hovering.
    """

    label: str
    theory: tuple[tuple[float, float, bool], ...]
    measured: dict[str, tuple[tuple[float, float, float | None], ...]]
    names: tuple[str, ...]


@dataclass(frozen=True)
class BridgeRelationInfo:
    """Error against overlap, in which no scale of data is left.

    Attributes:
        theory: (overlap, error) of the theory's valid points, rising in overlap.
        measured: (overlap, error, error of the error or None) of each size.
        names: Rows of each size.
    """

    theory: tuple[tuple[float, float], ...]
    measured: tuple[tuple[float, float, float | None], ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class BridgeLayersInfo:
    """Overlap of each layer with the largest run.

    Attributes:
        rows: (block index, projection, overlap of column spaces, of row spaces), chance taken out.
    """

    rows: tuple[tuple[int, str, float, float], ...]


def bridge_curves_info(
    curve: Sequence[Mapping[str, Any]], sizes: Sequence[Mapping[str, Any]], quantity: str
) -> BridgeCurvesInfo:
    """Compute what a figure of overlap or error against data shows.

    Args:
        curve: The theory: mappings with ``data``, ``overlap``, ``error`` and ``valid``.
        sizes: The measurement: mappings with ``rows``, ``rows_per_parameter``, quantities and ``NAME_error``.
        quantity: ``overlap`` or ``error``.

    Raises:
        InputError: The quantity is another, or there is nothing to draw.

    Example:
        >>> sizes = [{"rows": 8, "rows_per_parameter": 0.1, "relative_error": 0.7, "relative_error_error": None}]
        >>> bridge_curves_info([{"data": 1.0, "error": 0.5, "valid": True}], sizes, "error").measured
        {'error against the largest run': ((0.1, 0.7, None),)}
    """
    wanted = {"overlap": ("column_above", "row_above", "update"), "error": ("relative_error",)}
    if quantity not in wanted:
        raise InputError(f"quantity '{quantity}' must be overlap or error")
    if not sizes or not curve:
        raise InputError("nothing to draw: the bridge has no sizes, or the theory no points")
    ordered = sorted(sizes, key=lambda row: row["rows"])
    measured = {
        _NAMES[name]: tuple(
            (float(row["rows_per_parameter"]), float(row[name]), number(row.get(f"{name}_error"))) for row in ordered
        )
        for name in wanted[quantity]
    }
    points = sorted((float(row["data"]), float(row[quantity]), bool(row["valid"])) for row in curve)
    label = (
        "overlap with the target or the largest run"
        if quantity == "overlap"
        else "error, as a share of that of no update"
    )
    return BridgeCurvesInfo(label, tuple(points), measured, tuple(f"{row['rows']} rows" for row in ordered))


def plot_bridge_curves(info: BridgeCurvesInfo) -> go.Figure:
    """Draw the theory on the left and the measurement on the right, with one vertical axis."""
    titles = ("theory", "measurement")
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.05, subplot_titles=titles)
    figure.update_layout(base_layout(height=420, margin={"l": 8, "r": 8, "t": 48, "b": 8}))
    valid = [point for point in info.theory if point[2]]
    other = [point for point in info.theory if not point[2]]
    figure.add_scatter(
        x=[point[0] for point in valid],
        y=[point[1] for point in valid],
        name="theory",
        mode="lines",
        line={"color": INK, "width": 2.5},
        row=1,
        col=1,
    )
    if other:
        figure.add_scatter(
            x=[point[0] for point in other],
            y=[point[1] for point in other],
            name="theory, not to be trusted there",
            mode="markers",
            marker={"color": INK, "symbol": "x-thin-open", "size": 9},
            row=1,
            col=1,
        )
    for index, (name, points) in enumerate(info.measured.items()):
        figure.add_scatter(
            x=[point[0] for point in points],
            y=[point[1] for point in points],
            error_y={"array": [point[2] or 0.0 for point in points], "thickness": 1.5, "width": 4},
            text=list(info.names),
            name=safe(name),
            mode="lines+markers",
            line={"color": LINES[index], "width": 2},
            marker={"symbol": MARKS[index], "size": 9},
            hovertemplate="%{text}: %{y:.4f}",
            row=1,
            col=2,
        )
    values = [point[1] for point in valid] + [point[1] for points in info.measured.values() for point in points]
    top = max([1.0, *values]) * 1.05
    figure.update_xaxes(type="log", gridcolor=GRID, title={"text": "sequences per parameter"}, row=1, col=1)
    figure.update_xaxes(type="log", gridcolor=GRID, title={"text": "rows per parameter"}, row=1, col=2)
    figure.update_yaxes(gridcolor=GRID, range=[min(0.0, *values) - 0.02, top])
    figure.update_yaxes(title={"text": safe(info.label)}, row=1, col=1)
    figure.update_layout(legend={"y": -0.22, "yanchor": "top"})
    return figure


def bridge_relation_info(curve: Sequence[Mapping[str, Any]], sizes: Sequence[Mapping[str, Any]]) -> BridgeRelationInfo:
    """Compute what a figure of error against overlap shows; arguments as in `bridge_curves_info`.

    Raises:
        InputError: There is nothing to draw.

    Example:
        >>> sizes = [{"rows": 8, "column_above": 0.2, "relative_error": 0.7}]
        >>> bridge_relation_info([{"overlap": 0.5, "error": 0.5, "valid": True}], sizes).measured
        ((0.2, 0.7, None),)
    """
    if not sizes:
        raise InputError("nothing to draw: the bridge has no sizes")
    ordered = sorted(sizes, key=lambda row: row["rows"])
    theory = sorted((float(row["overlap"]), float(row["error"])) for row in curve if row["valid"])
    measured = tuple(
        (float(row["column_above"]), float(row["relative_error"]), number(row.get("relative_error_error")))
        for row in ordered
    )
    return BridgeRelationInfo(tuple(theory), measured, tuple(f"{row['rows']} rows" for row in ordered))


def plot_bridge_relation(info: BridgeRelationInfo) -> go.Figure:
    """Draw the theory's line and a measured point a data size."""
    figure = go.Figure(layout=base_layout(height=400))
    figure.add_scatter(
        x=[point[0] for point in info.theory],
        y=[point[1] for point in info.theory],
        name="theory, valid points",
        mode="lines",
        line={"color": INK, "width": 2.5},
    )
    figure.add_scatter(
        x=[point[0] for point in info.measured],
        y=[point[1] for point in info.measured],
        error_y={"array": [point[2] or 0.0 for point in info.measured], "thickness": 1.5, "width": 4},
        name="measurement",
        text=list(info.names),
        textposition="top center",
        mode="markers+text",
        marker={"color": LINES[0], "size": 10},
    )
    figure.update_xaxes(title={"text": "overlap with the target or the largest run"}, range=[-0.05, 1.05])
    figure.update_yaxes(title={"text": "error, as a share of that of no update"}, rangemode="tozero")
    return figure


def bridge_layers_info(layers: Sequence[Mapping[str, Any]]) -> BridgeLayersInfo:
    """Compute what a figure of layers shows.

    Args:
        layers: Mappings with ``layer``, ``projection``, ``column_above`` and ``row_above``.

    Raises:
        InputError: No layer has an overlap.
    """
    rows = [
        (int(row["layer"]), str(row["projection"]), float(row["column_above"]), float(row["row_above"]))
        for row in layers
        if row["layer"] is not None and row["column_above"] is not None and row["row_above"] is not None
    ]
    if not rows:
        raise InputError("no layer has an overlap: train for more steps")
    return BridgeLayersInfo(tuple(rows))


def plot_bridge_layers(info: BridgeLayersInfo) -> go.Figure:
    """Draw column overlap against depth, one curve a projection."""
    figure = go.Figure(layout=base_layout(height=420))
    for index, projection in enumerate(dict.fromkeys(row[1] for row in info.rows)):
        own = [row for row in info.rows if row[1] == projection]
        figure.add_scatter(
            x=[row[0] for row in own],
            y=[row[2] for row in own],
            customdata=[row[3] for row in own],
            name=short(projection),
            mode="lines+markers",
            line={"color": LINES[index % len(LINES)], "width": 1.5},
            marker={"symbol": MARKS[index % len(MARKS)], "size": 7},
            hovertemplate="block %{x}: column spaces %{y:.3f}, row spaces %{customdata:.3f}",
        )
    figure.add_hline(y=0, line={"color": GRID, "width": 2})
    figure.update_xaxes(title={"text": "block"})
    figure.update_yaxes(title={"text": "overlap with the largest run, chance out"})
    return figure
