"""The tables and figures of arXiv 2501.03152 from a user's own runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from lorascope.core.errors import InputError
from lorascope.figures.axis_svg import axis_svg
from lorascope.figures.claims import (
    AXIS_LABELS,
    MetricsAgainstAxisInfo,
    metrics_against_axis_info,
    plot_metrics_against_axis,
)
from lorascope.report.ledger import ledger_sections
from lorascope.report.page import Section, Table
from lorascope.scaling.paper_layout import axis_data, layout_table1, layout_table2, layout_table3, why_empty

_TABLES = (
    ("table-1", "Table 1: accuracy, cross-entropy and MIUB by rank and by shared layers", layout_table1),
    ("table-2", "Table 2: prompts", layout_table2),
    ("table-3", "Table 3: mutual information beside its bounds", layout_table3),
)
_FIGURE_2 = ("miub_js", "mi_joint", "miub_joint", "ce", "ppl", "text_ppl")
_FIGURE_3 = ("accuracy", "miub_js", "mi_joint", "ce")
_AXES = (
    ("figure-2-rank", "Figure 2: metrics against rank", "rank", _FIGURE_2),
    ("figure-2-size", "Figure 2: metrics against model size", "size", _FIGURE_2),
    ("figure-2-data", "Metrics against training rows", "data", _FIGURE_2),
    ("figure-3", "Figure 3: metrics against the length of the prompts", "length", _FIGURE_3),
)


def paper_tables(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The paper's tables that the runs can fill: name -> frame."""
    found = {}
    for name, _title, layout in _TABLES:
        try:
            found[name] = layout(table)
        except InputError:
            continue
    return found


def paper_sections(table: pd.DataFrame, ledger: Mapping[str, Any], *, label: str) -> list[Section]:
    """The verdicts, Tables 1 to 3 and Figures 2 and 3 as parts of a page.

    Args:
        table: One row a run, as `lorascope.scaling.read_table` gives it.
        ledger: The claims ledger of the same runs.
        label: In what form the experiments were run, in a sentence.

    Returns:
        The parts; a table or figure that the runs cannot fill is named with the reason.

    References:
        arXiv 2501.03152, Tables 1 to 3 and Figures 2 and 3.
    """
    counts = ", ".join(f"{count} {verdict}" for verdict, count in ledger["verdicts"].items())
    sections = [Section("form", "What was run", (label, f"Verdicts on the paper's claims: {counts}."))]
    parts = {section.name: section for section in ledger_sections(ledger)}
    if "watch" in parts:
        sections.append(parts.pop("watch"))
    frames = paper_tables(table)
    missing = []
    for name, title, _layout in _TABLES:
        if name in frames:
            empty = why_empty(frames[name])
            told = (empty,) if empty else ()
            sections.append(Section(name, title, told, tables=(Table.from_frame(frames[name], title),)))
        else:
            missing.append(f"{title}: no run has what it shows.")
    for name, title, axis, metrics in _AXES:
        figure = _figure(table, axis, metrics)
        if figure is None:
            missing.append(f"{title}: no two runs differ in {AXIS_LABELS[axis]} alone.")
        else:
            caption = "Means over seeds, with one standard deviation where there are several."
            sections.append(Section(name, title, figures={"all": (figure, caption)}))
    sections += parts.values()
    if missing:
        sections.append(Section("missing", "Not in these runs", points=tuple(missing)))
    return sections


def paper_figures(table: pd.DataFrame) -> dict[str, str]:
    """The paper's figures that the runs can fill, as SVG: name -> text of the file."""
    found = {}
    for name, _title, axis, metrics in _AXES:
        info = _info(table, axis, metrics)
        if info is not None:
            found[name] = axis_svg(info)
    return found


def _figure(table: pd.DataFrame, axis: str, metrics: Sequence[str]) -> go.Figure | None:
    info = _info(table, axis, metrics)
    return None if info is None else plot_metrics_against_axis(info)


def _info(table: pd.DataFrame, axis: str, metrics: Sequence[str]) -> MetricsAgainstAxisInfo | None:
    try:
        rows = axis_data(table, axis, metrics)
        records = [{str(key): value for key, value in row.items()} for row in rows.to_dict("records")]
        return metrics_against_axis_info(records, axis)
    except InputError:
        return None
