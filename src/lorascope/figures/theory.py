"""Curves of the solvable theory with simulation points on top. Imports no torch and no theory: rows are mappings."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from lorascope.core.errors import InputError
from lorascope.figures.finite import number
from lorascope.figures.style import GRID, INK, LINES, MARKS, base_layout, safe, short

LABELS = {
    "Q": "Q = Tr S² / d",
    "M": "M = Tr(S S₀) / d",
    "alignment": "alignment with the target update",
    "alpha": "pre-training sequences, N / d²",
    "alpha_finetune": "fine-tuning sequences, N′ / d",
    "delta_eff": "effective noise on fresh data",
    "delta_recalibrated": "effective noise after recalibration",
    "delta_reuse": "effective noise on reused data",
    "error": "pre-training error",
    "fraction": "share of the pool that is labelled",
    "jump": "share of discontinuous proximal maps",
    "kappa0": "rank of the target over d",
    "noise": "label noise Δ",
    "ridge": "pre-training ridge λ",
    "ridge_finetune": "LoRA ridge λ′",
    "share": "share of the label budget in pre-training",
    "test_error": "test error (noiseless target)",
    "train_loss": "training loss over d",
}
LOGARITHMIC = ("alpha", "alpha_finetune", "ridge", "ridge_finetune")


@dataclass(frozen=True)
class TheoryLine:
    """One curve.

    Attributes:
        name: Of the legend.
        x: Places, in the order in which the curve runs.
        y: Values.
        notes: Why a point is not to be trusted; empty where nothing is known against it.
        tags: What a reader sees when pointing at it, besides x and y.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    notes: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True)
