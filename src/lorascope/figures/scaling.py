"""A fitted scaling law: the metric against each axis, the surface over two axes, and what the law leaves over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from lorascope.core.errors import InputError
from lorascope.figures.fitted import FittedLaw
from lorascope.figures.style import (
    AXIS_TITLES,
    GRID,
    INK,
    LINES,
    SCALE,
    base_layout,
    faint,
    label_of,
    log_ticks,
    safe,
    tick_format,
)

BEYOND = 4.0  # how far curves go past the largest run


@dataclass(frozen=True)
class AxisCurve:
    """The law along one axis, the others at the middle of the runs.

    Attributes:
        axis: ``"N"``, ``"R"`` or ``"D"``.
        values: Places on the axis, rising; up to four times the largest run.
        curve: The law.
        low: Lower end of its interval; empty without a bootstrap.
        high: Upper end.
        runs: Places of the runs.
        points: Each run's metric, moved along the law to the middle of the other axes.
        measured: Each run's metric as it was measured.
        largest: The largest value that was run.
    """

    axis: str
    values: tuple[float, ...]
    curve: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    runs: tuple[float, ...]
    points: tuple[float, ...]
    measured: tuple[float, ...]
    largest: float


@dataclass(frozen=True)
class LawCurvesInfo:
    """The law along each axis.

    Attributes:
        metric: Name of the metric.
        label: Its label with unit.
        level: Confidence level of the bands.
        moved: Whether runs were moved along the law to the middle of other axes.
        panels: One for each axis that varies.
    """

    metric: str
    label: str
    level: float
    moved: bool
    panels: tuple[AxisCurve, ...]


@dataclass(frozen=True)
class LawSurfaceInfo:
    """The law over two axes, with the runs.

    Attributes:
        metric: Name of the metric.
        label: Its label with unit.
        axes: The two axes, horizontal first.
        xs: Places on the first.
        ys: Places on the second.
        surface: The law, one row for each of ``ys``.
        runs: (x, y, mean metric, number of runs) of each place that was run.
        fixed: The value at which a third axis is held; empty if there is none.
    """

    metric: str
    label: str
    axes: tuple[str, str]
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    surface: tuple[tuple[float, ...], ...]
    runs: tuple[tuple[float, float, float, int], ...]
    fixed: dict[str, float]


@dataclass(frozen=True)
class LawResidualsInfo:
    """What the law leaves over.

    Attributes:
        metric: Name of the metric.
        label: Its label with unit.
        relative: Whether residuals are fractions of the law's value.
        fitted: The law at each run.
        residuals: Metric minus law, as a fraction if relative.
        sigma: Robust standard deviation of a run.
        names: Each run's place in words.
    """

    metric: str
    label: str
    relative: bool
    fitted: tuple[float, ...]
    residuals: tuple[float, ...]
    sigma: float
    names: tuple[str, ...]


def law_curves_info(fit: FittedLaw, *, points: int = 61) -> LawCurvesInfo:
    """Compute what a figure of a law along its axes shows.

    Args:
        fit: A fitted law.
        points: Places on each curve.

    Returns:
        One panel an axis: the law with its band, the other axes at their geometric means, and the runs, moved along the
        law to those means (by the ratio of the law's values if the noise is relative, else by their difference).
    """
    panels = []
    for axis in fit.axes:
        first, last = fit.ranges[axis]
        places = np.geomspace(first, last * BEYOND, points)
        middle: dict[str, Any] = {other: fit.reference[other] for other in fit.axes}
        curve = np.asarray(fit.predict(**{**middle, axis: places}))
        low, high = fit.predict_interval(**{**middle, axis: places}) if len(fit.boot) else ((), ())
        runs, measured = fit.data[axis], fit.data[fit.metric]
        here = np.asarray(fit.predict(**{**middle, axis: runs}))
        moved = here + fit.residuals
        if fit.noise == "relative":
            moved = np.where(fit.fitted != 0, here * measured / np.where(fit.fitted != 0, fit.fitted, 1.0), moved)
        panels.append(
            AxisCurve(
                axis=axis,
                values=_floats(places),
                curve=_floats(curve),
                low=_floats(low),
                high=_floats(high),
                runs=_floats(runs),
                points=_floats(moved),
                measured=_floats(measured),
                largest=float(last),
            )
        )
    return LawCurvesInfo(fit.metric, label_of(fit.metric), fit.level, len(fit.axes) > 1, tuple(panels))


def plot_law_curves(info: LawCurvesInfo) -> go.Figure:
    """Draw one panel an axis: the runs as points, the law as a line, its interval as a band."""
    count = len(info.panels)
    figure = go.Figure(layout=base_layout(height=360, showlegend=False))
    gap = 0.06
    width = (1 - gap * (count - 1)) / count
    for index, panel in enumerate(info.panels):
        color = LINES[index % len(LINES)]
        suffix = "" if index == 0 else str(index + 1)
        shared = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
        finite = [np.isfinite(low) and np.isfinite(high) for low, high in zip(panel.low, panel.high, strict=True)]
        if panel.low and all(finite):
            figure.add_scatter(
                x=[*panel.values, *panel.values[::-1]],
                y=[*panel.high, *panel.low[::-1]],
                mode="lines",
                line={"width": 0},
                fill="toself",
                fillcolor=faint(color),
                hoverinfo="skip",
                **shared,
            )
        figure.add_scatter(
            x=list(panel.values),
            y=list(panel.curve),
            mode="lines",
            line={"color": color, "width": 2},
            hovertemplate=f"{panel.axis} = %{{x:.4g}}: %{{y:.4g}}<extra></extra>",
            **shared,
        )
        figure.add_scatter(
            x=list(panel.runs),
            y=list(panel.points),
            mode="markers",
            marker={"color": color, "size": 7, "opacity": 0.75},
            customdata=list(panel.measured),
            hovertemplate=f"{panel.axis} = %{{x:.4g}}, measured %{{customdata:.4g}}<extra></extra>",
            **shared,
        )
        start = index * (width + gap)
        axis = base_layout().xaxis.to_plotly_json()
        title = {"text": safe(AXIS_TITLES[panel.axis])}
        changes: dict[str, Any] = {
            f"xaxis{suffix}": {
                **axis,
                "type": "log",
                "title": title,
                "domain": [start, start + width],
                "anchor": f"y{suffix}",
                **log_ticks(panel.runs),
            },
            f"yaxis{suffix}": {
                **axis,
                "anchor": f"x{suffix}",
                "tickformat": tick_format(info.metric),
                "matches": "y" if index else None,
                "showticklabels": index == 0,
            },
        }
        figure.update_layout(**changes)
        figure.add_shape(
            type="line",
            x0=panel.largest,
            x1=panel.largest,
            y0=0,
            y1=1,
            xref=f"x{suffix}",
            yref=f"y{suffix} domain",
            line={"color": INK, "dash": "dot", "width": 1},
        )
    figure.update_layout(yaxis_title={"text": safe(info.label)})
    return figure


def law_surface_info(fit: FittedLaw, axes: tuple[str, str] | None = None, *, points: int = 41) -> LawSurfaceInfo:
    """Compute what a figure of a law over two axes shows.

    Args:
        fit: A fitted law over at least two axes.
        axes: Which two, horizontal first; if not given, the two along which the law changes most.
        points: Places on each axis.

    Returns:
        The law on a grid over the range of the runs, a third axis at its geometric mean.

    Raises:
        InputError: The law has fewer than two axes, or not these.
    """
    if len(fit.axes) < 2:
        raise InputError(f"the law depends on {fit.axes[0]} alone: a surface needs two axes that vary")
    middle = {axis: fit.reference[axis] for axis in fit.axes}
    if axes is None:

        def change(axis: str) -> float:
            ends = np.asarray(fit.predict(**{**middle, axis: np.array(fit.ranges[axis])}))
            return float(abs(ends[1] - ends[0]))

        chosen = sorted(sorted(fit.axes, key=change, reverse=True)[:2], key=fit.axes.index)
        axes = (chosen[0], chosen[1])
    if len(set(axes)) != 2 or not set(axes) <= set(fit.axes):
        raise InputError(f"axes {axes} are not two of the law's axes {', '.join(fit.axes)}")
    first, second = (np.geomspace(*fit.ranges[axis], points) for axis in axes)
    across, up = np.meshgrid(first, second)
    surface = np.asarray(fit.predict(**{**middle, axes[0]: across, axes[1]: up}))
    places: dict[tuple[float, float], list[float]] = {}
    for x, y, value in zip(fit.data[axes[0]], fit.data[axes[1]], fit.data[fit.metric], strict=True):
        places.setdefault((float(x), float(y)), []).append(float(value))
    return LawSurfaceInfo(
        metric=fit.metric,
        label=label_of(fit.metric),
        axes=axes,
        xs=_floats(first),
        ys=_floats(second),
        surface=tuple(_floats(row) for row in surface),
        runs=tuple((x, y, float(np.mean(values)), len(values)) for (x, y), values in sorted(places.items())),
        fixed={axis: value for axis, value in middle.items() if axis not in axes},
    )


def plot_law_surface(info: LawSurfaceInfo) -> go.Figure:
    """Draw the law as colours over both axes, and the runs as points in the same colours."""
    figure = go.Figure(layout=base_layout(height=420, showlegend=False))
    shown = [value for row in info.surface for value in row] + [run[2] for run in info.runs]
    low, high = min(shown), max(shown)
    form = tick_format(info.metric)
    figure.add_heatmap(
        x=list(info.xs),
        y=list(info.ys),
        z=[list(row) for row in info.surface],
        zmin=low,
        zmax=high,
        colorscale=SCALE,
        zsmooth=False,
        colorbar={"title": {"text": safe(info.label), "side": "right"}, "outlinewidth": 0, "tickformat": form},
        hovertemplate=f"{info.axes[0]} = %{{x:.4g}}, {info.axes[1]} = %{{y:.4g}}: %{{z:.4g}}<extra></extra>",
    )
    figure.add_scatter(
        x=[run[0] for run in info.runs],
        y=[run[1] for run in info.runs],
        mode="markers",
        marker={
            "color": [run[2] for run in info.runs],
            "cmin": low,
            "cmax": high,
            "colorscale": SCALE,
            "size": 13,
            "line": {"color": "#ffffff", "width": 1.5},
        },
        customdata=[[run[2], run[3]] for run in info.runs],
        hovertemplate="%{customdata[0]:.4g}, mean of %{customdata[1]} runs<extra></extra>",
    )
    across, up = (log_ticks([run[i] for run in info.runs]) for i in (0, 1))
    figure.update_xaxes(type="log", title={"text": safe(AXIS_TITLES[info.axes[0]])}, showgrid=False, **across)
    figure.update_yaxes(type="log", title={"text": safe(AXIS_TITLES[info.axes[1]])}, showgrid=False, **up)
    return figure


def law_residuals_info(fit: FittedLaw) -> LawResidualsInfo:
    """Compute what a figure of the residuals shows: one point a run."""
    relative = fit.noise == "relative" and bool((fit.fitted != 0).all())
    residuals = fit.residuals / np.abs(fit.fitted) if relative else fit.residuals
    names = [", ".join(f"{axis} = {fit.data[axis][i]:.4g}" for axis in fit.axes) for i in range(len(fit.fitted))]
    return LawResidualsInfo(
        metric=fit.metric,
        label=label_of(fit.metric),
        relative=relative,
        fitted=_floats(fit.fitted),
        residuals=_floats(residuals),
        sigma=fit.sigma,
        names=tuple(names),
    )


def plot_law_residuals(info: LawResidualsInfo) -> go.Figure:
    """Draw residuals against the law, with a band of two standard deviations."""
    figure = go.Figure(layout=base_layout(height=320, showlegend=False))
    if info.sigma > 0:
        figure.add_hrect(y0=-2 * info.sigma, y1=2 * info.sigma, fillcolor=GRID, line_width=0)
    figure.add_scatter(
        x=list(info.fitted),
        y=list(info.residuals),
        mode="markers",
        marker={"color": LINES[0], "size": 8, "opacity": 0.8},
        text=[safe(name) for name in info.names],
        hovertemplate="%{text}: %{y:" + (".1%" if info.relative else ".3g") + "}<extra></extra>",
    )
    figure.update_xaxes(title={"text": f"law, {safe(info.label)}"}, tickformat=tick_format(info.metric))
    unit = "run above the law" if info.relative else f"run minus law, {safe(info.label)}"
    figure.update_yaxes(
        title={"text": unit}, tickformat=".0%" if info.relative else None, zeroline=True, zerolinecolor=GRID
    )
    return figure


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
