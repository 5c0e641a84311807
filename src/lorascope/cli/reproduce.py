"""``lorascope reproduce``: the paper's experiments, tables, figures and claims on a user's own models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_REDUCED = (
    "Reduced form: {model} on {task}, ranks 4, 16 and 64 in place of 32, 128 and 512, 20 training steps of 16 rows, "
    "100 questions scored and 32 rows measured, {seeds} along ranks, training sizes and shared layers and one seed for "
    "prompts and lengths. {lengths} Orderings can be compared with the paper's, values cannot."
)
_FULL = (
    "Full form: ranks 32, 128 and 512, shared layers in groups of 8, 4 and 2, prompts 1 to 3, length bins of 100 tokens, "
    "Adam 4e-5 with batches of 32 and one pass over the data, {seeds} seeds, on {tasks}; models: {models}."
)


def reproduce_command(
    out: Annotated[
        Path, typer.Option(help="Folder of the runs and the page. The same command goes on where it stopped.")
    ],
    model: Annotated[
        list[str] | None, typer.Option(help="Base model; in full form several can be given. \\[default: smollm2]")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="Task; in full form several. \\[default: towns; in full form the paper's five]"),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="TASK=FOLDER with the rows of a hub task; can be given several times.")
    ] = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="The paper's whole grid: days on a GPU for a model of billions of parameters."),
    ] = False,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds. \\[default: 2; in full form 3]")] = None,
    first_seed: Annotated[
        int,
        typer.Option(min=0, help="The first seed; runs of other seeds can be joined with earlier ones."),
    ] = 0,
    executor: Annotated[str, typer.Option(help="Where cells run: local, ray or slurm.")] = "local",
    workers: Annotated[int | None, typer.Option(min=1, help="Cells at a time.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the cells and run nothing.")] = False,
    progress: Annotated[bool, typer.Option(help="Show the progress bar.")] = True,
) -> None:
    """Run the experiments of arXiv 2501.03152 on your models, and judge its claims by them.

    Without options: a reduced form on the embedded model that takes about half an hour on two cores. With --full: the
    paper's own grid. Writes OUT/paper.html (Tables 1 to 3, Figures 2 and 3, every claim with its verdict), the tables as
    CSV, the figures as SVG, and OUT/claims.json. Stop it with Ctrl-C and run it again: finished cells are kept.
    """
    from rich.console import Console

    from lorascope.cli._sweep import Watch
    from lorascope.cli.claims import make_ledger, show_ledger
    from lorascope.core.errors import InputError
    from lorascope.core.files import atomic_write_text, write_json
    from lorascope.core.provenance import collect
    from lorascope.report.page import write_page
    from lorascope.report.paper import paper_figures, paper_sections, paper_tables
    from lorascope.scaling import read_table
    from lorascope.sweeps import run_sweep
    from lorascope.sweeps.executors import make_executor
    from lorascope.sweeps.paper import TASKS, full_sweep, reduced_sweep

    folders = dict(_pair(text) for text in data or ())
    models = model or ["smollm2"]
    if full:
        tasks, count = task or list(TASKS), seeds or 3
        sweep = full_sweep(models, tasks, seeds=count, first_seed=first_seed, data=folders)
        label = _FULL.format(seeds=count, tasks=", ".join(tasks), models=", ".join(models))
    else:
        tasks, count = task or ["towns"], seeds or 2
        if len(models) > 1 or len(tasks) > 1:
            raise InputError("the reduced form takes one --model and one --task: add --full for several")
        bins = _length_bins(models[0], tasks[0], folders.get(tasks[0]))
        sweep = reduced_sweep(
            models[0],
            tasks[0],
            seeds=count,
            first_seed=first_seed,
            lengths=bins,
            data_dir=folders.get(tasks[0]),
        )
        label = _REDUCED.format(
            model=models[0],
            task=tasks[0],
            seeds=f"{count} seed{'s' if count > 1 else ''} ({first_seed} to {first_seed + count - 1})",
            lengths=_lengths_said(bins),
        )
    unknown = [name for name in folders if name not in tasks]
    if unknown:
        raise InputError(f"--data names task '{unknown[0]}', which is not run: add --task {unknown[0]}")
    console = Console()
    if dry_run:
        for cell in sweep.expand():
            console.print(cell.name, highlight=False, markup=False)
        return
    with Watch(progress) as watch:
        outcome = run_sweep(sweep, out, executor=make_executor(executor, workers=workers), on_event=watch)
    table = read_table(out)
    ledger = make_ledger(str(out), n_boot=10_000, seed=0)
    write_json(out / "claims.json", ledger)
    for name, frame in paper_tables(table).items():
        atomic_write_text(out / f"{name}.csv", frame.to_csv())
    for name, drawing in paper_figures(table).items():
        atomic_write_text(out / f"{name}.svg", drawing)
    page = write_page(
        out / "paper.html",
        paper_sections(table, ledger, label=label),
        title="arXiv 2501.03152 on your own runs",
        headline=label,
        provenance=collect(seed=0),
    )
    show_ledger(console, ledger)
    console.print(f"page: {page}", soft_wrap=True, highlight=False, markup=False)
    if outcome.failed:
        typer.secho(
            f"lorascope: {len(outcome.failed)} cells failed; run the same command to try again", err=True, fg="red"
        )
        raise typer.Exit(1)


def _length_bins(model: str, task: str, data_dir: str | None) -> list[tuple[int, int]]:
    from lorascope.tasks import length_bins, load_task
    from lorascope.tasks.embedded import load_tokenizer

    return length_bins(load_task(task, data_dir=data_dir), load_tokenizer(model))


def _lengths_said(bins: list[tuple[int, int]]) -> str:
    if not bins:
        return "The paper's length bins are left out, since the prompts are all about as long."
    ends = ", ".join(f"{low} to {high}" for low, high in bins)
    return f"Length bins are {ends} tokens in place of 1 to 100, 101 to 200, 201 to 300."


def _pair(text: str) -> tuple[str, str]:
    from lorascope.core.errors import InputError

    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise InputError(f"--data '{text}': give TASK=FOLDER, such as arc_easy=data/arc_easy")
    return name, str(Path(folder).resolve())
