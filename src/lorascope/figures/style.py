"""One calm look for all figures: transparent, legible on white and near-black, safe for colour-blind eyes."""

from __future__ import annotations

import html
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
