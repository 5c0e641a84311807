"""The page of ``lorascope theory figures``: each preset with its simulations, as parts of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorascope.figures.theory import plot_theory_curves, theory_curves_info
from lorascope.report.sections import Section, Table
from lorascope.report.text import show
from lorascope.report.theory import READING, SOURCE, head_of

Row = Mapping[str, Any]


def preset_section(
    *,
    name: str,
    title: str,
    words: str,
    x: str,
    ys: Sequence[str],
    curves: Mapping[str, Sequence[Row]],
    points: Mapping[str, Sequence[Row]],
    rules: Mapping[str, float | None] | None = None,
) -> Section:
    """A preset as a section: a figure for each quantity and a table of simulations beside the curve.

    Args:
        name: Identifier.
        title: Heading.
        words: What it shows.
        x: Quantity of the horizontal axis.
        ys: Quantities, one figure each.
        curves: Name -> rows of the theory; a line without rows has only simulations.
        points: Name -> rows of simulations.
        rules: Label -> place of a vertical line.
    """
    drawn = {line: rows for line, rows in curves.items() if rows}
    tag = (
        "ridge"
        if x not in ("ridge", "alpha_finetune") and any("ridge" in row for r in drawn.values() for row in r)
        else None
    )
    figures = {}
    for y in ys:
        if not any(y in row for rows in drawn.values() for row in rows):
            continue
        info = theory_curves_info(drawn, x, y, points=points, rules=rules, tag=tag)
        label = info.y_label[:1].upper() + info.y_label[1:]
        figures[label] = (plot_theory_curves(info), _caption(label, info.x_label, points, y))
    return Section(name, title, (words,), tables=_tables(points, x, ys), figures=figures)


def closing_section() -> Section:
    """How to read the figures, and where they come from."""
    return Section("reading", "How to read this page", (READING, SOURCE))


def _caption(label: str, x_label: str, points: Mapping[str, Sequence[Row]], y: str) -> str:
    rows = [row for line in points.values() for row in line if y in row]
    if not rows:
        return f"{label} over {x_label}. No simulations."
    dims = sorted({int(row["dim"]) for row in rows})
    seeds = sorted({int(row["seeds"]) for row in rows})
    return (
        f"{label} over {x_label}. Marks: {len(rows)} simulations at d = {', '.join(map(str, dims))} with "
        f"{', '.join(map(str, seeds))} seeds, one standard error."
    )


def _tables(points: Mapping[str, Sequence[Row]], x: str, ys: Sequence[str]) -> tuple[Table, ...]:
    rows = []
    shown = [y for y in ys if any(y in row for line in points.values() for row in line)]
    places = ("ridge",) if x == "alignment" else ()
    columns = [*places, *dict.fromkeys((x, *shown))]
    for line, items in points.items():
        for row in items:
            rows.append((line, *(_value(row, column) for column in columns)))
    if not rows:
        return ()
    return (Table("Simulations, with one standard error", ("Line", *map(head_of, columns)), tuple(rows)),)


def _value(row: Row, name: str) -> str:
    error = row.get(f"{name}_se")
    return show(row.get(name)) if error is None else f"{show(row.get(name))} ± {show(error, 2)}"
