"""Pages that are not about single runs: words first, then tables and charts, in the report's style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from lorascope.core.errors import InputError
from lorascope.core.files import atomic_write_text
from lorascope.report.sections import Section, Table, charts_of
from lorascope.report.write import environment

__all__ = ["Section", "Table", "render_page", "write_page"]


def render_page(
    sections: Sequence[Section], *, title: str, headline: str, provenance: Mapping[str, Any] | None = None
) -> str:
    """The page as HTML text; see `write_page`."""
    if not sections:
        raise InputError("nothing to show: give at least one section")
    drawn = charts_of(sections)
    values: dict[str, Any] = {
        "title": title,
        "headline": headline,
        "sections": sections,
        "charts": drawn,
        "figures": {name: chart.figures for name, chart in drawn.items()},
        "provenance": [(key, _text(value)) for key, value in (provenance or {}).items()],
        "plotly": get_plotlyjs() if drawn else "",
    }
    return environment().get_template("page.html.j2").render(values)


def write_page(
    path: str | Path,
    sections: Sequence[Section],
    *,
    title: str,
    headline: str,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write a self-contained page that needs no network; everything given is escaped.

    Args:
        path: Where to write the file; its folder is made.
        sections: Its parts in order, at least one.
        title: Heading of the page.
        headline: The answer in a sentence or two.
        provenance: Versions, machine, seed and the like, shown at the end.

    Returns:
        The path.

    Raises:
        InputError: There is no section.
        OutputError: The disk is full, or the place cannot be written.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp()) / "page.html"
        >>> write_page(place, [Section("a", "A", ("One sentence.",))], title="T", headline="H").name
        'page.html'
    """
    path = Path(path)
    atomic_write_text(path, render_page(sections, title=title, headline=headline, provenance=provenance))
    return path


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_text, value))
    return str(value)
