"""``lorascope quickstart``: the main job on the embedded model and data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lorascope.core.errors import InputError


def parse_ranks(text: str) -> list[int]:
    """Ranks from a comma-separated list.

    Raises:
        InputError: Something in it is not a positive whole number, or a rank is named twice.
    """
    try:
        ranks = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--ranks '{text}': give whole numbers with commas between, such as 4,16,64") from None
    if min(ranks) < 1 or len(set(ranks)) < len(ranks):
        raise InputError(f"--ranks '{text}': give different numbers of at least 1, such as 4,16,64")
    return ranks


def quickstart_command(
    out: Annotated[Path, typer.Option(help="Folder for runs, adapters and report.html.")] = Path("quickstart-out"),
    ranks: Annotated[str, typer.Option(help="LoRA ranks to train, with commas between.")] = "4,16,64",
    model: Annotated[str, typer.Option(help="Base model: smollm2 (embedded), a folder or a hub id.")] = "smollm2",
    task: Annotated[str, typer.Option(help="Task to learn: a known name or a path to your own rows.")] = "towns",
    steps: Annotated[int, typer.Option(min=1, help="Training steps of 16 rows.")] = 20,
    questions: Annotated[int, typer.Option(min=2, help="Test questions for the accuracy.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Seed; the same one gives the same numbers.")] = 0,
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
) -> None:
    """Train a few ranks, measure what each one learned, and write a report.

    The defaults use the embedded SmolLM2-135M and a task made from place names, need no network, and take about five
    minutes on two cores. Stop with Ctrl-C and run the same command again: it goes on where it was.
    """
    rank_list = parse_ranks(ranks)
    asked = {"model": model, "task": task, "steps": steps, "questions": questions, "seed": seed}

    from rich.console import Console

    from lorascope.cli._console import comparison, say_warnings
    from lorascope.measuring import load_model_and_tokenizer
    from lorascope.measuring.processes import device
    from lorascope.report import write_report
    from lorascope.results import RunRecord, RunStore
    from lorascope.training import RunSpec, run

    console = Console()
    store = RunStore(out)
    claim(out, asked)
    base_model: Any = None
    tokenizer: Any = None
    records: list[RunRecord] = []
    for rank in (0, *rank_list):
        name = f"rank-{rank}" if rank else "base"
        spec = RunSpec.from_mapping(
            {
                "preset": "quick",
                "model": model,
                "task": task,
                "rank": rank,
                "max_steps": steps,
                "seed": seed,
                "eval_limit": questions,
                "measure_limit": 48,
                "text_task": "sotu",
                "text_limit": 4,
            }
        )
        if store.is_done(name):
            console.print(f"[dim]{name}: done before[/dim]")
        else:
            console.print(f"[bold]{name}[/bold] ({len(records) + 1} of {len(rank_list) + 1})")
            if base_model is None:
                base_model, tokenizer = load_model_and_tokenizer(model, device=device())
        records.append(run(spec, store.path(name), model=base_model, tokenizer=tokenizer, progress=progress))
    report = write_report(records, out / "report.html", title=f"What LoRA learned on {task}")
    console.print(comparison(records, title=f"{model} on {task}: {questions} questions, {steps} steps, seed {seed}"))
    say_warnings(console, records)
    console.print(
        "Information is summed over the adapted layers, in nats. What it means is in the report:", style="dim"
    )
    console.print(f"report: {report}", soft_wrap=True, highlight=False, markup=False)


def claim(out: Path, asked: dict[str, Any]) -> None:
    """Make the output folder ours, or check that an earlier call with the same settings did.

    Raises:
        OutputError: The folder holds something else, or runs with other settings.
    """
    from lorascope.core.errors import OutputError
    from lorascope.core.files import atomic_write_text, require_empty_dir
    from lorascope.core.spec import dump_yaml, load_yaml

    path = out / "quickstart.yaml"
    if not path.is_file():
        require_empty_dir(out, remedy="choose another --out, or empty it")
        atomic_write_text(path, dump_yaml(asked))
        return
    found = load_yaml(path)
    for key, value in asked.items():
        if found.get(key) != value:
            raise OutputError(
                f"'{out}' holds a quickstart with {key} {found.get(key)!r}, not {value!r}: choose another --out, or give "
                f"the same --{key}"
            )
