"""``lorascope report``: one HTML file from finished results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report_command(
    results: Annotated[
        list[Path],
        typer.Argument(help="Folders that lorascope wrote (a run, or a folder of runs), or result.json files."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The HTML file. \\[default: report.html in the first folder]")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the page.")] = None,
) -> None:
    """Write one self-contained HTML page about one or several results; needs no network and no torch."""
    from lorascope.core.errors import DataError, OutputError
    from lorascope.report import write_report
    from lorascope.report.write import DEFAULT_TITLE
    from lorascope.results import AdapterMeasurement, RunStore

    records: list[AdapterMeasurement] = []
    for path in results:
        if path.is_file():
            records.append(AdapterMeasurement.load(path))
        elif (path / "result.json").is_file():
            records.append(AdapterMeasurement.load(path / "result.json"))
        else:
            found = RunStore(path).records()
            if not found:
                raise DataError(f"no finished run in '{path}': give a folder with result.json in it or one level below")
            records.extend(found)
    first = results[0].parent if results[0].is_file() else results[0]
    out = out or first / "report.html"
    if out.exists() and out.suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"--out '{out}' exists and is no HTML file: choose another name")
    target = write_report(records, out, title=title or DEFAULT_TITLE)
    typer.echo(f"report: {target}")
