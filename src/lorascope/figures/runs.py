"""Runs side by side: a metric and the accuracy against rank, and the loss while training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from lorascope.core.errors import InputError
from lorascope.figures.numbers import number
from lorascope.figures.style import DASHES, INK, LINES, MARKS, base_layout, label_of


@dataclass(frozen=True)
class MetricAgainstRankInfo:
    """A metric and the accuracy of several runs, in order of rank.

    Attributes:
        metric: Name of the metric.
        label: Its label with unit.
        ranks: Rank of each run, rising; 0 is the base model without an adapter.
        names: Name of each run.
        values: The metric of each run, None where unknown.
        accuracy: Accuracy of each run in [0, 1], None where unknown.
        accuracy_error: Standard error of each accuracy, None where unknown.
    """

    metric: str
    label: str
    ranks: tuple[int, ...]
    names: tuple[str, ...]
    values: tuple[float | None, ...]
    accuracy: tuple[float | None, ...]
    accuracy_error: tuple[float | None, ...]


@dataclass(frozen=True)
class LossCurvesInfo:
    """Training loss of several runs.

    Attributes:
        curves: Name of the run -> (steps, losses in nats per token).
    """

    curves: dict[str, tuple[tuple[int, ...], tuple[float, ...]]]


def metric_against_rank_info(rows: Sequence[Mapping[str, Any]], metric: str = "miub_js") -> MetricAgainstRankInfo:
    """Compute what a figure of a metric against rank shows.

    Args:
        rows: One mapping a run with ``name``, ``rank`` (0 for the base), the metrics, and optionally ``accuracy`` and
            ``accuracy_se`` (its standard error).
        metric: Name of the metric.

    Returns:
        The runs that have a rank and either number, rising in rank.

    Raises:
        InputError: No run with a rank has a finite value of that metric.

    Example:
        >>> metric_against_rank_info([{"name": "a", "rank": 4, "ce": 2.0}], "ce").values
        (2.0,)
    """
    ranked = [row for row in rows if isinstance(row.get("rank"), int)]
    if not any(number(row.get(metric)) is not None for row in ranked):
        raise InputError(f"no run with a rank has a value of '{metric}': measure it first")
    shown = sorted(
        (row for row in ranked if number(row.get(metric)) is not None or number(row.get("accuracy")) is not None),
        key=lambda row: row["rank"],
    )
    return MetricAgainstRankInfo(
        metric=metric,
        label=label_of(metric),
        ranks=tuple(row["rank"] for row in shown),
        names=tuple(str(row.get("name", row["rank"])) for row in shown),
        values=tuple(number(row.get(metric)) for row in shown),
        accuracy=tuple(number(row.get("accuracy")) for row in shown),
        accuracy_error=tuple(number(row.get("accuracy_se")) for row in shown),
    )


def plot_metric_against_rank(info: MetricAgainstRankInfo) -> go.Figure:
    """Draw the metric above and the accuracy, with one standard error, below it over the same ranks."""
    # Ranks are places on a category axis: even spacing for 4, 16, 64, and a place for the base.
    ticks = ["base" if rank == 0 else str(rank) for rank in info.ranks]
    with_accuracy = any(value is not None for value in info.accuracy)
    layout = base_layout(showlegend=False, height=460 if with_accuracy else 320)
    figure = go.Figure(layout=layout)
    figure.add_scatter(
        x=ticks,
        y=list(info.values),
        customdata=list(info.names),
        mode="lines+markers",
        name=info.label,
        line={"color": LINES[0], "width": 2},
        marker={"size": 9, "symbol": MARKS[0]},
        hovertemplate="%{customdata}: %{y:.5g}<extra></extra>",
    )
    figure.update_yaxes(title={"text": info.label})
    places = list(dict.fromkeys(ticks))
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=places, title={"text": "rank"})
    if with_accuracy:
        figure.add_scatter(
            x=ticks,
            y=list(info.accuracy),
            customdata=list(info.names),
            error_y={
                "array": [error or 0.0 for error in info.accuracy_error],
                "thickness": 1.2,
                "width": 4,
                "color": LINES[1],
            },
            mode="lines+markers",
            name="accuracy",
            yaxis="y2",
            line={"color": LINES[1], "width": 2, "dash": DASHES[1]},
            marker={"size": 9, "symbol": MARKS[1]},
            hovertemplate="%{customdata}: %{y:.3f}<extra></extra>",
        )
        figure.update_layout(
            yaxis={"domain": [0.56, 1.0]},
            yaxis2={**layout.yaxis.to_plotly_json(), "domain": [0.0, 0.44], "title": {"text": "Accuracy"}},
            xaxis={"anchor": "y2"},
        )
    return figure


def loss_curves_info(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> LossCurvesInfo:
    """Compute what a figure of training losses shows.

    Args:
        histories: Name of the run -> its log; entries without ``step`` and finite ``loss`` are left out, and of several
            entries for one step the last one counts (a resumed run repeats steps).

    Returns:
        One curve for each run that has a loss, rising in step.

    Raises:
        InputError: No run has a loss.

    Example:
        >>> loss_curves_info({"a": [{"step": 1, "loss": 2.0}, {"step": 1, "eval_loss": 3.0}]}).curves
        {'a': ((1,), (2.0,))}
    """
    curves = {}
    for name, history in histories.items():
        points: dict[int, float] = {}
        for entry in history:
            step, loss = entry.get("step"), number(entry.get("loss"))
            if isinstance(step, int) and loss is not None:
                points[step] = loss
        if points:
            curves[name] = (tuple(sorted(points)), tuple(points[step] for step in sorted(points)))
    if not curves:
        raise InputError("no run has a training loss in its history: nothing to draw")
    return LossCurvesInfo(curves=curves)


def plot_loss_curves(info: LossCurvesInfo) -> go.Figure:
    """Draw one curve a run; curves differ in colour and dash."""
    figure = go.Figure(layout=base_layout(hovermode="x unified"))
    for index, (name, (steps, losses)) in enumerate(info.curves.items()):
        figure.add_scatter(
            x=list(steps),
            y=list(losses),
            name=name,
            mode="lines+markers" if len(steps) < 40 else "lines",
            line={"color": LINES[index % len(LINES)], "dash": DASHES[index // len(LINES) % len(DASHES)], "width": 2},
            marker={"size": 5},
            hovertemplate="%{y:.4f}",
        )
    figure.update_xaxes(title={"text": "step", "font": {"color": INK}})
    figure.update_yaxes(title={"text": "training loss (nats per token)"})
    return figure
