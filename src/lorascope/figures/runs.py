"""Runs side by side: a metric and the accuracy against rank, and the loss while training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from lorascope.core.errors import InputError
from lorascope.core.metrics import METRICS
from lorascope.figures.finite import number
from lorascope.figures.style import DASHES, LINES, MARKS, base_layout, label_of, safe, short


@dataclass(frozen=True)
class RankSeries:
    """Runs that differ in rank (and seed) only, rising in rank.

    Attributes:
        name: What the runs share; empty if there is nothing to tell apart.
        ranks: Each rank once; 0 is the base model without an adapter.
        values: The metric at each rank, averaged over the runs of that rank; None where unknown.
        accuracy: Accuracy in [0, 1] likewise.
        accuracy_error: Standard error of the accuracy at each rank; None where unknown or where runs were averaged.
        runs: Number of runs at each rank.
    """

    name: str
    ranks: tuple[int, ...]
    values: tuple[float | None, ...]
    accuracy: tuple[float | None, ...]
    accuracy_error: tuple[float | None, ...]
    runs: tuple[int, ...]


@dataclass(frozen=True)
class MetricAgainstRankInfo:
    """A metric and the accuracy against rank.

    Attributes:
        metric: Name of the metric.
        label: Its label with unit.
        series: One for each group of comparable runs.
    """

    metric: str
    label: str
    series: tuple[RankSeries, ...]

    @property
    def ranks(self) -> tuple[int, ...]:
        """All ranks that occur, rising."""
        return tuple(sorted({rank for line in self.series for rank in line.ranks}))


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
        rows: One mapping a run with ``rank`` (0 for the base), the metrics, and optionally ``group`` (runs of one group
            are joined by a line), ``accuracy`` and ``accuracy_se`` (its standard error).
        metric: Name of the metric.

    Returns:
        One series a group, of the runs that have a rank and either number.

    Raises:
        InputError: No run with a rank has a finite value of that metric.

    Example:
        >>> metric_against_rank_info([{"rank": 16, "ce": 2.0}, {"rank": 4, "ce": 3.0}], "ce").series[0].values
        (3.0, 2.0)
    """
    ranked = [row for row in rows if isinstance(row.get("rank"), int)]
    if not any(number(row.get(metric)) is not None for row in ranked):
        raise InputError(f"no run with a rank has a value of '{metric}': measure it first")
    groups: dict[str, dict[int, list[Mapping[str, Any]]]] = {}
    for row in sorted(ranked, key=lambda row: row["rank"]):
        if number(row.get(metric)) is not None or number(row.get("accuracy")) is not None:
            groups.setdefault(str(row.get("group", "")), {}).setdefault(row["rank"], []).append(row)
    series = tuple(
        RankSeries(
            name=name,
            ranks=tuple(places),
            values=tuple(_mean(runs, metric) for runs in places.values()),
            accuracy=tuple(_mean(runs, "accuracy") for runs in places.values()),
            accuracy_error=tuple(
                number(runs[0].get("accuracy_se")) if len(runs) == 1 else None for runs in places.values()
            ),
            runs=tuple(len(runs) for runs in places.values()),
        )
        for name, places in groups.items()
    )
    return MetricAgainstRankInfo(metric=metric, label=label_of(metric), series=series)


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [value for row in rows if (value := number(row.get(name))) is not None]
    return sum(values) / len(values) if values else None


def plot_metric_against_rank(info: MetricAgainstRankInfo) -> go.Figure:
    """Draw the metric above and the accuracy, with one standard error, below it over the same ranks."""
    # Ranks are places on a category axis: even spacing for 4, 16, 64, and a place for the base.
    with_accuracy = info.metric != "accuracy" and any(
        value is not None for line in info.series for value in line.accuracy
    )
    named = any(line.name for line in info.series)
    layout = base_layout(showlegend=named, height=480 if with_accuracy else 320)
    figure = go.Figure(layout=layout)
    for index, line in enumerate(info.series):
        color, mark = LINES[index % len(LINES)], MARKS[index % len(MARKS)]
        places = [_place(rank) for rank in line.ranks]
        shared = {
            "x": places,
            "mode": "lines+markers",
            "name": short(line.name, 60),
            "legendgroup": str(index),
            "marker": {"size": 9, "symbol": mark, "color": color},
        }
        figure.add_scatter(
            **shared,
            y=list(line.values),
            line={"color": color, "width": 2},
            error_y=_error(line.accuracy_error, color) if info.metric == "accuracy" else None,
            hovertemplate="%{x}: %{y:.5g}<extra></extra>",
        )
        if with_accuracy:
            accent = color if named else LINES[1]
            figure.add_scatter(
                **{**shared, "marker": {"size": 9, "symbol": mark if named else MARKS[1], "color": accent}},
                y=list(line.accuracy),
                error_y=_error(line.accuracy_error, accent),
                yaxis="y2",
                showlegend=False,
                line={"color": accent, "width": 2},
                hovertemplate="%{x}: %{y:.1%}<extra></extra>",
            )
    known = METRICS.get(info.metric)
    tickformat = ".0%" if known is not None and known.unit == "fraction" else None
    figure.update_yaxes(title={"text": safe(info.label)}, tickformat=tickformat)
    figure.update_xaxes(
        type="category",
        categoryorder="array",
        categoryarray=[_place(rank) for rank in info.ranks],
        title={"text": "rank"},
    )
    if with_accuracy:
        title = {"text": METRICS["accuracy"].label}
        second = {**layout.yaxis.to_plotly_json(), "domain": [0.0, 0.45], "title": title, "tickformat": ".0%"}
        figure.update_layout(yaxis={"domain": [0.55, 1.0]}, yaxis2=second, xaxis={"anchor": "y2"})
    return figure


def _place(rank: int) -> str:
    return "base" if rank == 0 else str(rank)


def _error(errors: Sequence[float | None], color: str) -> dict[str, Any]:
    return {"array": [error or 0.0 for error in errors], "thickness": 1.2, "width": 4, "color": color}


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
            name=short(name),
            mode="lines+markers" if len(steps) < 40 else "lines",
            line={"color": LINES[index % len(LINES)], "dash": DASHES[index // len(LINES) % len(DASHES)], "width": 2},
            marker={"size": 5},
            hovertemplate="%{y:.4f}",
        )
    figure.update_xaxes(title={"text": "step"})
    figure.update_yaxes(title={"text": "training loss (nats per token)"})
    return figure
