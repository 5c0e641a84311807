"""Initialisations against the default: gains with their intervals, and losses along the way. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from lorascope.core.errors import InputError
from lorascope.figures.finite import number
from lorascope.figures.style import GRID, INK, LINES, MARKS, base_layout, safe, short

_COLOURS = {"yes": LINES[2], "no": LINES[6], "undecided": INK}


@dataclass(frozen=True)
class GainsInfo:
    """How much better than the default each method is, best first.

    Attributes:
        label: What is compared, in words.
        methods: Their names.
        gains: Mean over seeds, positive where the method is better.
        lows: Lower ends of the intervals; None where there is none.
        highs: Upper ends.
        helped: ``yes``, ``no`` or ``undecided``.
    """

    label: str
    methods: tuple[str, ...]
    gains: tuple[float, ...]
    lows: tuple[float | None, ...]
    highs: tuple[float | None, ...]
    helped: tuple[str, ...]


@dataclass(frozen=True)
class StepsInfo:
    """Mean held-out loss of each method after some steps.

    Attributes:
        steps: Rising.
        curves: Method -> loss at each step, None where unknown; nats a token.
    """

    steps: tuple[int, ...]
    curves: dict[str, tuple[float | None, ...]]


def gains_info(rows: Sequence[Mapping[str, Any]], metric: str, *, label: str | None = None) -> GainsInfo:
    """Compute what a figure of gains shows.

    Args:
        rows: One mapping a method and metric with ``method``, ``metric``, ``better`` (``higher`` or ``lower``),
            ``difference``, ``low``, ``high`` and ``helped``, as `lorascope.sweeps.summarise_inits` makes them.
        metric: Which one.
        label: In words; default: the name.

    Raises:
        InputError: No method has a difference in that metric.

    Example:
        >>> row = {"method": "eva", "metric": "ce", "better": "lower", "difference": -0.2, "low": -0.3, "high": -0.1}
        >>> gains_info([{**row, "helped": "yes"}], "ce").lows
        (0.1,)
    """
    found = []
    for row in rows:
        gap = number(row.get("difference"))
        if row.get("metric") != metric or gap is None:
            continue
        low, high = number(row.get("low")), number(row.get("high"))
        if row["better"] == "lower":
            gap, low, high = -gap, None if high is None else -high, None if low is None else -low
        found.append((gap, str(row["method"]), low, high, str(row.get("helped", ""))))
    if not found:
        raise InputError(f"no method has a difference in '{metric}': compare at least two methods")
    found.sort(key=lambda item: -item[0])
    gains, methods, lows, highs, helped = zip(*found, strict=True)
    return GainsInfo(label or metric, methods, gains, lows, highs, helped)


def plot_gains(info: GainsInfo) -> go.Figure:
    """Draw one line a method with its interval; right of 0 is better than the default."""
    figure = go.Figure(layout=base_layout(height=120 + 30 * len(info.methods), showlegend=False))
    for method, gain, low, high, helped in zip(
        info.methods, info.gains, info.lows, info.highs, info.helped, strict=True
    ):
        colour = _COLOURS.get(helped, INK)
        error = None
        if low is not None and high is not None:
            error = {
                "array": [high - gain],
                "arrayminus": [gain - low],
                "thickness": 1.6,
                "width": 5,
                "color": colour,
                "symmetric": False,
            }
        figure.add_scatter(
            x=[gain],
            y=[short(method)],
            error_x=error,
            mode="markers",
            marker={"size": 10, "color": colour},
            hovertemplate=f"{safe(method)}: %{{x:.4g}}, helped: {safe(helped)}<extra></extra>",
        )
    figure.add_vline(x=0, line={"color": GRID, "width": 2})
    figure.update_xaxes(title={"text": safe(f"{info.label}: better than the default by")})
    figure.update_yaxes(autorange="reversed", type="category")
    return figure


def steps_info(means: Mapping[str, Mapping[int, float]]) -> StepsInfo:
    """Compute what a figure of losses after some steps shows.

    Args:
        means: Method -> step -> mean loss.

    Raises:
        InputError: No method has a loss.

    Example:
        >>> steps_info({"default": {1: 3.0, 10: 2.0}, "eva": {10: 1.5}}).curves["eva"]
        (None, 1.5)
    """
    steps = tuple(sorted({step for losses in means.values() for step in losses}))
    if not steps:
        raise InputError("no method has a held-out loss: set probe_steps")
    return StepsInfo(steps, {m: tuple(number(losses.get(step)) for step in steps) for m, losses in means.items()})


def plot_steps(info: StepsInfo) -> go.Figure:
    """Draw one curve a method; steps are evenly spaced places."""
    figure = go.Figure(layout=base_layout(height=420, hovermode="x unified"))
    places = [str(step) for step in info.steps]
    for index, (method, losses) in enumerate(info.curves.items()):
        figure.add_scatter(
            x=places,
            y=list(losses),
            name=short(method),
            mode="lines+markers",
            line={
                "color": LINES[index % len(LINES)],
                "width": 3 if method == "default" else 1.8,
                "dash": "dash" if method == "default" else "solid",
            },
            marker={"size": 8, "symbol": MARKS[index % len(MARKS)]},
            hovertemplate="%{y:.4f}",
        )
    figure.update_xaxes(type="category", title={"text": "optimiser steps"})
    figure.update_yaxes(title={"text": "validation loss (nats per token)"})
    return figure
