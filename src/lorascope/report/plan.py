"""A plan as parts of a page: the advice and how sure it is, then the curves, costs and residuals behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from lorascope.core.errors import InputError
from lorascope.core.metrics import METRICS
from lorascope.figures.plan import COST_TITLES, plan_cost_info, plan_curve_info, plot_plan_cost, plot_plan_curve
from lorascope.figures.plan_surface import (
    plan_residuals_info,
    plan_surface_info,
    plot_plan_residuals,
    plot_plan_surface,
)
from lorascope.figures.style import compact
from lorascope.report.page import Section, Table
from lorascope.report.text import DASH, show, show_metric

_AXES = {"R": "Rank", "D": "Training rows", "N": "Model size"}
_MOST_ROWS = 200


def plan_headline(plan: Mapping[str, Any]) -> str:
    """The advice, and whether the runs are enough for it.

    Args:
        plan: What `lorascope.scaling.Plan.to_dict` returns.
    """
    advice = str(plan["summary"]).splitlines()[0]
    if plan["basis"] in ("one run", "curvature"):
        return advice
    if plan["settled"]:
        return f"{advice} The runs are enough for this."
    return f"{advice} Not enough evidence yet: run the cells below next."


def plan_sections(plan: Mapping[str, Any]) -> list[Section]:
    """The parts of a page for a plan.

    Args:
        plan: What `lorascope.scaling.Plan.to_dict` returns.

    Returns:
        The advice in words, the next cells where it is not settled, then the prediction along each axis, against cost and
        over two axes, what it leaves over, and every candidate. What the plan has no numbers for is left out.
    """
    sections = [_advice(plan)]
    if plan["next_cells"] and not plan["settled"]:
        sections.append(_next(plan))
    if plan["candidates"]:
        drawn = (_curves(plan), _costs(plan), _surface(plan), _residuals(plan), _candidates(plan))
        sections += [section for section in drawn if section is not None]
    return sections


def _advice(plan: Mapping[str, Any]) -> Section:
    lines = str(plan["summary"]).splitlines()
    end = next((i for i, line in enumerate(lines) if line.startswith("Not enough evidence")), len(lines))
    notes = tuple(str(note) for note in plan["notes"])
    words = tuple(line for line in lines[:end] if line.removeprefix("Note: ") not in notes)
    lora = Table(
        "peft.LoraConfig of the advice",
        ("argument", "value"),
        tuple((str(key), _argument(value)) for key, value in plan["lora"].items()),
    )
    return Section("advice", "What to do, and how sure that is", words, notes, (lora,))


def _next(plan: Mapping[str, Any]) -> Section:
    words = (
        "These runs would settle the decision soonest for what they cost. Each is one seed of one cell; run them, add them "
        "to the table, and plan again."
        if plan["basis"] == "sweep"
        else "A small sweep over these ranks tells more than the spectra of one run.",
    )
    rows = tuple(
        (_count(cell["R"]), _count(cell["D"]), _count(cell["N"]), str(cell["seed"]), str(cell["why"]))
        for cell in plan["next_cells"]
    )
    table = Table("Cells to run next", ("rank", "training rows", "model size", "seed", "why"), rows, words=True)
    return Section("next", "Not enough evidence: run these next", words, tables=(table,))


def _curves(plan: Mapping[str, Any]) -> Section | None:
    figures: dict[str, tuple[go.Figure, str]] = {}
    for axis, title in _AXES.items():
        try:
            info = plan_curve_info(plan, axis)
        except InputError:
            continue  # only one value of it
        points = [
            f"{show_metric(info.metric, value)} at {compact(place)}"
            for place, value in zip(info.values, info.predicted, strict=True)
        ]
        caption = f"{title}: predicted {info.label} {', '.join(points)}; band: {info.level:.0%}; grey: the runs here"
        caption += "; ring: the choice; dotted: within the noise of the best on this line" if info.threshold else ""
        held = ", ".join(f"{axis} {compact(value)}" for axis, value in info.fixed.items())
        figures[title] = (plot_plan_curve(info), f"{caption}. {f'Held at {held}.' if held else ''}".strip())
    if not figures:
        return None
    return Section(
        "curves",
        f"{_label(plan)} along each axis",
        (
            "The line is the expected mean over seeds with its interval; a run scatters about it with the noise. Open "
            "points lie beyond what was run.",
        ),
        figures=figures,
        tables=tuple(_steps(plan)),
    )


def _steps(plan: Mapping[str, Any]) -> list[Table]:
    rows = tuple(
        (
            f"{_AXES[step['axis']].lower()} to {_count(step['to'])}{', beyond what was run' * step['extrapolated']}",
            f"{_signed(step['gain'])} ({_signed(step['low'])} to {_signed(step['high'])})",
            f"{step['probability']:.0%}",
            f"{step['cost_factor']:.2g}",
        )
        for step in plan["steps"]
    )
    heads = ("next step up", "gain (positive is better)", "chance of more than the noise", "times the FLOPs")
    return [Table("What the next step up would bring", heads, rows)] if rows else []


def _costs(plan: Mapping[str, Any]) -> Section | None:
    figures: dict[str, tuple[go.Figure, str]] = {}
    for kind, title in COST_TITLES.items():
        try:
            info = plan_cost_info(plan, kind)
        except InputError:
            continue  # that cost is not known
        if len(info.costs) < 2:
            continue
        cost, value = show(info.costs[info.chosen], 3), show_metric(info.metric, info.predicted[info.chosen])
        caption = f"Ring: the choice, {info.names[info.chosen]}: {value} for {cost} {title.split('(')[-1].rstrip(')')}."
        caption += f" Line: what nothing cheaper beats. Bars: {info.level:.0%}."
        caption += " Crosses: outside the budget." if not all(info.affordable) else ""
        figures[title] = (plot_plan_cost(info), caption)
    if not figures:
        return None
    errors = tuple(
        f"Predicted {name} is off by {facts['median_error']:.0%} at the median and {facts['largest_error']:.0%} at most on "
        f"cells left out of its calibration ({facts['rows']:.0f} rows)."
        for name, facts in plan["calibration"].items()
        if facts.get("median_error") is not None
    )
    return Section("cost", f"{_label(plan)} against cost", points=errors, figures=figures)


def _surface(plan: Mapping[str, Any]) -> Section | None:
    try:
        info = plan_surface_info(plan)
    except InputError:
        return None
    held = "".join(f", {axis} at {compact(value)}" for axis, value in info.fixed.items())
    caption = f"Colour: the prediction; points: the runs, in the same colours; ring: the choice{held}."
    share = plan["model"].get("law_weight")
    words = (
        f"A smooth surface through the runs; a fitted {plan['model']['law']} law is its trend in {share:.0%} of the draws."
        if plan["model"].get("law") and share is not None
        else "A smooth surface through the runs; the runs are too few for a law as its trend."
    )
    title = f"{_label(plan)} over {' and '.join(_AXES[axis].lower() for axis in info.axes)}"
    return Section("surface", title, (words,), figures={"": (plot_plan_surface(info), caption)})


def _residuals(plan: Mapping[str, Any]) -> Section | None:
    if not plan["evidence"]:
        return None
    info = plan_residuals_info(plan)
    caption = "One point a run, one colour a seed; what a seed does to all of its runs is taken away. The band is two"
    caption += " standard deviations of a run. A bend here means that the surface is wrong."
    return Section("residuals", "What the prediction leaves over", figures={"": (plot_plan_residuals(info), caption)})


def _candidates(plan: Mapping[str, Any]) -> Section:
    rows = tuple(
        (
            f"{_count(row['R'])}{' (the choice)' * all(row[axis] == plan['choice'][axis] for axis in _AXES)}",
            _count(row["D"]),
            _count(row["N"]),
            show_metric(plan["metric"], row["predicted"]),
            f"{show_metric(plan['metric'], row['low'])} to {show_metric(plan['metric'], row['high'])}",
            str(row["runs"]),
            show(row["flops"], 3),
            show(row["seconds"], 3),
        )
        for row in plan["candidates"][:_MOST_ROWS]
    )
    heads = ("rank", "training rows", "model size", "predicted", f"{plan['level']:.0%}", "runs", "FLOPs", "seconds")
    left = len(plan["candidates"]) - len(rows)
    points = (f"{left} more candidates are in plan.json.",) if left else ()
    return Section("candidates", "Every candidate", (), points, (Table("Candidates, cheapest first", heads, rows),))


def _label(plan: Mapping[str, Any]) -> str:
    return METRICS[plan["metric"]].label if plan["metric"] in METRICS else str(plan["metric"])


def _count(value: Any) -> str:
    return DASH if value is None else compact(float(value)) if value >= 1e6 else f"{value:,.0f}"


def _signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−")


def _argument(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
