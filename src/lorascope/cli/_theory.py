"""What the commands of ``lorascope theory`` do with a result: print it with its flags, write JSON and a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from lorascope.theory.prescriptions import Setting

_MATCHED = ("alpha", "tokens", "kappa0", "noise", "ridge", "penalty", "activation", "alpha_finetune", "ridge_finetune")


def number_or_best(name: str, text: str) -> float | None:
    """The value of an option that takes a number or ``best``, which is None.

    Raises:
        InputError: It is neither.
    """
    from lorascope.core.errors import InputError

    if text.strip().lower() == "best":
        return None
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{name} '{text}' must be a number or the word best") from None


def numbers(name: str, text: str) -> list[float]:
    """Numbers with commas between, or ``FROM:TO:COUNT`` for evenly spaced ones on a logarithmic axis.

    Raises:
        InputError: It is neither.
    """
    from lorascope.core.errors import InputError
    from lorascope.theory._rows import logarithmic

    try:
        if ":" in text:
            low, high, count = text.split(":")
            return logarithmic(float(low), float(high), int(count))
        return [float(part) for part in text.split(",") if part.strip()]
    except InputError:
        raise
    except ValueError:
        raise InputError(f"{name} '{text}' must be numbers such as 0.1,0.3,1 or a range such as 0.01:1:25") from None


def words(text: str) -> list[str]:
    """Words with commas between."""
    return [part.strip() for part in text.split(",") if part.strip()]


def setting_of(**options: Any) -> Setting:
    """A setting from the options of a command; ``ridge`` and ``ridge_finetune`` may be text."""
    from lorascope.theory.prescriptions import Setting

    for name in ("ridge", "ridge_finetune"):
        if isinstance(options.get(name), str):
            options[name] = number_or_best(f"--{name.replace('_', '-')}", options[name])
    return Setting(**options)


def finish(
    result: Any,
    *,
    name: str,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    out: Path | None,
    as_json: bool,
    points: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Print a result and write its files.

    Args:
        result: What the library returned.
        name: Of the files.
        title: Of the table and the page.
        rows: Rows of the table.
        columns: Its columns; those that no row has are left out.
        out: Folder for ``NAME.json`` and ``NAME.html``; None writes nothing.
        as_json: Print JSON only.
        points: Simulations for the page.
    """
    from rich.console import Console
    from rich.markup import escape

    values = result.to_dict()
    console = Console()
    if as_json:
        typer.echo(json.dumps(values, allow_nan=False, ensure_ascii=False, indent=2))
    else:
        from lorascope.report.theory import theory_headline

        console.print(f"[bold]{escape(theory_headline(values))}[/bold]", highlight=False)
        console.print(rows_table(rows, columns, title))
        for word in values["warnings"]:
            console.print(f"[yellow]flag:[/yellow] {escape(word)}", highlight=False)
    if out is not None:
        from lorascope.core.files import write_json
        from lorascope.core.provenance import collect
        from lorascope.report.page import write_page
        from lorascope.report.theory import theory_headline, theory_sections

        facts = collect()
        write_json(out / f"{name}.json", values)
        page = write_page(
            out / f"{name}.html",
            theory_sections(values, points),
            title=title,
            headline=theory_headline(values),
            provenance={key: facts[key] for key in ("created", "versions", "machine")},
        )
        if not as_json:
            console.print(f"page: {page}", soft_wrap=True, highlight=False, markup=False)


def rows_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], title: str, *, most: int = 15) -> Any:
    """A table for the terminal: at most some of the rows, evenly spaced, with a mark on flagged ones.

    Columns that no row has are left out, and so are settings that are the same in all of several rows.
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from lorascope.report.theory import head_of

    table = Table(
        title=escape(title),
        title_justify="left",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1),
    )
    kept = [column for column in columns if any(column in row for row in rows)]
    kept = [column for column in kept if column != "smallest_dim" or any(row.get(column) for row in rows)]
    if len(rows) > 1:
        same = [column for column in kept if column in _QUIET and len({row.get(column) for row in rows}) == 1]
        kept = [column for column in kept if column not in same]
    for column in kept:
        words = isinstance(rows[0].get(column), str)
        table.add_column(
            head_of(column),
            justify="left" if words else "right",
            min_width=12 if words else 5,
        )
    table.add_column("flag", justify="center", min_width=4)
    shown = list(rows)
    if len(shown) > most:
        shown = [shown[round(index * (len(shown) - 1) / (most - 1))] for index in range(most)]
        table.caption = f"{most} of {len(rows)} points; --json or --out has all of them"
    for row in shown:
        table.add_row(
            *(escape(_cell(column, row.get(column))) for column in kept),
            "[yellow]![/yellow]" if row.get("warnings") else "",
        )
    return table


_QUIET = ("ridge", "ridge_finetune", "delta_eff", "delta_reuse", "alpha", "alpha_finetune", "noise_finetune")


def _cell(column: str, value: Any) -> str:
    """Three significant digits; alignments, which are close to 1, have four decimals."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if column == "alignment":
        return f"{value:.4f}"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.0e}"


def matching_points(path: Path | None, setting: Mapping[str, Any], free: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of the simulations in a file that were made at a setting, whatever the values of the ``free`` names.

    Raises:
        DataError: The file holds no simulation points.
        InputError: None of them belongs to the setting.
    """
    if path is None:
        return []
    from lorascope.core.errors import InputError
    from lorascope.theory.points import load_points, points_table

    found, odd = [], ""
    for row in points_table(load_points(path)):
        wrong = [
            name for name in _MATCHED if name in row and name not in free and not _same(row[name], setting.get(name))
        ]
        if wrong:
            odd = f"{wrong[0]} is {row[wrong[0]]} there and {setting.get(wrong[0])} here"
        else:
            found.append(row)
    if not found:
        raise InputError(f"no simulation in '{path}' belongs to this setting: {odd or 'the file is empty'}")
    return found


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, int | float) and isinstance(right, int | float):
        return abs(left - right) <= 1e-9 * max(1.0, abs(left))
    return bool(left == right)
