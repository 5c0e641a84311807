"""One calm look for all figures: transparent, legible on white and near-black, safe for colour-blind eyes."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from lorascope.core.metrics import METRICS

INK = "#7a8290"
GRID = "rgba(128, 136, 150, 0.22)"
LINES = ("#3d7ea6", "#d1793b", "#5a9a6b", "#a86aa4", "#c2a03a", "#5f6fc0", "#c0596b", "#4a9c9c", "#8c7355", "#8a8f99")
MARKS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "triangle-down", "star", "hexagon", "pentagon")
DASHES = ("solid", "dash", "dot", "dashdot")
# One hue, evenly rising lightness, ends that stand off both a white and a near-black page.
SCALE = [[0.0, "#dfeaee"], [0.25, "#a3c8d4"], [0.5, "#5f9db4"], [0.75, "#2f6f8f"], [1.0, "#173f5c"]]
AXIS_TITLES = {"N": "model size N (parameters)", "R": "rank R", "D": "training rows D"}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def safe(text: object) -> str:
    """Text for a figure: plotly reads some HTML in labels, so that given names are escaped."""
    return html.escape(str(text), quote=False)


def short(text: object, length: int = 32) -> str:
    """Text for a tick or a legend: a long name keeps its start and its end.

    Example:
        >>> short("attention.output.dense", 13)
        'attent….dense'
    """
    name = str(text)
    if len(name) > length:
        name = f"{name[: length // 2]}…{name[-(length - length // 2 - 1) :]}"
    return safe(name)


def label_of(metric: str) -> str:
    """The metric's label, with its unit if that is nats; an unknown name as it is."""
    known = METRICS.get(metric)
    if known is None:
        return metric
    return known.label if known.unit != "nats" else f"{known.label} ({known.unit})"


def base_layout(**changes: Any) -> go.Layout:
    """A layout with transparent background and neutral ink, with changes on top."""
    axis = {
        "gridcolor": GRID,
        "zeroline": False,
        "linecolor": GRID,
        "ticks": "",
        "automargin": True,
        "exponentformat": "e",
    }
    layout = go.Layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 13, "color": INK},
        colorway=list(LINES),
        margin={"l": 8, "r": 8, "t": 16, "b": 8},
        hoverlabel={"font": {"family": FONT, "size": 13}},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        xaxis=axis,
        yaxis=axis,
        height=360,
    )
    layout.update(changes)
    return layout


def log_ticks(values: Sequence[float]) -> dict[str, Any]:
    """Ticks at the values that were run, at most six of them.

    Example:
        >>> log_ticks([16.0, 4.0, 135e6])["ticktext"]
        ['4', '16', '135M']
    """
    places = sorted(set(values))
    if len(places) > 6:
        places = [places[round(i * (len(places) - 1) / 5)] for i in range(6)]
    return {"tickvals": places, "ticktext": [compact(place) for place in places]}


def compact(value: float | int) -> str:
    """A count as a tick has it.

    Example:
        >>> compact(1600), compact(25_000), compact(134_515_008)
        ('1600', '25k', '135M')
    """
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size * (10 if letter == "k" else 0.9995):
            return f"{value / size:.3g}{letter}"
    return f"{value:.4g}"


def faint(color: str) -> str:
    """A colour as the fill of a band.

    Example:
        >>> faint("#3d7ea6")
        'rgba(61, 126, 166, 0.18)'
    """
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.18)"


def tick_format(metric: str) -> str | None:
    """Percent for metrics that are shares; None leaves it to plotly."""
    known = METRICS.get(metric)
    return ".0%" if known is not None and known.unit == "fraction" else None
