"""``lorascope theory bridge``: where a real model follows the theory's shape, and where it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bridge_command(
    out: Annotated[
        Path, typer.Option(help="Folder of the runs and the page. The same command goes on where it stopped.")
    ],
    model: Annotated[str, typer.Option(help="Base model: smollm2 (embedded), a folder or a hub id.")] = "smollm2",
    task: Annotated[str, typer.Option(help="A multiple-choice task, or a folder of your own rows.")] = "towns",
    rank: Annotated[int, typer.Option(help="Rank of every adapter.")] = 4,
    sizes: Annotated[str, typer.Option(help="Training rows of the runs, with commas between.")] = "16,48,120,320",
    seeds: Annotated[int, typer.Option(help="Runs of each size.")] = 2,
    steps: Annotated[int, typer.Option(help="Optimiser steps of 16 rows, the same for all sizes.")] = 20,
    reference_rows: Annotated[int, typer.Option(help="Rows of the largest run.")] = 960,
    reference_steps: Annotated[int, typer.Option(help="Steps of the largest run.")] = 60,
    questions: Annotated[int, typer.Option(help="Test questions, the same for all runs.")] = 160,
    tokens: Annotated[int, typer.Option(help="T of the theory's curve.")] = 2,
    ridge: Annotated[float, typer.Option(help="lambda' of the theory's curve.")] = 0.1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the runs; run nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")] = False,
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
) -> None:
    """Train LoRA on several amounts of data and lay alignment and error beside the theory's curve.

    The run with the most data stands in for the theory's target. Overlap of the runs' subspaces with its subspaces (chance
    level beside it), distance of their logits to its logits, accuracy and cross-entropy are measured; the theory's curve is
    drawn at the noise that the frozen model shows. The page says where the shape holds and where it does not.

    Writes OUT/bridge.html, OUT/bridge.json, OUT/bridge.csv (a row a run). More sizes and seeds can be added later.
    """
    import json

    from rich.console import Console

    from lorascope.bridge import BridgePlan, bridge, check_curve
    from lorascope.core.errors import InputError

    if seeds < 1:
        raise InputError(f"--seeds {seeds} must be at least 1")
    plan = BridgePlan(
        model=model,
        task=task,
        rank=rank,
        sizes=_numbers(sizes),
        seeds=tuple(range(seeds)),
        steps=steps,
        reference_rows=reference_rows,
        reference_steps=reference_steps,
        questions=questions,
    )
    check_curve(plan, tokens, ridge)
    console = Console()
    if dry_run:
        for name, spec in plan.runs():
            console.print(f"{name}: {spec.train_limit} rows, {spec.max_steps} steps, seed {spec.seed}", highlight=False)
        return
    result = bridge(plan, out, tokens=tokens, ridge=ridge, progress=progress)
    facts = result.to_dict()
    paths = write_bridge(facts, out)
    if as_json:
        print(json.dumps(facts, allow_nan=False))  # noqa: T201 - the answer itself
        return
    from rich.markup import escape

    for line in result.findings:
        console.print(f"- {escape(line)}", highlight=False)
    for note in result.warnings:
        console.print(f"[yellow]note:[/yellow] {escape(note)}", highlight=False)
    for path in paths:
        console.print(str(path), highlight=False, soft_wrap=True)


def write_bridge(facts: dict[str, object], out: Path) -> list[Path]:
    """Write page, record and table of a bridge.

    Args:
        facts: What `BridgeResult.to_dict` makes.
        out: Folder.

    Returns:
        Their paths, the page first.

    Raises:
        OutputError: The place cannot be written.
    """
    from lorascope.bridge.result import BridgeResult
    from lorascope.core.files import atomic_write_text
    from lorascope.report.bridge import bridge_sections
    from lorascope.report.page import write_page

    result = BridgeResult.from_dict(facts)
    record, table = out / "bridge.json", out / "bridge.csv"
    result.save(record)
    atomic_write_text(table, result.table().to_csv(index=False))
    page = write_page(
        out / "bridge.html",
        bridge_sections(facts),
        title="The theory beside a real model",
        headline=result.findings[0],
        provenance=result.provenance,
    )
    return [page, record, table]


def _numbers(text: str) -> tuple[int, ...]:
    from lorascope.core.errors import InputError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--sizes '{text}' must be whole numbers with commas between, such as 16,64,256") from None
