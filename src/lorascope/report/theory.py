"""What the solvable theory says as parts of a page: an answer in words, the curve with simulations on it, the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from lorascope.figures.theory import LABELS, plot_theory_curves, theory_curves_info
from lorascope.report.sections import Section, Table
from lorascope.report.text import listing, show

Row = Mapping[str, Any]
READING = (
    "Lines are the theory's limit of large d, dotted where a warning stands against them. Open marks are simulations at the "
    "d they name, with one standard error over seeds; at finite d they lie off the limit by about 3.4 / d and more."
)
SOURCE = (
    "The model is that of arXiv 2606.05899. Its body was not available to us: the equations are our own derivation in the "
    "same setting, checked against simulation, and the axes of these figures are our choice."
)
HEADS = {
    "alpha": "N/d²",
    "alpha_finetune": "N′/d",
    "delta_eff": "noise, fresh",
    "delta_recalibrated": "noise, times M/Q",
    "delta_reuse": "noise, reused",
    "noise_finetune": "residual noise",
    "rank_fraction": "rank over d",
    "ridge": "λ",
    "ridge_finetune": "λ′",
    "smallest_dim": "d ≥",
}
FIRST = ("delta_eff", "delta_reuse", "delta_recalibrated", "Q", "M")
SECOND = ("alignment", "test_error", "jump")


def theory_sections(result: Mapping[str, Any], points: Sequence[Row] = ()) -> list[Section]:
    """The parts of a page for a result of `lorascope.theory.prescriptions`.

    Args:
        result: Its ``to_dict()``.
        points: Simulations as `lorascope.theory.points.points_table` gives them, drawn on the curves.

    Returns:
        Sections: the answer with its figures, flags, numbers.
    """
    kind = str(result["kind"])
    body = _BODIES[kind](result, points)
    flags = Section("flags", "What stands against these numbers", points=tuple(result["warnings"]))
    if not result["warnings"]:
        flags = Section(
            "flags", "What stands against these numbers", ("No warning: every point is within the regime.",)
        )
    return [*body, flags, Section("source", "Where this comes from", (READING, SOURCE))]


def theory_headline(result: Mapping[str, Any]) -> str:
    """The answer of a result in a sentence or two; with the number of its warnings."""
    text = _HEADLINES[str(result["kind"])](result)
    if count := len(result["warnings"]):
        text += f" {count} warning{'s' if count > 1 else ''} below."
    return text


def curve_figures(
    curves: Mapping[str, Sequence[Row]],
    x: str,
    ys: Sequence[str],
    *,
    points: Mapping[str, Sequence[Row]] | None = None,
    caption: str = "",
    **more: Any,
) -> dict[str, tuple[go.Figure, str]]:
    """A figure for each quantity that the curves have, by its label."""
    figures = {}
    for y in ys:
        if any(y in row for rows in curves.values() for row in rows):
            info = theory_curves_info(curves, x, y, points=points, **more)
            name = info.y_label[:1].upper() + info.y_label[1:]
            ends = "; ".join(_span(line.name, line.y) for line in info.lines) if len(info.lines) < 5 else ""
            figures[name] = (
                plot_theory_curves(info),
                " ".join(filter(None, (f"{name}: {ends}." if ends else "", caption))),
            )
    return figures


def head_of(column: str) -> str:
    """A quantity as the head of a column.

    Example:
        >>> head_of("delta_eff"), head_of("test_error")
        ('noise, fresh', 'test error')
    """
    return HEADS.get(column, column.replace("_", " "))


def rows_table(rows: Sequence[Row], columns: Sequence[str], caption: str) -> Table:
    """A table of rows with some columns; the last one counts their warnings in words."""
    kept = [name for name in columns if any(name in row for row in rows)]
    frame = pd.DataFrame([{name: row.get(name) for name in kept} for row in rows])
    frame.columns = pd.Index([head_of(name) for name in kept])
    frame["flagged"] = ["yes" if row["warnings"] else "" for row in rows]
    return Table.from_frame(frame, caption)


def _span(name: str, values: Sequence[float]) -> str:
    return f"{name} from {show(min(values), 3)} to {show(max(values), 3)}"


def _setting(result: Mapping[str, Any], without: Sequence[str] = ()) -> str:
    """The setting as a sentence."""
    values = dict(result.get("setting") or result)
    names = ("tokens", "alpha", "kappa0", "noise", "ridge", "penalty", "activation", "alpha_finetune", "ridge_finetune")
    words = {
        "alpha": "N/d²",
        "alpha_finetune": "N′/d",
        "ridge_finetune": "λ′",
        "ridge": "λ",
        "noise": "Δ",
        "kappa0": "κ₀",
    }
    words |= {"tokens": "T"}
    parts = []
    for name in names:
        if name in values and name not in without:
            value = values[name]
            if value is None and name == "alpha_finetune":
                continue
            shown = "best at each point" if value is None else value if isinstance(value, str) else f"{value:g}"
            parts.append(f"{words.get(name, name)} {shown}")
    return f"Setting: {', '.join(parts)}."


def _point(result: Mapping[str, Any], points: Sequence[Row]) -> list[Section]:
    first = result["pretrained"]
    names = ("delta_eff", "delta_reuse", "delta_recalibrated", "error", "Q", "M", "k", "beta", "rank_fraction")
    rows = [(LABELS.get(name, name), show(first[name])) for name in names]
    if result["bayes_noise"] is not None:
        rows.append(("Bayes floor of the effective noise", show(result["bayes_noise"])))
    tables = [Table("Stage 1, pre-training", ("Quantity", "Value"), tuple(rows))]
    if second := result["finetuned"]:
        columns: tuple[str, ...] = ("alignment", "test_error", "train_loss", "m", "q", "jump")
        if any(row["smallest_dim"] for row in second.values()):
            columns += ("smallest_dim",)
        head = ("Data", *(HEADS.get(name) or LABELS.get(name, name) for name in columns))
        body = tuple((kind, *(show(row[name]) for name in columns)) for kind, row in second.items())
        tables.append(Table("Stage 2, LoRA", head, body))
    return [Section("point", "Both stages", (_setting(result),), tables=tuple(tables))]


def _point_headline(result: Mapping[str, Any]) -> str:
    text = f"Pre-training leaves an effective noise of {show(result['pretrained']['delta_eff'], 3)}."
    for kind, row in result["finetuned"].items():
        text += f" LoRA on {kind} data: alignment {row['alignment']:.3f}, test error {show(row['test_error'], 3)}"
        needed = row["smallest_dim"]
        text += "." if needed is None else f" (for d of {needed:,} and more, where at most 5% of stage 1 is reused)."
    return text


def _curve(result: Mapping[str, Any], points: Sequence[Row]) -> list[Section]:
    over, rows = result["over"], result["rows"]
    marks = {"theory": points} if points else None
    figures = curve_figures({"theory": rows}, over, [*SECOND[:2], *FIRST], points=marks)
    columns = (over, *SECOND, *FIRST)
    return [
        Section("curve", f"Along {LABELS.get(over, over)}", (_setting(result, (over,)),), figures=figures),
        Section("numbers", "Every point", tables=(rows_table(rows, columns, "The curve"),)),
    ]


def _curve_headline(result: Mapping[str, Any]) -> str:
    rows, over = result["rows"], result["over"]
    name = "test_error" if "test_error" in rows[0] else "delta_eff"
    good = [row for row in rows if not row["warnings"]]
    if not good:
        return f"Every point along {LABELS.get(over, over)} has a warning."
    best = min(good, key=lambda row: row[name])
    return (
        f"The lowest {LABELS[name]} along {LABELS.get(over, over)} is {show(best[name], 3)}, at {show(best[over], 3)}."
    )


def _regularisation(result: Mapping[str, Any], points: Sequence[Row]) -> list[Section]:
    rules = {"best": result["best_ridge"]} if result["best_ridge"] > 0 else {}
    floors = {"Bayes floor": result["bayes_noise"]}
    if result["penalty"] == "nuclear":
        floors["best Frobenius ridge"] = result["frobenius_noise"]
    marks = {result["penalty"]: points} if points else None
    figures = curve_figures(
        {result["penalty"]: result["rows"]}, "ridge", ["delta_eff"], points=marks, rules=rules, floors=floors
    )
    figures |= curve_figures(
        {result["penalty"]: result["rows"]}, "ridge", ["delta_reuse", "delta_recalibrated"], points=marks
    )
    return [
        Section("ridge", "How strongly to regularise pre-training", (_setting(result),), figures=figures),
        Section(
            "numbers", "Every ridge", tables=(rows_table(result["rows"], ("ridge", *FIRST), "Stage 1 along lambda"),)
        ),
    ]


def _regularisation_headline(result: Mapping[str, Any]) -> str:
    text = f"Best {result['penalty']} ridge {show(result['best_ridge'], 3)}: effective noise "
    text += show(result["best"]["delta_eff"], 3)
    if result["bayes_noise"] is not None:
        text += f", against a Bayes floor of {show(result['bayes_noise'], 3)}"
    if result["penalty"] == "nuclear" and result["frobenius_noise"] is not None:
        text += f" and {show(result['frobenius_noise'], 3)} of the best Frobenius ridge"
    if result["near"]:
        low, high = result["near"]
        text += f". From {show(low, 2)} {'up' if high is None else f'to {show(high, 2)}'} it is within 5 %"
    return f"{text}."


def _recalibration(result: Mapping[str, Any], points: Sequence[Row]) -> list[Section]:
    plain = {"as trained": [{**row, "shown": row["delta_eff"]} for row in result["rows"]]}
    scaled = {"times M/Q": [{**row, "shown": row["delta_recalibrated"]} for row in result["rows"]]}
    info = theory_curves_info(plain | scaled, "ridge", "shown", rules={"this ridge": result["plain"]["ridge"]})
    figure = plot_theory_curves(info)
    figure.update_yaxes(title={"text": "effective noise on fresh data"})
    cases = {"as trained": "plain", "times M/Q": "recalibrated", "as trained, best ridge": "best_plain"}
    rows = [{"case": label, **result[name]} for label, name in cases.items()]
    columns = ("case", "ridge", "noise_finetune", *SECOND)
    caption = "Effective noise before and after scaling S, along the pre-training ridge."
    table = rows_table(rows, columns, "Both stages on fresh data")
    return [Section("beta", "Scaling the frozen matrix", figures={"all": (figure, caption)}, tables=(table,))]


def _recalibration_headline(result: Mapping[str, Any]) -> str:
    before, after = result["plain"]["test_error"], result["recalibrated"]["test_error"]
    return (
        f"Scaling S by {show(result['beta'], 3)} takes {show(result['removed'], 2)} off the effective noise "
        f"({show(result['noise_before'], 3)} to {show(result['noise_after'], 3)}) and moves the test error from "
        f"{show(before, 3)} to {show(after, 3)}."
    )


def _mismatch(result: Mapping[str, Any], points: Sequence[Row]) -> list[Section]:
    kinds = list(result["best"])
    curves = {kind: [row for row in result["rows"] if row["data"] == kind] for kind in kinds}
    marks = {kind: [row for row in points if row.get("data") == kind] for kind in kinds}
    figures = {}
    info = theory_curves_info(curves, "alignment", "test_error", points=marks, tag="ridge")
    figures["Test error against alignment"] = (
        plot_theory_curves(info),
        "Each curve runs along the pre-training ridge; point at it to see the ridge. Good is low and to the right.",
    )
    figures |= curve_figures(curves, "ridge", ["test_error", "alignment"], points=marks)
    rows = [
        {"data": kind, "best for": aim, **row} for kind, aims in result["best"].items() for aim, row in aims.items()
    ]
    table = rows_table(
        rows,
        ("data", "best for", "ridge", "alignment", "test_error", "smallest_dim"),
        "The ridge that is best for each aim",
    )
    return [
        Section(
            "map", "Test error against alignment", (_setting(result, ("ridge",)),), tables=(table,), figures=figures
        )
    ]


def _mismatch_headline(result: Mapping[str, Any]) -> str:
    parts = []
    for kind, aims in result["best"].items():
        aligned, precise = aims["alignment"], aims["test_error"]
        if result["differ"][kind]:
            parts.append(
                f"On {kind} data the two disagree: alignment is best at ridge {show(aligned['ridge'], 2)} "
                f"({aligned['alignment']:.3f}), where the test error is {show(aligned['test_error'], 3)}; the test error is "
                f"lowest at {show(precise['ridge'], 2)} ({show(precise['test_error'], 3)})."
            )
        else:
            parts.append(f"On {kind} data one ridge serves both, {show(precise['ridge'], 2)}.")
    return " ".join(parts)


def _budget(result: Mapping[str, Any], points: Sequence[Row]) -> list[Section]:
    best = result["best"]
    rules = {"best": None if best is None else best["share"]}
    figures = curve_figures({"theory": result["rows"]}, "share", ["test_error", "alignment"], rules=rules)
    words = (
        f"Budget {result['budget']:g} d² labels of stage 1 at d = {result['dim']}, a fine-tuning label costing "
        f"{result['price']:g} of them. {_setting(result, ('alpha', 'alpha_finetune'))}"
    )
    columns = ("share", "alpha", "alpha_finetune", "ridge", "ridge_finetune", *SECOND, "delta_eff")
    table = rows_table(result["rows"], columns, "Every split")
    return [
        Section("split", "Where the labels go", (words,), figures=figures),
        Section("numbers", "Splits", tables=(table,)),
    ]


def _budget_headline(result: Mapping[str, Any]) -> str:
    best, dim = result["best"], result["dim"]
    if best is None:
        return "Every split has a warning: the budget is too small for this theory."
    first, second = round(best["alpha"] * dim**2), round(best["alpha_finetune"] * dim)
    aim = LABELS[result["aim"]]
    return (
        f"Best {aim} {show(best[result['aim']], 3)} with {best['share']:.1%} of the budget in pre-training: "
        f"{first:,} sequences there and {second:,} for fine-tuning."
    )


def _selection(result: Mapping[str, Any], points: Sequence[Row]) -> list[Section]:
    choices = list(dict.fromkeys(row["choice"] for row in result["rows"]))
    curves = {}
    for choice in choices:
        rows = [row for row in result["rows"] if row["choice"] == choice]
        if choice == "uniform":  # the same at every fraction
            places = sorted({row["fraction"] for row in result["rows"]})
            rows = [{**rows[0], "fraction": place} for place in (places[0], places[-1])]
        curves[choice] = rows
    marks = {choice: [row for row in points if row.get("choice") == choice] for choice in choices}
    figures = curve_figures(curves, "fraction", ["test_error", "alignment"], points=marks)
    columns = ("choice", "fraction", *SECOND, "noise_finetune")
    table = rows_table(result["rows"], columns, "Every choice")
    return [
        Section("choice", "Which sequences to label", (_setting(result),), figures=figures),
        Section("numbers", "Choices", tables=(table,)),
    ]


def _selection_headline(result: Mapping[str, Any]) -> str:
    best = result["best"]
    if best is None:
        return "Every choice has a warning."
    if best["choice"] == "uniform":
        return f"No choice beats the uniform one (test error {show(best['test_error'], 3)})."
    ratio = result["error_ratio"]
    gain = "" if ratio is None else f", {1 - ratio:.1%} below the uniform choice"
    return (
        f"Label the {best['fraction']:.0%} with the {best['choice']} frozen logits: test error "
        f"{show(best['test_error'], 3)}{gain}."
    )


def _thresholds(result: Mapping[str, Any], points: Sequence[Row]) -> list[Section]:
    rules = {"weak recovery (Bayes)": result["weak"], "trusted from": result["trusted"]}
    marks = {"theory": points} if points else None
    figures = curve_figures(
        {"theory": result["rows"]}, "alpha_finetune", ["alignment", "jump"], points=marks, rules=rules
    )
    head = ("Alignment", "N′ / d", "Flags")
    body = tuple(
        (f"{row['alignment']:g}", show(row["alpha_finetune"], 3), "; ".join(row["warnings"]))
        for row in result["reached"]
    )
    ridge = "best at each point" if result["ridge"] is None else f"{result['ridge']:g}"
    words = f"Setting: T {result['tokens']}, residual noise {show(result['noise'], 3)}, λ′ {ridge}."
    table = Table("Sequences that an alignment takes", head, body, words=True)
    return [Section("samples", "How many sequences", (words,), tables=(table,), figures=figures)]


def _thresholds_headline(result: Mapping[str, Any]) -> str:
    reached = [row for row in result["reached"] if row["alpha_finetune"] is not None and not row["warnings"]]
    text = f"Below N′/d = {show(result['weak'], 2)} even the Bayes-optimal iteration finds no trace from a blind start."
    if reached:
        parts = [f"{row['alignment']:g} takes {show(row['alpha_finetune'], 3)}" for row in reached]
        text += f" Alignment {listing(parts)}."
    if result["trusted"] is not None:
        text += f" The equations are trusted from {show(result['trusted'], 3)} on."
    return text


_BODIES = {
    "theory_point": _point,
    "theory_curve": _curve,
    "regularisation": _regularisation,
    "recalibration": _recalibration,
    "mismatch": _mismatch,
    "budget": _budget,
    "selection": _selection,
    "thresholds": _thresholds,
}
_HEADLINES = {
    "theory_point": _point_headline,
    "theory_curve": _curve_headline,
    "regularisation": _regularisation_headline,
    "recalibration": _recalibration_headline,
    "mismatch": _mismatch_headline,
    "budget": _budget_headline,
    "selection": _selection_headline,
    "thresholds": _thresholds_headline,
}
