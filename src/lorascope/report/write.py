"""From records to one HTML file."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from lorascope.core.errors import InputError
from lorascope.core.files import atomic_write_text
from lorascope.report.charts import charts
from lorascope.report.sections import Section, charts_of
from lorascope.report.summary import summarise
from lorascope.report.tables import comparison, component_tables, facts_of, run_names
from lorascope.results import AdapterMeasurement

DEFAULT_TITLE = "What the adapters learned"


@functools.cache
def environment() -> jinja2.Environment:
    """The templates, with everything that is put into them escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lorascope.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Left alone, tojson writes NaN, which no browser reads; everything given to it is finite or None.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment


def render_report(
    records: Sequence[AdapterMeasurement], *, title: str = DEFAULT_TITLE, sections: Sequence[Section] = ()
) -> str:
    """The report as HTML text; see `write_report`."""
    if not records:
        raise InputError("nothing to report: give at least one measurement or finished run")
    drawn, more = charts(records), charts_of(sections)
    values: dict[str, Any] = {
        "title": title,
        "summary": summarise(records),
        "runs": run_names(records),
        "comparison": comparison(records),
        "charts": drawn,
        "sections": sections,
        "section_charts": more,
        "figures": {chart.name: chart.figures for chart in (*drawn, *more.values())},
        "components": component_tables(records),
        "warnings": _warnings(records),
        "counts": facts_of(records, "counts"),
        "asked": facts_of(records, "spec", "settings"),
        "provenance": facts_of(records, "provenance"),
        "plotly": get_plotlyjs() if drawn or more else "",
    }
    return environment().get_template("report.html.j2").render(values)


def write_report(
    records: Sequence[AdapterMeasurement],
    path: str | Path,
    *,
    title: str = DEFAULT_TITLE,
    sections: Sequence[Section] = (),
) -> Path:
    """Write a self-contained HTML report of measurements and runs.

    The file needs no network: styles, charts and the chart library are inside. Everything given (names, paths,
    warnings) is escaped.

    Args:
        records: Measurements and runs, at least one; the base model is the run of rank 0.
        path: Where to write the file; its folder is made.
        title: Heading of the page.
        sections: Further parts, shown below the summary: a plan's, for example.

    Returns:
        The path.

    Raises:
        InputError: There is no record.
        OutputError: The disk is full, or the place cannot be written.

    Example:
        >>> import tempfile
        >>> found = AdapterMeasurement(totals={"miub_js": 0.5}, layers=[])
        >>> write_report([found], Path(tempfile.mkdtemp()) / "report.html").name
        'report.html'
    """
    path = Path(path)
    atomic_write_text(path, render_report(records, title=title, sections=sections))
    return path


def _warnings(records: Sequence[AdapterMeasurement]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    found: dict[str, list[str]] = {}
    for record, name in zip(records, run_names(records), strict=True):
        for warning in record.warnings:
            found.setdefault(warning, []).append(name)
    return tuple((warning, tuple(names)) for warning, names in found.items())
