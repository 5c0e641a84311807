"""Where in the network a metric is large: heat map over layers and projections, and profile over depth."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from lorascope.core.errors import InputError
from lorascope.figures.finite import number
from lorascope.figures.style import DASHES, LINES, MARKS, SCALE, base_layout, label_of, safe, short

NO_LAYER = "other"


@dataclass(frozen=True)
class LayerHeatmapInfo:
    """A metric over layers (rows) and projections (columns).

    Attributes:
        metric: Name of the metric.
        label: Its label with unit.
        layers: Names of the rows from the input to the output; ``"other"`` for components outside any layer.
        projections: Names of the columns in the order of first appearance.
        values: One row a layer; None where there is no component or no finite value. Several components in one cell
            (experts, say) are averaged.
        components: How many components are in each cell.
    """

    metric: str
    label: str
    layers: tuple[str, ...]
    projections: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    components: tuple[tuple[int, ...], ...]

    @property
    def logarithmic(self) -> bool:
        """Whether colours are better read on a logarithmic scale: all positive, and the largest over 30 medians."""
        cells = [value for row in self.values for value in row if value is not None]
        return min(cells) > 0 and max(cells) > 30 * float(np.median(cells))

    @property
    def extremes(self) -> tuple[tuple[str, str, float], tuple[str, str, float]]:
        """Layer, projection and value of the smallest and of the largest cell."""
        cells = [
            (layer, projection, value)
            for layer, row in zip(self.layers, self.values, strict=True)
            for projection, value in zip(self.projections, row, strict=True)
            if value is not None
        ]
        return min(cells, key=lambda cell: cell[2]), max(cells, key=lambda cell: cell[2])


@dataclass(frozen=True)
class DepthProfileInfo:
    """A metric against depth, one line a projection.

    Attributes:
        metric: Name of the metric.
        label: Its label with unit.
        lines: Projection -> (layer numbers, values), rising in layer; components of one cell are averaged.
    """

    metric: str
    label: str
    lines: dict[str, tuple[tuple[int, ...], tuple[float, ...]]]


def _cells(
    records: Iterable[Mapping[str, Any]], metric: str
) -> tuple[dict[tuple[int | None, str], list[float]], list[str]]:
    cells: dict[tuple[int | None, str], list[float]] = {}
    available: dict[str, None] = {}
    for record in records:
        available.update(dict.fromkeys(str(key) for key, item in record.items() if isinstance(item, float)))
        value = number(record.get(metric))
        if value is not None:
            layer = record.get("layer")
            projection = str(record.get("projection") or record.get("name") or "?")
            cells.setdefault((layer if isinstance(layer, int) else None, projection), []).append(value)
    return cells, list(available)


def layer_heatmap_info(records: Sequence[Mapping[str, Any]], metric: str = "miub_js") -> LayerHeatmapInfo:
    """Compute what a heat map of a metric over layers and projections shows.

    Args:
        records: One mapping a component with ``layer`` (int or None), ``projection`` and metrics.
        metric: Name of the metric.

    Returns:
        The cells, layers rising.

    Raises:
        InputError: No component has a finite value of that metric.

    Example:
        >>> layer_heatmap_info([{"layer": 0, "projection": "q", "ce": 1.0}], "ce").values
        ((1.0,),)
    """
    cells, available = _cells(records, metric)
    if not cells:
        raise InputError(f"no component has a value of '{metric}': there is {', '.join(available) or 'nothing'}")
    layers = sorted({layer for layer, _ in cells}, key=lambda layer: (layer is None, layer or 0))
    projections = tuple(dict.fromkeys(projection for _, projection in cells))
    return LayerHeatmapInfo(
        metric=metric,
        label=label_of(metric),
        layers=tuple(NO_LAYER if layer is None else str(layer) for layer in layers),
        projections=projections,
        values=tuple(
            tuple(float(np.mean(cells[layer, name])) if (layer, name) in cells else None for name in projections)
            for layer in layers
        ),
        components=tuple(tuple(len(cells.get((layer, name), ())) for name in projections) for layer in layers),
    )


def plot_layer_heatmap(info: LayerHeatmapInfo) -> go.Figure:
    """Draw a heat map with the input layer at the top; cells without a component stay empty."""
    log = info.logarithmic
    (_, _, low), (_, _, high) = info.extremes
    colorbar: dict[str, Any] = {
        "title": {"text": safe(info.label), "side": "top"},
        "orientation": "h",
        "thickness": 10,
        "outlinewidth": 0,
        "exponentformat": "e",
        "x": 0,
        "xanchor": "left",
        "y": 1,
        "yanchor": "bottom",
        "ypad": 12,
    }
    if log:
        ticks = list(range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1))
        colorbar |= {"tickvals": ticks, "ticktext": [f"{10.0**tick:g}" for tick in ticks]}
    heat = go.Heatmap(
        z=[[math.log10(value) if log and value is not None else value for value in row] for row in info.values],
        customdata=[list(row) for row in info.values],
        x=[safe(name) for name in info.projections],
        y=list(info.layers),
        colorscale=SCALE,
        xgap=2,
        ygap=2,
        hoverongaps=False,
        hovertemplate="layer %{y}, %{x}: %{customdata:.4g}<extra></extra>",
        colorbar=colorbar,
    )
    if low == high:  # without a range of its own, plotly would centre one on the only value
        heat.update(zmin=min(low, 0.0), zmax=max(low, 0.0) or low + 1.0)
    layout = base_layout(height=190 + 18 * len(info.layers))
    places = {"tickvals": list(range(len(info.projections))), "ticktext": [short(name) for name in info.projections]}
    layout.xaxis.update(type="category", showgrid=False, autotickangles=[0, -45, -90], **places)
    layout.yaxis.update(type="category", showgrid=False, autorange="reversed", title={"text": "layer"}, nticks=40)
    return go.Figure(heat, layout)


def depth_profile_info(records: Sequence[Mapping[str, Any]], metric: str = "miub_js") -> DepthProfileInfo:
    """Compute what a profile of a metric over depth shows.

    Args:
        records: One mapping a component with ``layer`` (int or None), ``projection`` and metrics.
        metric: Name of the metric.

    Returns:
        One line a projection; components outside any layer are left out.

    Raises:
        InputError: No component with a layer number has a finite value of that metric.
    """
    cells, available = _cells(records, metric)
    points: dict[str, dict[int, float]] = {}
    for (layer, projection), values in cells.items():
        if layer is not None:
            points.setdefault(projection, {})[layer] = float(np.mean(values))
    if not points:
        raise InputError(
            f"no component with a layer number has a value of '{metric}': there is {', '.join(available) or 'nothing'}"
        )
    lines = {name: (tuple(sorted(line)), tuple(line[layer] for layer in sorted(line))) for name, line in points.items()}
    return DepthProfileInfo(metric=metric, label=label_of(metric), lines=lines)


def plot_depth_profile(info: DepthProfileInfo) -> go.Figure:
    """Draw one line a projection; lines differ in colour, mark and dash."""
    figure = go.Figure(layout=base_layout())
    for index, (name, (layers, values)) in enumerate(info.lines.items()):
        figure.add_scatter(
            x=list(layers),
            y=list(values),
            name=short(name),
            mode="lines+markers",
            line={"color": LINES[index % len(LINES)], "dash": DASHES[index // len(LINES) % len(DASHES)], "width": 2},
            marker={"symbol": MARKS[index % len(MARKS)], "size": 6},
        )
    figure.update_xaxes(title={"text": "layer"})
    figure.update_yaxes(title={"text": safe(info.label)}, rangemode="tozero")
    return figure