class TheoryMarks:
    """Simulations that belong to a curve.

    Attributes:
        name: Of the curve.
        x: Places; means if the simulation measures them.
        y: Means over seeds.
        x_errors: Standard errors of x; None where x is a setting or there is one seed.
        y_errors: Standard errors; None with a single seed.
        tags: d and the number of seeds.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    x_errors: tuple[float | None, ...]
    y_errors: tuple[float | None, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True)
class TheoryCurvesInfo:
    """Curves over one quantity.

    Attributes:
        x_label: Of the axis.
        y_label: Of the axis.
        log_x: Whether x is logarithmic.
        log_y: Whether y is.
        lines: The curves.
        marks: Simulations, by the name of their curve.
        rules: Label -> place of a vertical line.
        floors: Label -> height of a horizontal line.
    """

    x_label: str
    y_label: str
    log_x: bool
    log_y: bool
    lines: tuple[TheoryLine, ...]
    marks: tuple[TheoryMarks, ...]
    rules: dict[str, float]
    floors: dict[str, float]


def theory_curves_info(
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    x: str,
    y: str,
    *,
    points: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    rules: Mapping[str, float | int | None] | None = None,
    floors: Mapping[str, float | int | None] | None = None,
    log_y: bool = False,
    tag: str | None = None,
) -> TheoryCurvesInfo:
    """Compute what a figure of theory curves shows.

    Args:
        curves: Name -> rows with ``x``, ``y`` and ``warnings``, as `lorascope.theory.prescriptions` makes them. If x is a
            result (such as ``alignment``), the curve runs in the order of the rows.
        x: Quantity of the horizontal axis.
        y: Quantity of the vertical axis.
        points: Name of a curve -> simulations as `lorascope.theory.points.points_table` gives them: ``y``, ``y_se``,
            ``dim``, ``seeds`` and ``x``, with ``x_se`` if x is simulated too.
        rules: Label -> place of a vertical line; None is left out.
        floors: Label -> height of a horizontal line; None is left out.
        log_y: Whether the vertical axis is logarithmic.
        tag: A quantity shown on pointing at a place.

    Returns:
        The numbers of the figure.

    Raises:
        InputError: No curve has both quantities.

    Example:
        >>> rows = [{"ridge": 0.1, "test_error": 0.5}, {"ridge": 0.01, "test_error": 0.7, "warnings": ["odd"]}]
        >>> info = theory_curves_info({"fresh": rows}, "ridge", "test_error")
        >>> info.lines[0].x, info.lines[0].notes
        ((0.01, 0.1), ('odd', ''))
    """
    lines = []
    for name, rows in curves.items():
        known = [row for row in rows if number(row.get(x)) is not None and number(row.get(y)) is not None]
        if x in LOGARITHMIC or x in ("share", "fraction", "noise", "kappa0"):
            known.sort(key=lambda row: float(row[x]))
        if known:
            lines.append(
                TheoryLine(
                    name=name,
                    x=tuple(float(row[x]) for row in known),
                    y=tuple(float(row[y]) for row in known),
                    notes=tuple("; ".join(row.get("warnings", ())) for row in known),
                    tags=tuple("" if tag is None else f"{tag} {row[tag]:.3g}" for row in known),
                )
            )
    if not lines:
        raise InputError(f"no curve has both {x} and {y}: nothing to draw")
    marks = []
    for name, rows in (points or {}).items():
        known = [row for row in rows if number(row.get(x)) is not None and number(row.get(y)) is not None]
        if known:
            marks.append(
                TheoryMarks(
                    name=name,
                    x=tuple(float(row[x]) for row in known),
                    y=tuple(float(row[y]) for row in known),
                    x_errors=tuple(number(row.get(f"{x}_se")) for row in known),
                    y_errors=tuple(number(row.get(f"{y}_se")) for row in known),
                    tags=tuple(f"simulated, d = {row.get('dim')}, {row.get('seeds')} seeds" for row in known),
                )
            )
    everything = [value for line in lines for value in line.x]
    return TheoryCurvesInfo(
        x_label=LABELS.get(x, x),
        y_label=LABELS.get(y, y),
        log_x=x in LOGARITHMIC and min(everything) > 0,
        log_y=log_y,
        lines=tuple(lines),
        marks=tuple(marks),
        rules={label: float(value) for label, value in (rules or {}).items() if value is not None},
        floors={label: float(value) for label, value in (floors or {}).items() if value is not None},
    )


def plot_theory_curves(info: TheoryCurvesInfo) -> go.Figure:
    """Draw the curves; dotted where a warning stands against them, simulations as marks with one standard error."""
    figure = go.Figure(layout=base_layout(height=430))
    names = [line.name for line in info.lines] + [mark.name for mark in info.marks]
    order = list(dict.fromkeys(names))
    for line in info.lines:
        place = order.index(line.name)
        colour = LINES[place % len(LINES)]
        shown = False
        for flagged, start, stop in _runs(line.notes):
            figure.add_scatter(
                x=list(line.x[start:stop]),
                y=list(line.y[start:stop]),
                mode="lines" if stop - start > 1 else "markers",
                marker={"size": 5, "color": colour},
                name=short(line.name, 60),
                legendgroup=str(place),
                showlegend=not shown and not flagged,
                opacity=0.6 if flagged else 1.0,
                line={"color": colour, "width": 1.6 if flagged else 2.4, "dash": "dot" if flagged else "solid"},
                customdata=[[safe(note or ""), safe(tag)] for note, tag in _slices(line, start, stop)],
                hovertemplate="%{x:.3g}, %{y:.4g} %{customdata[1]}<br>%{customdata[0]}<extra></extra>",
            )
            shown = shown or not flagged
        if not shown and figure.data:
            figure.data[-1].showlegend = True
    for mark in info.marks:
        place = order.index(mark.name)
        colour = LINES[place % len(LINES)]
        alone = all(mark.name != line.name for line in info.lines)
        figure.add_scatter(
            x=list(mark.x),
            y=list(mark.y),
            mode="markers",
            name=short(mark.name, 60),
            legendgroup=str(place),
            showlegend=alone,
            marker={
                "size": 8,
                "symbol": f"{MARKS[place % len(MARKS)]}-open",
                "color": colour,
                "line": {"width": 1.8, "color": colour},
            },
            error_y=_bars(mark.y_errors, colour),
            error_x=_bars(mark.x_errors, colour),
            customdata=[safe(tag) for tag in mark.tags],
            hovertemplate="%{x:.3g}, %{y:.4g}<br>%{customdata}<extra></extra>",
        )
    for label, value in info.rules.items():
        figure.add_vline(x=value, line={"color": INK, "width": 1.3, "dash": "dash"})
        # Annotations of a logarithmic axis are placed by the exponent; a trace of one point needs no such care.
        figure.add_scatter(
            x=[value],
            y=[max(y for line in info.lines for y in line.y)],
            mode="text",
            text=[safe(f" {label}")],
            textposition="bottom right",
            textfont={"color": INK, "size": 11},
            showlegend=False,
            hoverinfo="skip",
        )
    for label, value in info.floors.items():
        figure.add_hline(
            y=value,
            line={"color": INK, "width": 1.3, "dash": "dashdot"},
            annotation={"text": safe(label), "font": {"color": INK, "size": 11}},
            annotation_position="top left",
        )
    figure.update_xaxes(title={"text": info.x_label}, type="log" if info.log_x else "linear", exponentformat="none")
    figure.update_yaxes(title={"text": info.y_label}, type="log" if info.log_y else "linear", exponentformat="none")
    if info.log_x:
        figure.update_xaxes(minor={"ticks": "", "showgrid": False}, dtick=_ticks([x for p in info.lines for x in p.x]))
    figure.update_yaxes(zerolinecolor=GRID)
    return figure


def _ticks(values: Sequence[float]) -> str:
    """Few labels on a wide logarithmic axis, more on a narrow one: plotly's names for powers of ten, and 1, 2, 5."""
    return "D2" if max(values) / min(values) < 300 else "1"


def _runs(notes: Sequence[str]) -> list[tuple[bool, int, int]]:
    """Stretches with and without a warning; a flagged one reaches to its neighbours, so that the line has no gap."""
    found: list[tuple[bool, int, int]] = []
    start = 0
    for flagged, group in itertools.groupby(bool(note) for note in notes):
        stop = start + len(list(group))
        found.append((flagged, max(0, start - 1), min(len(notes), stop + 1)) if flagged else (flagged, start, stop))
        start = stop
    return found


def _slices(line: TheoryLine, start: int, stop: int) -> list[tuple[str, str]]:
    return list(zip(line.notes[start:stop], line.tags[start:stop], strict=True))


def _bars(errors: Sequence[float | None], colour: str) -> dict[str, Any] | None:
    if all(error is None for error in errors):
        return None
    return {"array": [error or 0.0 for error in errors], "thickness": 1.4, "width": 4, "color": colour}
