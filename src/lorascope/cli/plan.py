"""``lorascope plan``: which rank, how much data, which model, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd


def plan_command(
    results: Annotated[
        Path, typer.Argument(help="Folder of a sweep, a CSV or Parquet table, or the result.json of one run.")
    ],
    metric: Annotated[str, typer.Option(help="Column to plan by; accuracy falls back to ce.")] = "accuracy",
    target: Annotated[float | None, typer.Option(help="Value of the metric to reach at the lowest cost.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Limit such as '2e15 FLOPs', 30min, 4GB (memory) or '20MB adapter'.")
    ] = None,
    grid: Annotated[
        Path | None, typer.Option(help="YAML with candidates: N, R, D lists, or a sweep's grid (rank, train_limit).")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="Keep rows with this value, e.g. task=towns. May be given again.")
    ] = None,
    level: Annotated[float, typer.Option(help="Level of the intervals.")] = 0.9,
    better: Annotated[str | None, typer.Option(help="higher or lower, for a metric that lorascope lacks.")] = None,
    noise: Annotated[float | None, typer.Option(help="Difference that counts as none. \\[default: measured]")] = None,
    model_config: Annotated[
        Path | None, typer.Option(help="config.json of the base model (or its folder), for exact costs.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for plan.json, plan.html, lora_config.json and lora_config.py.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="HTML page: the advice in words, curves, costs, residuals.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON and nothing else.")] = False,
) -> None:
    """Recommend rank, data and model from a sweep, or make a first guess from one run.

    Says the smallest rank that is as good as any within the noise, what the next step up would bring, and which cells to
    run where the runs do not settle it.
    """
    import json

    from lorascope.cli._console import keep_where
    from lorascope.core.errors import OutputError

    if report is not None and report.suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"--report '{report}' does not end in .html: give the name of a page")
    plan = _guess(results, target, budget) if _is_run(results) else None
    if plan is None:
        from lorascope.core.spec import load_yaml
        from lorascope.scaling.cost_shapes import ModelShape
        from lorascope.scaling.plan import recommend
        from lorascope.scaling.table import read_table

        table = keep_where(read_table(results), where or [])
        plan = recommend(
            table,
            metric=metric,
            target=target,
            budget=budget,
            candidates=_candidates(load_yaml(grid), table, str(grid)) if grid else None,
            seed=seed,
            level=level,
            better=better,
            noise=noise,
            shape=ModelShape.from_config(model_config) if model_config else None,
        )
    paths = plan.save(out) if out is not None else {}
    page = report or (out / "plan.html" if out is not None else None)
    if page is not None:
        paths["report"] = _write_page(plan, page, results, seed)
    if as_json:
        typer.echo(json.dumps(plan.to_dict(), indent=2, allow_nan=False))
        return
    typer.echo(plan.summary())
    typer.echo("\n" + plan.snippet(), nl=False)
    for name, path in paths.items():
        typer.echo(f"{name}: {path}")


def _write_page(plan: Any, page: Path, source: Path, seed: int) -> Path:
    from lorascope.core.provenance import collect
    from lorascope.report import plan_headline, plan_sections, write_page

    read = next((item for item in (source, source / "table.csv", source / "result.json") if item.is_file()), None)
    values = plan.to_dict()
    return write_page(
        page,
        plan_sections(values),
        title="Which rank, how much data, which model?",
        headline=plan_headline(values),
        provenance=collect(seed=seed, files=[] if read is None else [read]),
    )


def _is_run(path: Path) -> bool:
    if path.is_file():
        return path.suffix.lower() == ".json"
    named = any((path / name).is_file() for name in ("result.json", "initialization.json"))
    return named and not (path / "table.csv").is_file()


def _guess(path: Path, target: float | None, budget: str | None) -> Any:
    from lorascope.core.errors import InputError
    from lorascope.core.files import read_json
    from lorascope.results import AdapterMeasurement
    from lorascope.scaling.guess import first_guess
    from lorascope.scaling.guess_curvature import guess_from_curvature

    if target is not None or budget is not None:
        raise InputError(
            f"'{path}' is one run: a target or a budget needs a sweep or a table with several ranks (lorascope sweep)"
        )
    named = "result.json" if (path / "result.json").is_file() else "initialization.json"
    path = path if path.is_file() else path / named
    values = read_json(path)
    if isinstance(values, dict) and values.get("kind") == "initialization":
        return guess_from_curvature(values)
    return first_guess(AdapterMeasurement.load(path))


def _candidates(values: Mapping[str, Any], table: pd.DataFrame, source: str) -> dict[str, list[Any]]:
    """Candidates from YAML: N, R and D as they are, or a sweep's grid, whose models the table must know."""
    from lorascope.core.errors import InputError

    values = values.get("grid", values)
    if not isinstance(values, Mapping):
        raise InputError(f"{source}: 'grid' must be a mapping of settings to lists")
    names = {"rank": "R", "train_limit": "D", "N": "N", "R": "R", "D": "D"}
    found: dict[str, list[Any]] = {}
    for name, items in values.items():
        if name in ("model", "share"):
            known = table.dropna(subset=["N"]) if {"N", name} <= set(table.columns) else table.iloc[:0]
            rows = known[known[name].astype(str).isin([str(item) for item in items])] if len(known) else known
            if not len(rows):
                raise InputError(f"{source}: no finished run tells N of '{name}': give N: [parameters, ...] instead")
            found["N"] = sorted({*found.get("N", []), *rows["N"].astype(float)})
        elif name in names:
            good = isinstance(items, list) and items
            if not good or any(isinstance(i, bool) or not isinstance(i, int | float) for i in items):
                raise InputError(f"{source}: '{name}' must be a list of numbers")
            found[names[name]] = [item for item in items if not (names[name] == "R" and item == 0)]
        elif name not in ("seed", "prompt", "task", "length"):
            raise InputError(
                f"{source}: '{name}' is no axis of a plan: use N, R, D, or rank, train_limit, model, share"
            )
    return found
