"""What can be said about theory and measurement: one rule a sentence, no more than the numbers show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorascope.bridge.noise import EffectiveNoise
from lorascope.bridge.shape import CurvePoint, ShapeFit

WORDS = {
    "column_above": "overlap of column spaces (directions written)",
    "row_above": "overlap of row spaces (directions read)",
    "update": "cosine of the updates",
    "relative_error": "error against the largest run",
}


def findings_of(
    noise: EffectiveNoise,
    sizes: Sequence[dict[str, Any]],
    shapes: Sequence[ShapeFit],
    relations: Sequence[dict[str, Any]],
    curve: Sequence[CurvePoint],
) -> list[str]:
    """Sentences in the order in which a reader asks.

    Args:
        noise: Of the frozen model.
        sizes: Rows of the data sizes.
        shapes: Measured curves over the theory's.
        relations: Error against overlap, measured and by the theory.
        curve: The theory's.
    """
    ordered = sorted(sizes, key=lambda row: row["rows"])
    found = [_noise(noise)]
    found += [_direction(ordered, name) for name in ("column_above", "update", "relative_error")]
    found += [_shape(shape, curve) for shape in shapes if shape.measured != "row_above"]
    found += [line for line in (_factors(shapes), _relation(relations), _same_error(relations, curve)) if line]
    found += [line for line in (_between(relations),) if line]
    return found


def _noise(noise: EffectiveNoise) -> str:
    text = (
        f"Noise: the frozen model leaves a residual variance of {noise.frozen:.4f} ({noise.frozen_error:.4f}) a choice, the "
        f"largest run {noise.reference:.4f} ({noise.reference_error:.4f}); equal chances for all choices leave "
        f"{noise.uniform:.4f}."
    )
    if noise.noise is None:
        return f"{text} The difference is within two standard errors, so that the theory's Dn cannot be estimated."
    return f"{text} In units of what the largest run explains, Dn is at most {noise.noise:.1f}."


def _direction(sizes: Sequence[dict[str, Any]], name: str) -> str:
    """Whether a quantity goes where the theory sends it, from the smallest size to the largest."""
    first, last = sizes[0], sizes[-1]
    change = last[name] - first[name]
    wanted = -1 if name == "relative_error" else 1
    ends = [f"{row[name]:.3f} at {row['rows']} rows" for row in (first, last)]
    text = f"Direction: {WORDS[name]} goes from {ends[0]} to {ends[1]}"
    errors = [row[f"{name}_error"] for row in (first, last)]
    if None in errors:
        return f"{text}; with one seed there is no telling whether that is more than noise."
    spread = (errors[0] ** 2 + errors[1] ** 2) ** 0.5
    if abs(change) <= 2 * spread:
        return f"{text}: no change beyond two standard errors ({2 * spread:.3f}), where the theory has one."
    return f"{text}: {'as' if change * wanted > 0 else 'against'} the theory's direction, beyond two standard errors."


def _shape(shape: ShapeFit, curve: Sequence[CurvePoint]) -> str:
    """Whether the theory's curve, moved along its axis, passes through the measured points."""
    count = len(shape.deviations)
    name = WORDS[shape.measured]
    valid = [getattr(point, shape.quantity) for point in curve if point.valid]
    if not valid:
        return f"Shape: the theory has no valid point at this noise, so that {name} cannot be compared with it."
    if shape.outside == count:
        low, high = min(valid), max(valid)
        return (
            f"Shape: does not hold for the {name}. The theory has values from {low:.2f} to {high:.2f} where it is valid, "
            f"and nothing to say below its threshold; the best place for all {count} sizes is outside of that."
        )
    unknown = any(error != error for error in shape.errors)
    gap = f"deviation {shape.rms:.3f}, of a constant {shape.constant_rms:.3f}"
    placed = f"{shape.outside} of {count} sizes where the theory is not valid"
    if unknown:
        return f"Shape: the {name} along the moved curve: {gap}; {placed}; with one seed nothing is tested."
    if shape.within == count and shape.outside == 0 and shape.rms < shape.constant_rms:
        verdict = "is compatible with the theory's curve, moved along its axis by one fitted factor"
    else:
        verdict = "does not follow the theory's curve, however it is moved along its axis"
    return f"Shape: the {name} {verdict} ({shape.within} of {count} sizes within two standard errors; {gap}; {placed})."


def _factors(shapes: Sequence[ShapeFit]) -> str:
    """One amount of data has one place on the theory's axis, whatever is measured."""
    known = {shape.measured: shape for shape in shapes if shape.outside < len(shape.deviations)}
    if not {"column_above", "relative_error"} <= known.keys():
        return ""
    one, two = known["column_above"].factor, known["relative_error"].factor
    ratio = max(one, two) / min(one, two)
    verdict = "one place on the theory's axis would describe both" if ratio < 1.5 else "no one place describes both"
    return f"One axis: overlap and error ask for factors that differ by {ratio:.1f}; {verdict}."


def _relation(relations: Sequence[dict[str, Any]]) -> str:
    """Error against overlap, in which no horizontal scale is left."""
    known = [row for row in relations if row["theory_error"] is not None]
    low, high = (pick(row["overlap"] for row in relations) for pick in (min, max))
    if not known:
        return (
            f"Error against overlap: measured overlaps ({low:.2f} to {high:.2f}) lie outside the theory's valid range, so "
            "that its relation of error and overlap is not tested by these runs."
        )
    worst = max(known, key=lambda row: abs(row["relative_error"] - row["theory_error"]))
    return (
        f"Error against overlap: {len(known)} of {len(relations)} sizes can be compared; the largest gap is at "
        f"{worst['rows']} rows: measured {worst['relative_error']:.2f}, theory {worst['theory_error']:.2f}."
    )


def _same_error(relations: Sequence[dict[str, Any]], curve: Sequence[CurvePoint]) -> str:
    """The overlap that goes with a measured error, here and in the theory: the pair of errors that lie closest."""
    pairs = [
        (abs(row["relative_error"] - point.error), row, point) for row in relations for point in curve if point.valid
    ]
    if not pairs:
        return ""
    gap, row, point = min(pairs, key=lambda pair: pair[0])
    if gap > 0.1:
        return "Overlap at the same error: no measured error is within 0.1 of one at which the theory is valid."
    theory = f"the theory's point of the nearest error, {point.error:.2f}, has an overlap of {point.overlap:.2f}"
    return (
        f"Overlap at the same error: at {row['rows']} rows the error is {row['relative_error']:.2f} and the overlap "
        f"{row['overlap']:.2f}; {theory}."
    )


def _between(relations: Sequence[dict[str, Any]]) -> str:
    """In the theory two seeds agree as the square of what each has in common with the truth."""
    known = [row for row in relations if row["between"] is not None]
    if not known:
        return ""
    parts = ", ".join(
        f"{row['between']:.3f} against {row['theory_between']:.3f} at {row['rows']} rows" for row in known
    )
    what = (
        "column spaces, chance taken out, against the square of their overlap with the largest run, the theory's value"
    )
    return f"Seeds with each other ({what}): {parts}."
