"""Parts of a page: words, tables and charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from lorascope.report.charts import Chart, Selector, entry
from lorascope.report.text import show


@dataclass(frozen=True)
class Table:
    """A table as text.

    Attributes:
        caption: What it shows.
        columns: Heads, the first one for the row's name.
        rows: Cells as text, as many as columns in each.
        words: The cells are sentences, which wrap, rather than numbers.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: bool = False

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, caption: str, *, digits: int = 4) -> Table:
        """A table of a data frame: numbers with some significant digits, a dash for what is missing.

        Args:
            frame: Its index is left out where it only counts the rows.
            caption: What it shows.
            digits: Significant digits.

        Example:
            >>> Table.from_frame(pd.DataFrame({"rank": [4], "ce": [2.5]}), "runs").rows
            (('4', '2.5'),)
        """
        if not isinstance(frame.index, pd.RangeIndex):
            frame = frame.reset_index()
        columns = tuple(" ".join(map(str, name)) if isinstance(name, tuple) else str(name) for name in frame.columns)
        rows = tuple(tuple(_cell(value, digits) for value in row) for row in frame.itertuples(index=False, name=None))
        return cls(caption, columns, rows)


@dataclass(frozen=True)
class Section:
    """One part of a page.

    Attributes:
        name: Identifier in the page: letters, digits and dashes.
        title: Heading.
        paragraphs: What it says, as plain text.
        points: A list below the paragraphs.
        tables: Tables below.
        figures: Label -> (figure, caption); several get a drop-down.
    """

    name: str
    title: str
    paragraphs: tuple[str, ...] = ()
    points: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: Mapping[str, tuple[go.Figure, str]] = field(default_factory=dict)


def charts_of(sections: Sequence[Section]) -> dict[str, Chart]:
    """The charts of sections that have figures, by the section's name."""
    return {section.name: _chart(section) for section in sections if section.figures}


def _chart(section: Section) -> Chart:
    """A section's figures as the page's script reads them."""
    labels = list(section.figures)
    figures = {}
    for number, label in enumerate(labels):
        figures[str(number) if len(labels) > 1 else ""] = entry(*section.figures[label])
    options = tuple((str(number), label) for number, label in enumerate(labels))
    selectors = (Selector("Show", options, "0"),) if len(labels) > 1 else ()
    return Chart(section.name, section.title, "", selectors, figures)


def _cell(value: Any, digits: int) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    return show(value, digits)
