"""``lorascope sweep``: a grid of runs that survives everything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from lorascope.sweeps import Event, SweepOutcome, SweepSpec

_COLUMNS = ("R", "D", "N", "accuracy", "ce", "miub_js", "text_ppl", "seconds_total", "mi_joint", "ppl")
"""Columns of the table on the terminal, the first ones that fit."""


def sweep_command(
    sweep: Annotated[Path, typer.Argument(help="YAML file with base, grid and cells; see above.")],
    out: Annotated[Path, typer.Option(help="Folder of the sweep. The same command goes on where it stopped.")],
    executor: Annotated[str, typer.Option(help="Where cells run: local, ray or slurm.")] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Cells at a time. \\[default: one a GPU, else one a core with 4 GiB]")
    ] = None,
    retry: Annotated[bool, typer.Option(help="Try cells again that failed in an earlier call.")] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the cells, their N and a guess of the cost; run nothing.")
    ] = False,
    cpus: Annotated[int | None, typer.Option(min=1, help="ray, slurm: processors a cell.")] = None,
    gpus: Annotated[float | None, typer.Option(min=0, help="ray, slurm: GPUs a cell.")] = None,
    memory: Annotated[float | None, typer.Option(min=0, help="ray, slurm: GiB of memory a cell.")] = None,
    address: Annotated[
        str | None, typer.Option(help="ray: of a cluster, such as auto. \\[default: Ray on this machine]")
    ] = None,
    max_retries: Annotated[
        int | None, typer.Option(min=0, help="ray: new starts of a cell whose worker died. \\[default: 3]")
    ] = None,
    cluster: Annotated[str | None, typer.Option(help="slurm: slurm, or local and debug to try it out.")] = None,
    partition: Annotated[str | None, typer.Option(help="slurm: partition.")] = None,
    minutes: Annotated[int | None, typer.Option(min=1, help="slurm: time limit of a cell. \\[default: 240]")] = None,
    progress: Annotated[bool, typer.Option(help="Show the progress bar.")] = True,
) -> None:
    """Run a grid of runs; stop it, kill it, run it again: nothing is lost.

    An example of sweep.yaml (settings are those of  lorascope train  in a YAML file):

    \b
        base:
          model: smollm2
          task: towns
          preset: quick
        grid:
          rank: [0, 4, 16, 64]      # 0 is the base model, once for all seeds
          train_limit: [100, 300]
          seed: [0, 1, 2]
        cells:                      # single runs beside the grid
          - {rank: 16, use_dora: true}

    Each cell is a run of its own in OUT/runs, with its record.

    The table is OUT/table.csv (and table.parquet), written after every cell.

    Cells that are done are kept; an interrupted one goes on from its last checkpoint.

    A cell that fails is recorded with its reason, and the rest goes on.

    A grid can grow: add values, and run it again. Several commands can share a folder.

    Exit code: 0 if all cells are done, 1 if some failed (a last line says how many), 2 if the
    sweep or an option is wrong, 130 after Ctrl-C.
    """
    from rich.console import Console

    from lorascope.sweeps import SweepSpec, run_sweep
    from lorascope.sweeps.executors import make_executor

    spec = SweepSpec.load(sweep)
    console = Console()
    if dry_run:
        _dry_run(console, spec, workers or 1)
        return
    whole = int(gpus) if gpus is not None and gpus == int(gpus) else gpus
    machines = make_executor(
        executor,
        workers=workers,
        cpus=cpus,
        gpus=whole,
        memory=memory,
        address=address,
        max_retries=max_retries,
        cluster=cluster,
        partition=partition,
        minutes=minutes,
    )
    with _Watch(progress) as watch:
        outcome = run_sweep(spec, out, executor=machines, retry=retry, on_event=watch)
    _show(console, outcome)
    if outcome.failed:
        total = len(outcome.done) + len(outcome.failed)
        typer.secho(
            f"lorascope: {len(outcome.failed)} of {total} cells failed; their reasons are in the table; run the same "
            "command again to try them again",
            err=True,
            fg="red",
        )
        raise typer.Exit(1)


class _Watch:
    """A progress bar over the cells, and a line for each one that ends."""

    def __init__(self, progress: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

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

    def __enter__(self) -> _Watch:
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
        from rich.markup import escape

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


def _show(console: Console, outcome: SweepOutcome) -> None:
    """The table, one row a cell, with the columns that fit."""
    from rich.markup import escape
    from rich.table import Table

    from lorascope.core.metrics import METRICS

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
    import pandas as pd

    from lorascope.cli._console import number

    if pd.isna(value):
        return "-"
    return f"{value:,}" if isinstance(value, int) else number(float(value))


def _dry_run(console: Console, spec: SweepSpec, workers: int) -> None:
    """The cells, and what they may cost."""
    from rich.markup import escape
    from rich.table import Table

    from lorascope.cli._console import number
    from lorascope.sweeps.guess import guess_costs

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
