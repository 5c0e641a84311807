"""``lorascope compare-inits``: does an initialisation help on your model and data, beyond noise?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare_inits_command(
    out: Annotated[
        Path, typer.Option(help="Folder of the runs and the page. The same command goes on where it stopped.")
    ],
    model: Annotated[str, typer.Option(help="Base model: smollm2 (embedded), a folder or a hub id.")] = "smollm2",
    task: Annotated[
        str, typer.Option(help="Known task, or a folder of your own rows with train, validation and test.")
    ] = "towns",
    data_dir: Annotated[str | None, typer.Option(help="Local folder with the rows of a known hub task.")] = None,
    methods: Annotated[
        str | None, typer.Option(help="Inits with commas between, or all. \\[default: eight; with --full all]")
    ] = None,
    rates: Annotated[
        str | None, typer.Option(help="Learning rates with commas between. \\[default: three, --full six]")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds to compare on. \\[default: 3; with --full 5]")] = None,
    tune_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the runs that choose learning rates. \\[default: all]")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="100 steps of 16 rows, all inits, six rates, five seeds: for a GPU.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE: another setting of every run, as in YAML; can be given several times."),
    ] = None,
    executor: Annotated[str, typer.Option(help="Where runs go: local, ray or slurm.")] = "local",
    workers: Annotated[int | None, typer.Option(min=1, help="Runs at a time.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the runs and a guess of their cost; run nothing.")
    ] = False,
    progress: Annotated[bool, typer.Option(help="Show the progress bar.")] = True,
) -> None:
    """Compare initialisations of LoRA, each at its own best learning rate.

    First every method is tuned over the learning rates on seeds of its own, by the loss of validation rows. Then each
    runs at its rate on other seeds, beside the default: loss after 1, 10, 30 (and 100) steps, accuracy, MIUB, perplexity
    of held-out text (forgetting) and the cost of the init, with paired intervals and a verdict: helped beyond noise, did
    not, undecided.

    Methods: PEFT's default, gaussian, orthogonal, pissa, olora, eva, corda, lora-ga; and fisher, fisher_batch,
    fisher_balanced, activation, gradient, natural_gradient, random, fisher_select, fisher_select_lowest, fisher_whitened.

    Writes OUT/inits.html, OUT/inits.csv (a row a run), OUT/inits.json. A run that fails is named, and the rest goes on.
    """
    from rich.console import Console

    from lorascope.cli._compare_inits import finish, settings_of
    from lorascope.cli._sweep import Watch, show_guesses
    from lorascope.core.errors import InputError
    from lorascope.sweeps.executors import make_executor
    from lorascope.sweeps.inits import compare_inits
    from lorascope.sweeps.inits_plan import full_plan, reduced_plan
    from lorascope.training.spec import INITS

    names = None
    if methods is not None:
        names = list(INITS) if methods.strip() == "all" else [name.strip() for name in methods.split(",")]
    numbers = None
    if rates is not None:
        try:
            numbers = [float(text) for text in rates.split(",")]
        except ValueError:
            raise InputError(f"--rates '{rates}' must be numbers with commas between, such as 3e-4,1e-3") from None
    make = full_plan if full else reduced_plan
    given = {} if seeds is None else {"seeds": seeds}
    plan = make(model, task, data_dir=data_dir, methods=names, rates=numbers, **given)
    plan.base.update(settings_of(set_ or ()))
    if tune_steps is not None:
        plan.tuning.update(max_steps=tune_steps, probe_steps=[tune_steps])
    console = Console()
    if dry_run:
        from lorascope.sweeps import SweepSpec

        cells = [*plan.tuning_sweep().cells, *plan.final_sweep(dict.fromkeys(plan.methods, plan.rates[0])).cells]
        show_guesses(console, SweepSpec(base=plan.base, cells=cells))
        return
    with Watch(progress) as watch:
        outcome = compare_inits(plan, out, executor=make_executor(executor, workers=workers), on_event=watch)
    finish(console, plan, outcome, out)
    if outcome.failed:
        typer.secho(
            f"lorascope: {len(outcome.failed)} runs failed; they are named on the page; run the same command to try again",
            err=True,
            fg="red",
        )
        raise typer.Exit(1)
