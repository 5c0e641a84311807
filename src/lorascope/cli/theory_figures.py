"""``lorascope theory figures``: the preset figures as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorascope.cli import _theory_options as options


def figures_command(
    out: Annotated[Path, typer.Option(help="Folder for theory.html and theory_figures.json.")] = Path(
        "lorascope-theory"
    ),
    only: Annotated[str | None, typer.Option(help="Names of presets, with commas between; see --list.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the presets and stop.")] = False,
    count: Annotated[int, typer.Option(min=3, help="Points of a curve.")] = 25,
    samples: Annotated[int, typer.Option(help="Quasi-random points of stage 2, a power of two.")] = 2**12,
    points: Annotated[
        Path | None,
        typer.Option(help="Simulations made by benchmarks/theory_figures.py, in place of those that come along."),
    ] = None,
    as_json: options.AsJson = False,
    progress: options.Progress = True,
) -> None:
    """Draw the theory's curves with simulations on them: the article's settings and every question of this command.

    The curves are computed here, which takes a minute or two; the simulations were made once and come with the package.

    Example: lorascope theory figures --only mismatch,active --out figures
    """
    import json

    from rich.console import Console
    from rich.markup import escape
    from tqdm.auto import tqdm

    from lorascope.cli._theory import words
    from lorascope.core.files import read_json, write_json
    from lorascope.core.provenance import collect
    from lorascope.report.page import write_page
    from lorascope.report.theory_figures import closing_section, preset_section
    from lorascope.theory._rows import flags
    from lorascope.theory.prescriptions_threshold import weak_threshold
    from lorascope.theory.presets import PRESETS, preset, read_points, rows_of, stored_points

    console = Console()
    if list_:
        for item in PRESETS:
            article = " [dim](setting of the article)[/dim]" if item.of_article else ""
            console.print(f"[bold]{item.name}[/bold]  {escape(item.title)}{article}", highlight=False)
        return
    chosen = list(PRESETS) if only is None else [preset(name) for name in words(only)]
    known = stored_points() if points is None else read_points(read_json(points))
    sections, numbers, found = [], {}, []
    for item in tqdm(chosen, desc="figures", unit="figure", disable=not progress):
        curves = {line.name: rows_of(line, count=count, samples=samples) for line in item.lines}
        rules = None
        if item.name == "samples":
            noise, tokens = item.lines[0].setting["noise"], item.lines[0].setting["tokens"]
            rules = {"weak recovery (Bayes)": weak_threshold(tokens=tokens, noise=noise)[0]}
        marks = known.get(item.name, {})
        sections.append(
            preset_section(
                name=item.name,
                title=item.title,
                words=item.words,
                x=item.x,
                ys=item.ys,
                curves=curves,
                points=marks,
                rules=rules,
            )
        )
        numbers[item.name] = {"curves": curves, "points": marks}
        found += [f"{item.name}: {word}" for word in flags([row for rows in curves.values() for row in rows])]
    values = {"schema_version": 1, "kind": "theory_figures", "presets": numbers, "warnings": found}
    write_json(out / "theory_figures.json", values)
    facts = collect()
    page = write_page(
        out / "theory.html",
        [*sections, closing_section()],
        title="The solvable theory of LoRA, with simulations",
        headline="Curves of the theory for high dimensions, and the same model simulated at finite d; both are ours.",
        provenance={key: facts[key] for key in ("created", "versions", "machine")},
    )
    if as_json:
        typer.echo(json.dumps(values, allow_nan=False, ensure_ascii=False, indent=2))
        return
    for word in found:
        console.print(f"[yellow]flag:[/yellow] {escape(word)}", highlight=False)
    console.print(f"page: {page}", soft_wrap=True, highlight=False, markup=False)
