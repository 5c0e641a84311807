"""``lorascope fit``: scaling laws of a sweep or of any table of runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from lorascope.report.page import Section
    from lorascope.scaling import LawComparison, ScalingFit

SCHEMA_VERSION = 1
_BULKY = ("boot", "rival", "data", "fitted", "residuals")


def fit_command(
    source: Annotated[
        Path, typer.Argument(metavar="DIR|FILE", help="Folder of a sweep, or a CSV or Parquet file with N, R, D.")
    ],
    metric: Annotated[str, typer.Option(help="Metrics with commas between, or all.")] = "ce",
    law: Annotated[str, typer.Option(help="additive, multiplicative, or best (the data choose).")] = "best",
    floor: Annotated[
        bool | None,
        typer.Option("--floor/--no-floor", help="With a floor E or without. \\[default: as the runs have it]"),
    ] = None,
    n_boot: Annotated[int, typer.Option(min=0, help="Bootstrap fits for the intervals.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    level: Annotated[float, typer.Option(help="Confidence level of the intervals.")] = 0.95,
    group: Annotated[str | None, typer.Option(help="Column of runs to draw together, such as seed.")] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="Keep rows with this value, e.g. prompt=main. May be given again.")
    ] = None,
    pool: Annotated[
        bool, typer.Option("--pool", help="Fit all prompts, tasks and lengths together, whatever cells have them.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for fit.json and fit.html.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the fits as JSON and nothing else.")] = False,
) -> None:
    """Fit how a metric changes with model size N, rank R and data size D, with intervals and what the runs can't tell."""
    import json

    from rich.console import Console
    from rich.markup import escape

    from lorascope.cli._console import keep_where
    from lorascope.core.errors import InputError, unknown_name
    from lorascope.core.files import write_json
    from lorascope.scaling import LAWS, compare_laws, fit_scaling_law, read_table
    from lorascope.scaling.table import measured

    if law not in ("best", *LAWS):
        raise unknown_name("law", law, ("best", *LAWS))
    table = keep_where(read_table(source), where or [])
    every = metric.strip() == "all"
    names = (
        measured(table) if every else list(dict.fromkeys(name.strip() for name in metric.split(",") if name.strip()))
    )
    if not names:
        raise InputError("no metric to fit: give --metric with a column of numbers")
    fits: dict[str, ScalingFit] = {}
    comparisons: dict[str, LawComparison] = {}
    left_out: dict[str, str] = {}
    for name in names:
        try:
            chosen, with_floor = law, floor
            if law == "best":
                comparisons[name] = compare_laws(
                    table, name, floors=(False, True) if floor is None else (floor,), pool=pool
                )
                chosen, with_floor = comparisons[name].best.law, comparisons[name].best.floor
            options: dict[str, Any] = {"n_boot": n_boot, "seed": seed, "level": level, "group": group, "pool": pool}
            fits[name] = fit_scaling_law(table, chosen, name, floor=floor, **options)
            if floor is None and bool(fits[name].params.get("E")) is not with_floor is not None:
                # What lies beyond the runs spoke for the other: told so, with its own intervals.
                fits[name] = fit_scaling_law(table, chosen, name, floor=with_floor, **options)
        except InputError as error:
            if not every:
                raise
            left_out[name] = str(error)
    if not fits:
        raise InputError(f"no metric of '{source}' can be fitted: {next(iter(left_out.values()))}")
    whole: dict[str, Any] = {
        "kind": "scaling_fits",
        "schema_version": SCHEMA_VERSION,
        "source": str(source),
        "where": list(where or []),
        "pooled": pool,
        "fits": {name: fit.to_dict() for name, fit in fits.items()},
        "comparisons": {name: found.to_dict() for name, found in comparisons.items()},
        "left_out": left_out,
    }
    console = Console()
    if as_json:
        short = {name: _without(fit, _BULKY) for name, fit in whole["fits"].items()}
        typer.echo(json.dumps({**whole, "fits": short}, allow_nan=False, ensure_ascii=False, indent=2))
    else:
        for name, fit in fits.items():
            console.print(parameters(fit))
            if name in comparisons:
                console.print(escape(f"chosen: {comparisons[name].statement}"), highlight=False)
            for note in dict.fromkeys((*fit.warnings, *(comparisons[name].warnings if name in comparisons else ()))):
                console.print(f"[yellow]note:[/yellow] {escape(note)}", highlight=False)
        for name, reason in left_out.items():
            console.print(f"[yellow]note:[/yellow] {escape(name)} is not fitted: {escape(reason)}", highlight=False)
    if out is not None:
        from lorascope.core.provenance import collect
        from lorascope.report.page import write_page

        write_json(out / "fit.json", whole)
        sections = [section for name, fit in fits.items() for section in fit_sections(fit, comparisons.get(name))]
        page = write_page(
            out / "fit.html",
            sections,
            title="Scaling laws",
            headline=" ".join(headline(fit) for fit in fits.values()),
            provenance=collect(seed=seed, files=[source] if source.is_file() else [source / "table.csv"]),
        )
        if not as_json:
            console.print(f"report: {page}", soft_wrap=True, highlight=False, markup=False)


def _without(values: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in names}


