"""``lorascope sweep``: a grid of runs that survives everything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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

    from lorascope.cli._sweep import Watch, show_guesses, show_outcome
    from lorascope.sweeps import SweepSpec, run_sweep
    from lorascope.sweeps.executors import make_executor

    spec = SweepSpec.load(sweep)
    console = Console()
    if dry_run:
        show_guesses(console, spec)
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
    with Watch(progress) as watch:
        outcome = run_sweep(spec, out, executor=machines, retry=retry, on_event=watch)
    show_outcome(console, outcome)
    if outcome.failed:
        total = len(outcome.done) + len(outcome.failed)
        typer.secho(
            f"lorascope: {len(outcome.failed)} of {total} cells failed; their reasons are in the table; run the same "
            "command again to try them again",
            err=True,
            fg="red",
        )
        raise typer.Exit(1)
