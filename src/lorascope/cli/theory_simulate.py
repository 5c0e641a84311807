"""``lorascope theory simulate``: the same model at finite d, beside what the theory says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorascope.cli import _theory_options as options

if TYPE_CHECKING:
    from lorascope.theory.points import SimulationPoint

_TRAINING = "Training"


def simulate_command(
    stage: Annotated[
        str, typer.Option(help="pipeline (both), pretrain, or finetune (LoRA on a made-up residual).")
    ] = "pipeline",
    alpha: options.Alpha = 0.3,
    tokens: options.Tokens = 2,
    kappa0: options.Kappa0 = 0.5,
    noise: options.Noise = 0.5,
    ridge: options.Ridge = 0.03,
    penalty: options.Penalty = "nuclear",
    activation: options.Activation = "linear",
    alpha_finetune: options.Sequences = 3.0,
    ridge_finetune: Annotated[float, typer.Option(help="LoRA ridge lambda'.", rich_help_panel="Stage 2: LoRA")] = 0.5,
    residual: Annotated[
        float, typer.Option(help="Noise of the residual, with --stage finetune.", rich_help_panel="Stage 2: LoRA")
    ] = 0.7,
    data: options.Kinds = "fresh",
    fraction: options.Fraction = 0.1,
    largest: options.Largest = False,
    rank: Annotated[int, typer.Option(help="Columns of the update.", rich_help_panel="Stage 2: LoRA")] = 1,
    over: Annotated[str | None, typer.Option(help="A setting that runs, such as ridge or alpha-finetune.")] = None,
    values: Annotated[str | None, typer.Option(metavar="A,B,C|FROM:TO:COUNT", help="Its values.")] = None,
    dim: Annotated[int, typer.Option(help="d.")] = 100,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds; standard errors need two.")] = 8,
    first_seed: Annotated[int, typer.Option(min=0, help="The first of them.")] = 0,
    start: Annotated[
        str,
        typer.Option(
            help="Of LoRA: informed (at the target, what the theory describes), random, spectral, best.",
            rich_help_panel=_TRAINING,
        ),
    ] = "informed",
    starts: Annotated[int, typer.Option(min=1, help="Random starts.", rich_help_panel=_TRAINING)] = 4,
    optimiser: Annotated[
        str,
        typer.Option(help="exact (the minimiser) or adam (factors trained as in practice).", rich_help_panel=_TRAINING),
    ] = "exact",
    factors: Annotated[
        str,
        typer.Option(
            help="Adam: lora (B A, B starts at zero) or tied (W W^T, the theory's).", rich_help_panel=_TRAINING
        ),
    ] = "lora",
    rate: Annotated[float, typer.Option(help="Adam: learning rate.", rich_help_panel=_TRAINING)] = 0.05,
    steps: Annotated[int, typer.Option(help="Adam: updates of each stage.", rich_help_panel=_TRAINING)] = 1000,
    batch: Annotated[
        int | None, typer.Option(help="Adam: sequences in a minibatch; left out: all.", rich_help_panel=_TRAINING)
    ] = None,
    kappa: Annotated[
        float, typer.Option(help="Adam: columns of the pre-training factor over d.", rich_help_panel=_TRAINING)
    ] = 1.0,
    solve_first: Annotated[
        bool, typer.Option("--solve-first", help="Adam trains LoRA only.", rich_help_panel=_TRAINING)
    ] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.", rich_help_panel=_TRAINING)] = "cpu",
    dtype: Annotated[str, typer.Option(help="float64 or float32.", rich_help_panel=_TRAINING)] = "float64",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for simulation.json (for --points) and simulation.csv.", rich_help_panel="Output"),
    ] = None,
    as_json: options.AsJson = False,
    progress: options.Progress = True,
) -> None:
    """Simulate the model at finite d, and set each number beside the theory's.

    A deviation counts as fine up to three standard errors plus the share 3.4/d of the
    theory's value, the leading effect of a finite d. With --optimiser
    adam both stages are trained as in practice, which shows where practice leaves the theory.

    Example: lorascope theory simulate --dim 100 --seeds 8 --over ridge --values 0.01,0.1,0.4 --out points
    """
    import json

    from rich.console import Console
    from tqdm.auto import tqdm

    from lorascope.cli._theory import numbers, words
    from lorascope.core.errors import InputError, unknown_name
    from lorascope.simulation import Adam, keep_pretrained
    from lorascope.theory.points import save_points, write_points_csv

    if optimiser not in ("exact", "adam"):
        raise unknown_name("optimiser", optimiser, ("exact", "adam"))
    if (over is None) != (values is None):
        raise InputError("--over and --values belong together: give both or neither")
    adam = None
    if optimiser == "adam":
        adam = Adam(factors=factors, rate=rate, steps=steps, batch=batch, kappa=kappa)
    first: dict[str, Any] = {"alpha": alpha, "tokens": tokens, "kappa0": kappa0, "noise": noise, "ridge": ridge}
    first |= {"penalty": penalty, "activation": activation}
    common: dict[str, Any] = {"dim": dim, "seeds": list(range(first_seed, first_seed + seeds)), "device": device}
    common |= {"dtype": dtype, "optimiser": adam, "progress": progress and over is None}
    update: dict[str, Any] = {"rank": rank, "start": start, "starts": starts}
    if stage == "pretrain":
        given = {**first, **common}
    elif stage == "finetune":
        given = {"alpha": alpha_finetune, "tokens": tokens, "ridge": ridge_finetune, "noise": residual}
        given |= {**update, **common}
    elif stage == "pipeline":
        given = {**first, "alpha_finetune": alpha_finetune, "ridge_finetune": ridge_finetune, "data": words(data)}
        given |= {**update, **common, "fraction": fraction, "largest": largest, "solve_first": solve_first}
    else:
        raise unknown_name("stage", stage, ("pipeline", "pretrain", "finetune"))
    name = None if over is None else over.replace("-", "_")
    if name is not None and not isinstance(given.get(name), float):
        known = sorted(key for key, value in given.items() if isinstance(value, float) and key != "rate")
        raise unknown_name("over", str(over), known)
    places = [None] if values is None else numbers("--values", values)
    made: list[SimulationPoint] = []
    with keep_pretrained():
        for place in tqdm(places, desc="simulations", unit="point", disable=not progress or len(places) < 2):
            made += _simulate(stage, given if name is None or place is None else {**given, name: place})
    if as_json:
        typer.echo(json.dumps([point.to_dict() for point in made], allow_nan=False, ensure_ascii=False, indent=2))
    else:
        console = Console()
        for point in made:
            console.print(beside_theory(point, name))
            for note in point.notes:
                console.print(f"[yellow]note:[/yellow] {note}", highlight=False)
    if out is not None:
        place_json = save_points(made, out / "simulation.json")
        write_points_csv(made, out / "simulation.csv")
        if not as_json:
            console.print(f"points: {place_json}", soft_wrap=True, highlight=False, markup=False)


def _simulate(stage: str, given: dict[str, Any]) -> list[SimulationPoint]:
    from lorascope.simulation import simulate_finetune, simulate_pipeline, simulate_pretrain

    if stage == "pretrain":
        return [simulate_pretrain(**given)]
    return [simulate_finetune(**given)] if stage == "finetune" else simulate_pipeline(**given)


def beside_theory(point: SimulationPoint, over: str | None = None) -> Any:
    """A table of a simulation: mean, standard error, the theory's value and whether they agree."""
    from rich.markup import escape
    from rich.table import Table

    from lorascope.cli._console import number
    from lorascope.theory.comparison import compare

    kind = str(point.settings.get("data", point.stage))
    title = f"{kind}, d = {point.dim}, {point.seeds} seeds, {point.seconds:.1f} s"
    if over is not None and over in point.settings:
        title = f"{over} {point.settings[over]:.4g}: {title}"
    rows, words = compare(point)
    table = Table(title=escape(title), title_justify="left", header_style="bold")
    for column in ("quantity", "simulated", "standard error", "theory", "difference", "allowed", ""):
        table.add_column(column, justify="left" if column == "quantity" else "right", no_wrap=True)
    for row in rows:
        verdict = "" if row.within is None else "[green]within[/green]" if row.within else "[red]off[/red]"
        cells = (row.simulated, row.error, row.theory, row.difference, row.allowed)
        table.add_row(row.quantity, *map(number, cells), verdict)
    if words:
        table.caption = escape("; ".join(words))
    return table