def formula(fit: ScalingFit) -> str:
    """The fitted law with its numbers, in one line."""
    from lorascope.cli._console import number
    from lorascope.scaling.laws import AMPLITUDES, EXPONENTS

    shown = {name: number(value) for name, value in fit.params.items()}
    powers = {axis: f"({_short(fit.reference[axis])}/{axis})^{shown[EXPONENTS[axis]]}" for axis in fit.axes}
    if fit.law == "additive":
        terms = [f"{shown[AMPLITUDES[axis]]} {power}" for axis, power in powers.items()]
    else:
        terms = [" ".join([shown["A"], *powers.values()])]
    terms += [shown["E"]] if fit.floor else []
    return f"{fit.metric} = {' + '.join(terms)}".replace("+ -", "- ")


def headline(fit: ScalingFit) -> str:
    """What the fit says, in a sentence."""
    from lorascope.core.metrics import METRICS
    from lorascope.scaling.laws import EXPONENTS

    label = METRICS[fit.metric].label if fit.metric in METRICS else fit.metric
    told = [EXPONENTS[axis] for axis in fit.axes if fit.identified[EXPONENTS[axis]]]
    runs = f"{label}, {fit.n_runs} runs: "
    if not told:
        return runs + "the runs tell no exponent."
    parts = []
    for name in told:
        low, high = fit.intervals[name]
        parts.append(f"{name} = {fit.params[name]:.3g} ({low:.3g} to {high:.3g})")
    return runs + ", ".join(parts) + "."


def _short(value: float) -> str:
    from lorascope.scaling.identify import show

    return show(float(f"{value:.3g}"))


def _ends(fit: ScalingFit, name: str) -> tuple[str, str]:
    from lorascope.cli._console import number

    low, high = fit.intervals[name]
    return number(low), number(high)


_MEANINGS = {
    "A": "amplitude of model size",
    "B": "amplitude of rank",
    "C": "amplitude of data",
    "alpha": "exponent of model size N",
    "beta": "exponent of rank R",
    "gamma": "exponent of data size D",
    "E": "floor",
}


def _meaning(fit: ScalingFit, name: str) -> str:
    if name == "A" and fit.law == "multiplicative":
        return "amplitude"
    if name == "E" and next(iter(fit.params.values())) * fit.params["E"] < 0:
        return "ceiling"
    return _MEANINGS[name]


def parameters(fit: ScalingFit) -> Table:
    """One row a parameter, for the terminal."""
    from rich.markup import escape
    from rich.table import Table

    from lorascope.cli._console import number

    unit = f"{fit.sigma:.1%}" if fit.noise == "relative" else number(fit.sigma)
    title = f"{formula(fit)}   ({fit.n_runs} runs, scatter {unit}, R² {fit.r2:.3f})"
    table = Table(title=escape(title), title_justify="left", header_style="bold")
    for column in ("parameter", "value", f"{fit.level:.0%} low", "high", "told", "what it is"):
        table.add_column(column, justify="right" if column in ("value", "high") or "low" in column else "left")
    for name, value in fit.params.items():
        low, high = _ends(fit, name)
        table.add_row(name, number(value), low, high, "yes" if fit.identified[name] else "no", _meaning(fit, name))
    return table


def fit_sections(fit: ScalingFit, comparison: LawComparison | None) -> list[Section]:
    """The parts of a page about one fit: the numbers, the curves, the surface, what is left over."""
    from lorascope.cli._console import number
    from lorascope.figures.scaling import (
        law_curves_info,
        law_residuals_info,
        law_surface_info,
        plot_law_curves,
        plot_law_residuals,
        plot_law_surface,
    )
    from lorascope.report.page import Section
    from lorascope.report.page import Table as PageTable

    rows = tuple(
        (name, number(value), *_ends(fit, name), "yes" if fit.identified[name] else "no", _meaning(fit, name))
        for name, value in fit.params.items()
    )
    heads = ("parameter", "value", f"{fit.level:.0%} low", "high", "told by the runs", "what it is")
    tables = [PageTable(f"{fit.law} law", heads, rows)]
    words = [f"{formula(fit)}.", headline(fit)]
    if comparison is not None:
        words.append(f"Chosen: {comparison.statement}.")
        tables.append(
            PageTable(
                "Laws compared; held out: mean error on the largest values, predicted from the rest",
                ("law", "parameters", "AICc", "difference", "held out"),
                tuple(
                    (c.name, str(c.parameters), number(c.aicc), number(c.delta), number(c.held_out))
                    for c in comparison.candidates
                ),
            )
        )
    name = "".join(letter if letter.isalnum() else "-" for letter in fit.metric)
    moved = " Each run is moved along the law to the middle of the other axes." if len(fit.axes) > 1 else ""
    curves = f"The law with its {fit.level:.0%} band and the runs; the dotted line is the largest value run.{moved}"
    sections = [
        Section(f"{name}-law", f"{fit.metric}: the law", tuple(words), fit.warnings, tuple(tables)),
        Section(
            f"{name}-curves",
            f"{fit.metric}: along each axis",
            figures={"": (plot_law_curves(law_curves_info(fit)), curves)},
        ),
    ]
    if len(fit.axes) > 1:
        info = law_surface_info(fit)
        held = "".join(f", {axis} at {_short(value)}" for axis, value in info.fixed.items())
        caption = f"Colour: the law; points: the runs, in the same colours{held}."
        sections.append(
            Section(
                f"{name}-surface",
                f"{fit.metric}: over {' and '.join(info.axes)}",
                figures={"": (plot_law_surface(info), caption)},
            )
        )
    left = (
        "Runs against the law; the band is two standard deviations of a run. A bend here means that the law is wrong."
    )
    sections.append(
        Section(
            f"{name}-residuals",
            f"{fit.metric}: what the law leaves over",
            figures={"": (plot_law_residuals(law_residuals_info(fit)), left)},
        )
    )
    return sections
