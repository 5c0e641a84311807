"""The comparison of initialisations as parts of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lorascope.figures.inits import gains_info, plot_gains, plot_steps, steps_info
from lorascope.report.page import Section, Table
from lorascope.report.text import show

_HOW = (
    "Each method's learning rate is the one with the lowest validation loss at the end of training on seeds that are used "
    "for nothing else. Methods are then compared on other seeds: a method and the default share a seed, and with it the "
    "order of the rows. Intervals: 95 %, by a bootstrap over seeds that is widened for their number. Helped: yes if the "
    "interval lies on the better side of 0; no if it does not and any help in it is smaller than the default's spread "
    "between seeds; else undecided. t and p are Student's on the same differences: where the interval ends near 0 the two "
    "may differ. The adjusted p (Holm over methods) says what is left when the number of methods is counted."
)


def headline(summary: pd.DataFrame, metric: str, labels: Mapping[str, str]) -> str:
    """The answer in a sentence or two.

    Args:
        summary: One row a method and metric, with ``helped`` and ``p_holm``.
        metric: What to go by.
        labels: Metric -> words.

    Example:
        >>> rows = {"method": ["default", "eva"], "metric": ["ce"] * 2, "helped": ["", "yes"], "p_holm": [None, 0.2]}
        >>> headline(pd.DataFrame(rows), "ce", {"ce": "Cross-entropy"})
        'Cross-entropy: helped beyond noise: eva (none of them after counting the number of methods).'
    """
    part = summary[(summary["metric"] == metric) & (summary["helped"] != "")]
    groups = {kind: part[part["helped"] == kind]["method"].tolist() for kind in ("yes", "no", "undecided")}
    words = {"yes": "helped beyond noise", "no": "did not help", "undecided": "undecided"}
    parts = []
    for kind, methods in groups.items():
        if not methods:
            continue
        text = f"{words[kind]}: {', '.join(methods)}"
        if kind == "yes":
            kept = part[(part["helped"] == "yes") & (part["p_holm"].astype(float) < 0.05)]["method"].tolist()
            left = "all" if len(kept) == len(methods) else ", ".join(kept) if kept else "none"
            text += f" ({left} of them after counting the number of methods)"
        parts.append(text)
    return f"{labels.get(metric, metric)}: {'; '.join(parts) or 'nothing to compare'}."


def inits_sections(
    summary: pd.DataFrame,
    runs: pd.DataFrame,
    tuning: pd.DataFrame,
    *,
    labels: Mapping[str, str],
    label: str,
    notes: Sequence[str] = (),
    failed: Mapping[str, str] | None = None,
) -> list[Section]:
    """What was run, gains, losses along the way, every number, and the tuning.

    Args:
        summary: As `lorascope.sweeps.summarise_inits` makes it.
        runs: One row a run.
        tuning: One row a method and rate.
        labels: Metric -> words.
        label: What was run, in a sentence.
        notes: What a reader must know.
        failed: Cell -> reason.
    """
    rows: list[dict[str, Any]] = [{str(k): v for k, v in row.items()} for row in summary.to_dict("records")]
    compared = [m for m in summary["metric"].unique() if (summary[summary["metric"] == m]["helped"] != "").any()]
    figures = {}
    losses = [m for m in compared if m.startswith("held_out_loss@")]
    if losses:  # what the headline goes by comes first
        last = max(losses, key=lambda name: int(name.split("@")[1]))
        compared = [last, *(m for m in compared if m != last)]
    for metric in compared:
        info = gains_info(rows, metric, label=labels.get(metric, metric))
        caption = (
            f"Best: {info.methods[0]} ({show(info.gains[0])}), worst: {info.methods[-1]} ({show(info.gains[-1])})."
        )
        figures[info.label] = (plot_gains(info), caption)
    sections = [Section("form", "What was run", (label, _HOW), points=tuple(notes))]
    if figures:
        sections.append(Section("gains", "Better than the default?", figures=figures))
    means: dict[str, dict[int, float]] = {}
    for row in rows:
        name, _, step = str(row["metric"]).partition("@")
        if name == "held_out_loss":
            means.setdefault(str(row["method"]), {})[int(step)] = float(row["mean"])
    if means:
        caption = "Means over seeds, each method at its own learning rate; the default is dashed."
        sections.append(
            Section("steps", "Losses along the way", figures={"all": (plot_steps(steps_info(means)), caption)})
        )
    table = inits_frame(summary, labels)
    sections.append(
        Section("numbers", "Every number", tables=(Table.from_frame(table, "Means, differences and verdicts"),))
    )
    sections.append(Section("runs", "Runs", tables=(Table.from_frame(runs, "One row a method and seed"),)))
    sections.append(
        Section(
            "tuning",
            "Learning rates",
            ("Validation loss at the end of training, mean over the tuning seeds; inf where a run failed.",),
            tables=(Table.from_frame(tuning, "One row a method and rate"),),
        )
    )
    if failed:
        points = tuple(f"{name}: {reason}" for name, reason in failed.items())
        sections.append(Section("failed", "Runs that failed", points=points))
    return sections


def inits_frame(summary: pd.DataFrame, labels: Mapping[str, str]) -> pd.DataFrame:
    """The summary in words: one row a metric and method.

    Example:
        >>> row = {"method": "eva", "metric": "ce", "mean": 2.0, "difference": -0.1, "low": -0.2, "high": 0.0, "t": -3.0}
        >>> frame = pd.DataFrame([{**row, "p": 0.05, "p_holm": 0.05, "helped": "undecided"}])
        >>> inits_frame(frame, {"ce": "Cross-entropy"})["minus default's (95 %)"][0]
        '−0.1 (−0.2 to 0)'
    """
    rows = []
    for row in summary.to_dict("records"):
        gap = ""
        if pd.notna(row["difference"]):
            gap = show(row["difference"])
            if pd.notna(row["low"]):
                gap += f" ({show(row['low'])} to {show(row['high'])})"
        rows.append(
            {
                "metric": labels.get(str(row["metric"]), str(row["metric"])),
                "method": row["method"],
                "mean": row["mean"],
                "minus default's (95 %)": gap,
                "helped": row["helped"],
                "t": "" if pd.isna(row["t"]) else show(row["t"], 3),
                "p": "" if pd.isna(row["p"]) else show(row["p"], 2),
                "adjusted p": "" if pd.isna(row["p_holm"]) else show(row["p_holm"], 2),
            }
        )
    return pd.DataFrame(rows)
