"""A plan over two axes, and what its prediction leaves over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from lorascope.core.errors import InputError
from lorascope.figures._plan import AXES, fixed, like, name, ring
from lorascope.figures.finite import number
from lorascope.figures.style import (
    AXIS_TITLES,
    GRID,
    LINES,
    MARKS,
    SCALE,
    base_layout,
    compact,
    label_of,
    safe,
    tick_format,
)


@dataclass(frozen=True)
class PlanSurfaceInfo:
    """The prediction over two axes, the third as in the choice.

    Attributes:
        metric: Name of the metric.
        label: Its label with unit.
        axes: The two axes, horizontal first.
        xs: Candidates on the first.
        ys: Candidates on the second.
        surface: The prediction, one row for each of ``ys``; None where there is no candidate.
        runs: (x, y, mean metric, number of runs) of each place that was run.
        chosen: The choice on both axes.
        fixed: The third axis, as in the choice.
    """

    metric: str
    label: str
    axes: tuple[str, str]
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    surface: tuple[tuple[float | None, ...], ...]
    runs: tuple[tuple[float, float, float, int], ...]
    chosen: tuple[float, float]
    fixed: dict[str, float]


@dataclass(frozen=True)
class PlanResidualsInfo:
    """Runs against the prediction at their place.

    Attributes:
        metric: Name of the metric.
        label: Its label with unit.
        fitted: The prediction at each run.
        residuals: Metric minus prediction, minus the mean of that over the runs of its seed.
        seeds: Number of each run's seed.
        names: Each run's place in words.
        noise: Standard deviation of a run; None if unknown.
    """

    metric: str
    label: str
    fitted: tuple[float, ...]
    residuals: tuple[float, ...]
    seeds: tuple[int, ...]
    names: tuple[str, ...]
    noise: float | None


def plan_surface_info(plan: Mapping[str, Any], axes: tuple[str, str] | None = None) -> PlanSurfaceInfo:
    """Compute what a figure of a plan over two axes shows.

    Args:
        plan: What `lorascope.scaling.Plan.to_dict` returns.
        axes: Which two, horizontal first; if not given, data and rank, or those of the three that vary.

    Returns:
        The prediction at the candidates that share the choice's third axis, and the runs there.

    Raises:
        InputError: Fewer than two axes vary among those candidates.
    """
    varying = [axis for axis in AXES if len({row[axis] for row in like(plan, plan["candidates"], axis)}) > 1]
    if axes is None:
        order = [axis for axis in ("D", "R", "N") if axis in varying]
        if len(order) < 2:
            raise InputError(
                f"the plan's candidates vary along {' and '.join(order) or 'no axis'}: a surface needs two"
            )
        axes = (order[0], order[1])
    if len(set(axes)) != 2 or not set(axes) <= set(varying):
        raise InputError(f"axes {axes} are not two that the candidates vary along ({', '.join(varying) or 'none'})")
    rows = like(plan, plan["candidates"], *axes)
    xs, ys = (tuple(sorted({float(row[axis]) for row in rows})) for axis in axes)
    at = {(float(row[axes[0]]), float(row[axes[1]])): float(row["predicted"]) for row in rows}
    places: dict[tuple[float, float], list[float]] = {}
    for run in like(plan, plan["evidence"], *axes):
        places.setdefault((float(run[axes[0]]), float(run[axes[1]])), []).append(float(run["value"]))
    return PlanSurfaceInfo(
        metric=plan["metric"],
        label=label_of(plan["metric"]),
        axes=axes,
        xs=xs,
        ys=ys,
        surface=tuple(tuple(at.get((x, y)) for x in xs) for y in ys),
        runs=tuple((x, y, sum(found) / len(found), len(found)) for (x, y), found in sorted(places.items())),
        chosen=(float(plan["choice"][axes[0]]), float(plan["choice"][axes[1]])),
        fixed=fixed(plan, axes),
    )


def plot_plan_surface(info: PlanSurfaceInfo) -> go.Figure:
    """Draw the prediction as colours over both axes, evenly spaced, the runs as points in the same colours."""
    figure = go.Figure(layout=base_layout(height=380, showlegend=False))
    shown = [value for row in info.surface for value in row if value is not None] + [run[2] for run in info.runs]
    low, high = min(shown), max(shown)
    across, up = ({value: compact(value) for value in values} for values in (info.xs, info.ys))
    form = tick_format(info.metric)
    figure.add_heatmap(
        x=list(across.values()),
        y=list(up.values()),
        z=[list(row) for row in info.surface],
        zmin=low,
        zmax=high,
        colorscale=SCALE,
        colorbar={"title": {"text": safe(info.label), "side": "right"}, "outlinewidth": 0, "tickformat": form},
        hovertemplate=f"{info.axes[0]} = %{{x}}, {info.axes[1]} = %{{y}}: %{{z:.4g}}<extra></extra>",
    )
    inside = [run for run in info.runs if run[0] in across and run[1] in up]
    figure.add_scatter(
        x=[across[run[0]] for run in inside],
        y=[up[run[1]] for run in inside],
        mode="markers",
        marker={
            "color": [run[2] for run in inside],
            "cmin": low,
            "cmax": high,
            "colorscale": SCALE,
            "size": 13,
            "line": {"color": "#ffffff", "width": 1.5},
        },
        customdata=[[run[2], run[3]] for run in inside],
        hovertemplate="%{customdata[0]:.4g}, mean of %{customdata[1]} runs<extra></extra>",
    )
    ring(figure, across[info.chosen[0]], up[info.chosen[1]])
    for axis, labels, update in zip(info.axes, (across, up), (figure.update_xaxes, figure.update_yaxes), strict=True):
        update(
            type="category",
            categoryorder="array",
            categoryarray=list(labels.values()),
            title={"text": safe(AXIS_TITLES[axis])},
            showgrid=False,
        )
    return figure


def plan_residuals_info(plan: Mapping[str, Any]) -> PlanResidualsInfo:
    """Compute what a figure of a plan's residuals shows: one point a run.

    Args:
        plan: What `lorascope.scaling.Plan.to_dict` returns.

    Raises:
        InputError: The plan holds no runs.
    """
    runs = plan["evidence"]
    if not runs:
        raise InputError("the plan holds no runs: make one from a sweep")
    left = [float(run["value"]) - float(run["fitted"]) for run in runs]
    seeds = [int(run["seed"]) for run in runs]
    common = {seed: _mean([value for value, own in zip(left, seeds, strict=True) if own == seed]) for seed in seeds}
    return PlanResidualsInfo(
        metric=plan["metric"],
        label=label_of(plan["metric"]),
        fitted=tuple(float(run["fitted"]) for run in runs),
        residuals=tuple(value - common[seed] for value, seed in zip(left, seeds, strict=True)),
        seeds=tuple(seeds),
        names=tuple(name(run) for run in runs),
        noise=number(plan["noise"]),
    )


def plot_plan_residuals(info: PlanResidualsInfo) -> go.Figure:
    """Draw residuals against the prediction, one colour a seed, with a band of two standard deviations."""
    figure = go.Figure(layout=base_layout(height=320, showlegend=False))
    if info.noise:
        figure.add_hrect(y0=-2 * info.noise, y1=2 * info.noise, fillcolor=GRID, line_width=0)
    figure.add_scatter(
        x=list(info.fitted),
        y=list(info.residuals),
        mode="markers",
        marker={
            "size": 8,
            "opacity": 0.8,
            "color": [LINES[seed % len(LINES)] for seed in info.seeds],
            "symbol": [MARKS[seed % len(MARKS)] for seed in info.seeds],
        },
        text=[safe(name) for name in info.names],
        hovertemplate="%{text}: %{y:.3g}<extra></extra>",
    )
    figure.update_xaxes(title={"text": f"predicted {safe(info.label)}"}, tickformat=tick_format(info.metric))
    figure.update_yaxes(title={"text": f"run minus prediction, {safe(info.label)}"}, zeroline=True, zerolinecolor=GRID)
    return figure


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
