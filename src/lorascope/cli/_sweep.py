"""What ``lorascope sweep`` shows: a bar over the cells, a line for each, and the table."""

from __future__ import annotations

from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from lorascope.cli._console import number
from lorascope.core.metrics import METRICS
from lorascope.sweeps import Event, SweepOutcome, SweepSpec

_COLUMNS = ("R", "D", "N", "accuracy", "ce", "miub_js", "seconds_total", "text_ppl", "mi_joint", "ppl")
"""Columns of the table on the terminal, the first ones that fit."""


class Watch:
    """A progress bar over the cells, and a line for each one that ends."""

    def __init__(self, progress: bool) -> None:
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("cells"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            disable=not progress,
            transient=True,
        )
        self._task: Any = None
        self._running: set[str] = set()
        self._seconds: list[float] = []

    def __enter__(self) -> Watch:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Show what happened."""
        if self._task is None:
            self._task = self._bar.add_task("cells", total=event.total, left="")
        if event.kind == "started":
            self._running.add(event.name)
        else:
            self._say(event)
        if event.kind in ("done", "failed", "waiting"):
            workers = max(1, len(self._running))
            self._running.discard(event.name)
            if event.seconds is not None:
                self._seconds.append(event.seconds)
            self._bar.update(self._task, left=self._left(event, workers))
        self._bar.update(self._task, completed=event.settled, total=event.total)

    def _say(self, event: Event) -> None:

        name, reason = escape(event.name), escape(event.reason)
        lines = {
            "before": f"[red]failed before[/red] {name}: {reason}" if reason else "",
            "done": f"[green]done[/green] {name}" + (f" in {event.seconds:.0f} s" if event.seconds is not None else ""),
            "failed": f"[red]failed[/red] {name}: {reason}",
            "stopping": "[yellow]stopping: cells save a checkpoint first; press Ctrl-C again to stop at once[/yellow]",
        }
        if lines.get(event.kind):
            self._console.print(lines[event.kind], highlight=False, soft_wrap=True)

    def _left(self, event: Event, workers: int) -> str:
        """Time left, from the mean of the cells so far."""
        if not self._seconds or event.settled >= event.total:
            return ""
        mean = sum(self._seconds) / len(self._seconds)
        return f"about {_duration(mean * (event.total - event.settled) / workers)} left"


def show_outcome(console: Console, outcome: SweepOutcome) -> None:
    """The table, one row a cell, with the columns that fit."""

    frame = outcome.table
    columns = [name for name in _COLUMNS if name in frame and frame[name].notna().any()]
    if frame["N"].nunique() < 2:
        columns = [name for name in columns if name != "N"]
    room = console.width - max(len(name) for name in frame["name"]) - 14
    columns = columns[: max(2, room // 12)]
    table = Table(title=escape(f"{len(frame)} cells"), title_justify="left", header_style="bold")
    table.add_column("cell", no_wrap=True)
    table.add_column("status", no_wrap=True)
    for name in columns:
        table.add_column(METRICS[name].label if name in METRICS else name, justify="right")
    for row in frame.to_dict("records"):
        values = [_value(row[name]) if row["status"] == "done" else "-" for name in columns]
        table.add_row(escape(str(row["name"])), str(row["status"]), *values)
    console.print(table)
    console.print(f"table: {outcome.table_path}", soft_wrap=True, highlight=False, markup=False)


def _value(value: Any) -> str:
    """A number of the table; a dash for what is not known."""

    if pd.isna(value):
        return "-"
    return f"{value:,}" if isinstance(value, int) else number(float(value))


def show_guesses(console: Console, spec: SweepSpec) -> None:
    """The cells, and what they may cost."""

    from lorascope.sweeps.guess import guess_costs  # the only one that needs torch here

    guesses = guess_costs(spec.expand())
    table = Table(title=f"{len(guesses)} cells", title_justify="left", header_style="bold")
    for name in ("cell", "N", "steps", "TFLOP", "guessed time"):
        table.add_column(name, justify="left" if name == "cell" else "right", no_wrap=name != "cell", overflow="fold")
    for guess in guesses:
        table.add_row(
            escape(guess.name),
            f"{guess.parameters:,}",
            str(guess.steps),
            number(guess.flops / 1e12),
            _duration(guess.seconds),
        )
    console.print(table)
    seconds = sum(guess.seconds for guess in guesses)
    console.print(
        f"{len(guesses)} cells, {number(sum(guess.flops for guess in guesses) / 1e12)} TFLOP: a guess of "
        f"{_duration(seconds)} on this machine, one cell at a time. It counts 4 N operations a token in training and 2 N in "
        "evaluation, at half of the speed of a matrix product here; loading and measuring come on top.",
        highlight=False,
    )


def _duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 1 else "<1 s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
