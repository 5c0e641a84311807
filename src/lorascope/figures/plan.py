"""A plan: the predicted metric along each axis and against its cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from lorascope.core.errors import InputError
from lorascope.figures._plan import AXES, fixed, like, name, ring
from lorascope.figures.finite import number
from lorascope.figures.style import (
    AXIS_TITLES,
    GRID,
    INK,
    LINES,
    MARKS,
    base_layout,
    faint,
    label_of,
    log_ticks,
    safe,
    tick_format,
)

COST_TITLES = {
    "flops": "training (FLOPs)",
    "seconds": "training (seconds)",
    "memory": "peak memory (bytes)",
    "adapter": "adapter file (bytes)",
}


@dataclass(frozen=True)
class PlanCurveInfo:
    """The prediction along one axis, the others as in the choice.

    Attributes:
        metric: Name of the metric.
        label: Its label with unit.
        axis: ``"N"``, ``"R"`` or ``"D"``.
        level: Level of the intervals.
        values: Candidates on the axis, rising.
        predicted: Mean metric of each.
        low: Lower end of its interval.
        high: Upper end.
        extrapolated: Whether each lies beyond what was run.
        runs: Place and metric of each run with the other axes as in the choice.
        chosen: The advised value.
        threshold: What is within the noise of the best candidate on this line; None if the noise is unknown.
        fixed: The other axes, as in the choice.
    """

    metric: str
    label: str
    axis: str
    level: float
    values: tuple[float, ...]
    predicted: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    extrapolated: tuple[bool, ...]
    runs: tuple[tuple[float, float], ...]
    chosen: float
    threshold: float | None
    fixed: dict[str, float]


@dataclass(frozen=True)
class PlanCostInfo:
    """What every candidate costs, and what is expected of it.

    Attributes:
        metric: Name of the metric.
        label: Its label with unit.
        kind: ``"flops"``, ``"seconds"``, ``"memory"`` or ``"adapter"``.
        level: Level of the intervals.
        costs: Cost of each candidate.
        predicted: Mean metric of each.
        low: Lower end of its interval.
        high: Upper end.
        names: Each candidate in words.
        affordable: Whether each may be chosen.
        chosen: Place of the advised one.
        frontier: Places of those that nothing cheaper beats, by cost.
    """

    metric: str
    label: str
    kind: str
    level: float
    costs: tuple[float, ...]
    predicted: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    names: tuple[str, ...]
    affordable: tuple[bool, ...]
    chosen: int
    frontier: tuple[int, ...]


def plan_curve_info(plan: Mapping[str, Any], axis: str = "R") -> PlanCurveInfo:
    """Compute what a figure of a plan along one axis shows.

    Args:
        plan: What `lorascope.scaling.Plan.to_dict` returns.
        axis: ``"N"``, ``"R"`` or ``"D"``.

    Returns:
        The candidates that differ from the choice in this axis alone, and the runs there.

    Raises:
        InputError: Fewer than two candidates differ in it.
    """
    if axis not in AXES:
        raise InputError(f"'{axis}' is no axis of a plan: use N, R or D")
    rows = sorted(like(plan, plan["candidates"], axis), key=lambda row: float(row[axis]))
    if len(rows) < 2:
        raise InputError(f"the plan has {len(rows)} candidates along {axis}: a curve needs two")
    upward = plan["better"] == "higher"
    predicted = [float(row["predicted"]) for row in rows]
    noise = number(plan["noise"])
    best = max(predicted) if upward else min(predicted)
    return PlanCurveInfo(
        metric=plan["metric"],
        label=label_of(plan["metric"]),
        axis=axis,
        level=float(plan["level"]),
        values=tuple(float(row[axis]) for row in rows),
        predicted=tuple(predicted),
        low=tuple(float(row["low"]) for row in rows),
        high=tuple(float(row["high"]) for row in rows),
        extrapolated=tuple(bool(row["extrapolated"]) for row in rows),
        runs=tuple((float(row[axis]), float(row["value"])) for row in like(plan, plan["evidence"], axis)),
        chosen=float(plan["choice"][axis]),
        threshold=None if noise is None else best - noise if upward else best + noise,
        fixed=fixed(plan, (axis,)),
    )


def plot_plan_curve(info: PlanCurveInfo) -> go.Figure:
    """Draw the prediction as a line with its interval, the runs as points, the choice ringed, and the noise line."""
    figure = go.Figure(layout=base_layout(height=340, showlegend=False))
    color = LINES[0]
    figure.add_scatter(
        x=[*info.values, *info.values[::-1]],
        y=[*info.high, *info.low[::-1]],
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=faint(color),
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=list(info.values),
        y=list(info.predicted),
        mode="lines+markers",
        line={"color": color, "width": 2},
        marker={
            "size": 8,
            "symbol": [MARKS[0] + "-open" if beyond else MARKS[0] for beyond in info.extrapolated],
            "color": color,
        },
        customdata=[list(ends) for ends in zip(info.low, info.high, strict=True)],
        hovertemplate=f"{info.axis} = %{{x:.4g}}: %{{y:.4g}} (%{{customdata[0]:.4g}} to %{{customdata[1]:.4g}})"
        "<extra></extra>",
    )
    figure.add_scatter(
        x=[run[0] for run in info.runs],
        y=[run[1] for run in info.runs],
        mode="markers",
        marker={"color": INK, "size": 6, "opacity": 0.7},
        hovertemplate=f"run, {info.axis} = %{{x:.4g}}: %{{y:.4g}}<extra></extra>",
    )
    place = info.values.index(info.chosen)
    ring(figure, info.chosen, info.predicted[place])
    if info.threshold is not None:
        figure.add_hline(y=info.threshold, line={"color": INK, "dash": "dot", "width": 1})
    figure.update_xaxes(type="log", title={"text": safe(AXIS_TITLES[info.axis])}, **log_ticks(info.values))
    figure.update_yaxes(title={"text": safe(info.label)}, tickformat=tick_format(info.metric))
    return figure


def plan_cost_info(plan: Mapping[str, Any], kind: str = "flops") -> PlanCostInfo:
    """Compute what a figure of a plan's candidates against their cost shows.

    Args:
        plan: What `lorascope.scaling.Plan.to_dict` returns.
        kind: ``"flops"``, ``"seconds"``, ``"memory"`` or ``"adapter"``.

    Returns:
        The candidates whose cost is known.

    Raises:
        InputError: The kind is unknown, or the choice's cost of it is.
    """
    if kind not in COST_TITLES:
        raise InputError(f"'{kind}' is no kind of cost: use {', '.join(COST_TITLES)}")
    rows = sorted(
        (row for row in plan["candidates"] if number(row[kind]) is not None), key=lambda row: float(row[kind])
    )
    chosen = next((i for i, row in enumerate(rows) if all(row[axis] == plan["choice"][axis] for axis in AXES)), None)
    if chosen is None:
        raise InputError(f"the plan does not know the {kind} of its choice")
    sign = 1.0 if plan["better"] == "higher" else -1.0
    frontier: list[int] = []
    for place, row in enumerate(rows):
        if not frontier or sign * float(row["predicted"]) > sign * float(rows[frontier[-1]]["predicted"]):
            frontier.append(place)
    return PlanCostInfo(
        metric=plan["metric"],
        label=label_of(plan["metric"]),
        kind=kind,
        level=float(plan["level"]),
        costs=tuple(float(row[kind]) for row in rows),
        predicted=tuple(float(row["predicted"]) for row in rows),
        low=tuple(float(row["low"]) for row in rows),
        high=tuple(float(row["high"]) for row in rows),
        names=tuple(name(row) for row in rows),
        affordable=tuple(bool(row["affordable"]) for row in rows),
        chosen=chosen,
        frontier=tuple(frontier),
    )


def plot_plan_cost(info: PlanCostInfo) -> go.Figure:
    """Draw candidates over their cost with intervals, the line that nothing cheaper beats, and the choice ringed."""
    figure = go.Figure(layout=base_layout(height=380, showlegend=False))
    figure.add_scatter(
        x=[info.costs[place] for place in info.frontier],
        y=[info.predicted[place] for place in info.frontier],
        mode="lines",
        line={"color": LINES[0], "width": 2, "shape": "hv"},
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=list(info.costs),
        y=list(info.predicted),
        mode="markers",
        marker={
            "size": 8,
            "color": [LINES[0] if ours else INK for ours in info.affordable],
            "symbol": [MARKS[0] if ours else "x-thin-open" for ours in info.affordable],
        },
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [high - value for high, value in zip(info.high, info.predicted, strict=True)],
            "arrayminus": [value - low for low, value in zip(info.low, info.predicted, strict=True)],
            "color": GRID,
            "thickness": 1.5,
            "width": 0,
        },
        text=[safe(name) for name in info.names],
        hovertemplate="%{text}: %{y:.4g} for %{x:.3g}<extra></extra>",
    )
    ring(figure, info.costs[info.chosen], info.predicted[info.chosen])
    wide = max(info.costs) > 3 * min(info.costs)
    figure.update_xaxes(type="log" if wide else "linear", title={"text": COST_TITLES[info.kind]}, exponentformat="SI")
    figure.update_yaxes(title={"text": safe(info.label)}, tickformat=tick_format(info.metric))
    return figure
