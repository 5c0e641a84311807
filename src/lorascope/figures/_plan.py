"""What the figures of a plan share: which records lie on a line or plane with the choice, and its mark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from lorascope.figures.style import LINES, compact

AXES = ("N", "R", "D")


def like(plan: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], *free: str) -> list[Mapping[str, Any]]:
    """Records that have the choice's values on all axes but the free ones."""
    choice = plan["choice"]
    return [
        row
        for row in rows
        if all(row[axis] == choice[axis] for axis in AXES if axis not in free)
        and all(row[axis] is not None for axis in free)
    ]


def fixed(plan: Mapping[str, Any], free: Sequence[str]) -> dict[str, float]:
    """The choice's values on the axes that are not free."""
    choice = plan["choice"]
    return {axis: float(choice[axis]) for axis in AXES if axis not in free and choice[axis] is not None}


def name(row: Mapping[str, Any]) -> str:
    """A candidate or a run in words."""
    words = {"R": "rank", "D": "D", "N": "N"}
    return ", ".join(f"{words[axis]} {compact(float(row[axis]))}" for axis in words if row[axis] is not None)


def ring(figure: go.Figure, x: Any, y: Any) -> None:
    """The mark of the choice."""
    figure.add_scatter(
        x=[x],
        y=[y],
        mode="markers",
        marker={"symbol": "circle-open", "size": 20, "line": {"width": 3}, "color": LINES[1]},
        hovertemplate="the choice<extra></extra>",
    )
