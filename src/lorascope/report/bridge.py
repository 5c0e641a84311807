"""A real model beside the theory as parts of a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from lorascope.core.errors import InputError
from lorascope.figures.bridge import (
    bridge_curves_info,
    bridge_layers_info,
    bridge_relation_info,
    plot_bridge_curves,
    plot_bridge_layers,
    plot_bridge_relation,
)
from lorascope.report.page import Section, Table
from lorascope.report.text import show

_HOW = (
    "The theory's target is unknown for a real model; the run with the most data stands in for it. Overlap: mean squared "
    "cosine of the principal angles between a run's column (or row) space of B A and that of the largest run, on a scale "
    "where random subspaces of that rank give 0; layers are weighted by the squared norm of the largest run's update. "
    "Error: mean square distance of the choices' logits to the largest run's, as a share of the frozen model's distance. In "
    "the theory, overlap is the squared alignment and error is that of the update alone, as a share of that of no update."
)
_LIMITS = (
    "The model has one attention head with tied query and key, Gaussian tokens and square loss; the network does not. Its "
    "rows count as sequences of the theory only up to an unknown factor, which is why shapes are compared and not places."
)


def bridge_sections(result: Mapping[str, Any]) -> list[Section]:
    """The parts of a page: what can be said, curves, numbers, layers.

    Args:
        result: What `BridgeResult.to_dict` makes.
    """
    plan, theory = result["plan"], result["theory"]
    what = (
        f"{plan['model']} on {plan['task']}, rank {plan['rank']}: {', '.join(map(str, plan['sizes']))} rows, "
        f"{len(plan['seeds'])} seeds, {plan['steps']} steps; the largest run has {plan['reference_rows']} rows and "
        f"{plan['reference_steps']} steps. {result['parameters']:,} numbers an adapter, {plan['questions']} test questions."
    )
    dn = show(theory["noise"])
    curve = f"Theory: rank {theory['rank']}, T = {theory['tokens']}, lambda' = {theory['ridge']:g}, Dn = {dn}."
    notes = tuple(result["warnings"])
    sections = [
        Section("form", "What was run", (what, _HOW, curve, _LIMITS), points=notes),
        Section("findings", "Where the shape holds and where not", points=tuple(result["findings"])),
    ]
    figures = {}
    for quantity in ("overlap", "error"):
        info = bridge_curves_info(result["curve"], result["sizes"], quantity)
        figures[quantity] = (plot_bridge_curves(info), "Both sides have one vertical axis; the horizontal ones differ.")
    relation = bridge_relation_info(result["curve"], result["sizes"])
    figures["error against overlap"] = (plot_bridge_relation(relation), "No scale of data is left in this one.")
    sections.append(Section("curves", "Theory and measurement", figures=figures))
    tables = tuple(Table.from_frame(frame, caption) for caption, frame in bridge_frames(result).items())
    sections.append(Section("numbers", "Every number", tables=tables))
    try:
        layers = bridge_layers_info(result["layers"])
    except InputError:
        return sections
    caption = "The runs of the largest size, mean over seeds."
    sections.append(Section("layers", "Layers", figures={"all": (plot_bridge_layers(layers), caption)}))
    return sections


def bridge_frames(result: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Caption -> table: noise, runs, sizes, shapes."""
    noise = result["noise"]
    first = pd.DataFrame(
        {
            "quantity": ["frozen model", "largest run", "difference", "equal chances", "Dn at most"],
            "variance": [noise[name] for name in ("frozen", "reference", "signal", "uniform", "noise")],
            "standard error": [*(noise[f"{name}_error"] for name in ("frozen", "reference", "signal")), None, None],
        }
    )
    runs = pd.DataFrame(
        [
            {
                "run": row["name"],
                "rows": row["rows"],
                "accuracy": with_error(row, "accuracy"),
                "CE (nats/token)": with_error(row, "ce"),
                "residual variance": with_error(row, "residual"),
                "error / no update": row.get("relative_error"),
                "column overlap (chance)": _chance(row, "column"),
                "row overlap (chance)": _chance(row, "row"),
                "cosine": row.get("update"),
            }
            for row in result["runs"]
        ]
    )
    sizes = pd.DataFrame(
        [
            {
                "rows": row["rows"],
                "rows per parameter": row["rows_per_parameter"],
                "column, chance out": with_error(row, "column_above"),
                "row, chance out": with_error(row, "row_above"),
                "cosine": with_error(row, "update"),
                "error / no update": with_error(row, "relative_error"),
                "accuracy": with_error(row, "accuracy"),
                "CE (nats/token)": with_error(row, "ce"),
                "seeds with each other": row["between"],
            }
            for row in result["sizes"]
        ]
    )
    shapes = pd.DataFrame(
        [
            {
                "measured": row["measured"],
                "theory": row["quantity"],
                "factor": row["factor"],
                "deviation": row["rms"],
                "of a constant": row["constant_rms"],
                "within 2 errors": f"{row['within']} of {len(row['deviations'])}",
                "where theory is not valid": f"{row['outside']} of {len(row['deviations'])}",
                "change, theory": row["theory_change"],
                "change, measured": row["measured_change"],
            }
            for row in result["shapes"]
        ]
    )
    return {
        "Residual variance a choice, against the right answers": first,
        "Runs (standard errors over questions)": runs,
        "Sizes: means over seeds (standard errors over seeds)": sizes,
        "Measured curves over the theory's, by one factor on the axis of data": shapes,
    }


def with_error(row: Mapping[str, Any], name: str) -> str:
    """A value with its standard error in brackets.

    Example:
        >>> with_error({"ce": 2.0, "ce_error": 0.25}, "ce"), with_error({"ce": 2.0, "ce_error": None}, "ce")
        ('2 (0.25)', '2')
    """
    error = row.get(f"{name}_error")
    text = show(row.get(name), 4)
    return text if error is None else f"{text} ({show(error, 2)})"


def _chance(row: Mapping[str, Any], side: str) -> str:
    if side not in row:
        return ""
    return f"{show(row[side], 3)} ({show(row[f'{side}_chance'], 2)})"
