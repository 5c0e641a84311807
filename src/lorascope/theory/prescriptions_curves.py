"""Curves of both stages along one parameter, and the mismatch map of reused data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from lorascope.core.errors import InputError, unknown_name
from lorascope.theory._record import DATA, Record, one_of
from lorascope.theory._rows import Row, Setting, along, flags, logarithmic, row_of
from lorascope.theory.finetuned import FineTuned
from lorascope.theory.pretraining import bayes_floor

AXES = ("alpha", "ridge", "noise", "kappa0", "alpha_finetune", "ridge_finetune", "fraction")
SECOND_AXES = ("alpha_finetune", "ridge_finetune", "fraction")
DIFFER_RIDGE = 2.0
DIFFER_ERROR = 0.05


@dataclass(frozen=True, kw_only=True)
class Point(Record):
    """Both stages at one setting.

    Attributes:
        setting: What was asked.
        pretrained: Stage 1, as `Pretrained.to_dict` gives it.
        finetuned: Kind of data -> stage 2, as `FineTuned.to_dict` gives it; empty without stage 2.
        bayes_noise: Floor of the effective noise; None with softmax.
        warnings: Why a number is not to be trusted.
        schema_version: Version of this layout.
    """

    setting: dict[str, Any]
    pretrained: dict[str, Any]
    finetuned: dict[str, dict[str, Any]]
    bayes_noise: float | None
    warnings: list[str] = field(default_factory=list)
    schema_version: int = 1

    kind: ClassVar[str] = "theory_point"


@dataclass(frozen=True, kw_only=True)
class Curve(Record):
    """Both stages along one parameter.

    Attributes:
        over: The parameter.
        setting: The others.
        rows: One row a value, each with its warnings.
        warnings: Why some numbers are not to be trusted, with the number of rows.
        schema_version: Version of this layout.
    """

    over: str
    setting: dict[str, Any]
    rows: list[Row]
    warnings: list[str] = field(default_factory=list)
    schema_version: int = 1

    kind: ClassVar[str] = "theory_curve"


@dataclass(frozen=True, kw_only=True)
class Mismatch(Record):
    """Where the test error and the alignment ask for different ridges.

    Attributes:
        setting: What is held fixed.
        rows: One row a kind of data and ridge, under ``data``.
        best: Kind of data -> ``alignment`` (the row with the highest one) and ``test_error`` (with the lowest one), among
            rows without warnings where there are any.
        differ: Kind of data -> whether those ridges differ by more than a factor 2 and the ridge that is best for alignment
            costs more than 5 % of the test error.
        warnings: Why some numbers are not to be trusted.
        schema_version: Version of this layout.
    """

    setting: dict[str, Any]
    rows: list[Row]
    best: dict[str, dict[str, Row]]
    differ: dict[str, bool]
    warnings: list[str] = field(default_factory=list)
    schema_version: int = 1

    kind: ClassVar[str] = "mismatch"


def point(setting: Setting, data: Sequence[str] | None = None, *, progress: bool = False) -> Point:
    """Both stages at one setting, with stage 2 on one or several kinds of data.

    Args:
        setting: The setting.
        data: Kinds of data; by default that of the setting.
        progress: Show a progress bar.

    Returns:
        The numbers with every warning.

    Raises:
        InputError: A value is out of range or unknown.

    Example:
        >>> asked = Setting(alpha=0.3, tokens=2, kappa0=0.5, noise=0.5, ridge=0.03, alpha_finetune=3.0, samples=1024)
        >>> found = point(asked, ["fresh", "reused"])
        >>> round(found.finetuned["reused"]["test_error"], 2)
        0.27
    """
    from tqdm.auto import tqdm

    kinds = [one_of("data", kind, DATA) for kind in data or [setting.data]]
    first = setting.first()
    second: dict[str, FineTuned] = {}
    if setting.alpha_finetune is not None:
        bar = tqdm(kinds, desc="kinds of data", unit="kind", disable=not progress)
        second = {kind: setting.but(data=kind).second(first) for kind in bar}
    words = [f"stage 1: {word}" for word in first.warnings]
    for kind, found in second.items():
        words += [f"{kind}: {word}" for word in found.warnings if word not in words]
    return Point(
        setting=asdict(setting),
        pretrained=first.to_dict(),
        finetuned={kind: found.to_dict() for kind, found in second.items()},
        bayes_noise=floor_of(setting),
        warnings=words,
    )


def floor_of(setting: Setting) -> float | None:
    """The Bayes floor of a setting; None with softmax, for which there is none here."""
    if setting.activation != "linear":
        return None
    return bayes_floor(alpha=setting.alpha, tokens=setting.tokens, kappa0=setting.kappa0, noise=setting.noise)


def curve(setting: Setting, over: str, values: Sequence[float | int], *, progress: bool = False) -> Curve:
    """Both stages along one parameter: sample-complexity curves, dependence on a ridge, and so on.

    Args:
        setting: The others. A ridge of None is the best one at each point.
        over: One of ``alpha``, ``ridge``, ``noise``, ``kappa0``, ``alpha_finetune``, ``ridge_finetune``, ``fraction``.
        values: At which the parameter is taken. They are computed from the largest down, each from its neighbour.
        progress: Show a progress bar.

    Returns:
        The rows in rising order.

    Raises:
        InputError: A value is out of range or unknown.

    Example:
        >>> asked = Setting(alpha=0.3, tokens=2, kappa0=0.5, noise=0.5, ridge=0.03)
        >>> [round(row["delta_eff"], 2) for row in curve(asked, "alpha", [0.1, 0.3, 1.0]).rows]
        [0.82, 0.4, 0.29]
    """
    if over not in AXES:
        raise unknown_name("over", over, AXES)
    if not values:
        raise InputError("values is empty: give at least one value of the curve")
    if over in SECOND_AXES and setting.alpha_finetune is None:
        raise InputError(
            f"a curve over {over} is one of stage 2: give alpha_finetune, the number of its sequences over d"
        )
    places = sorted({float(value) for value in values}, reverse=True)
    if over in SECOND_AXES:
        rows = _second_only(setting, over, places, progress)
    else:
        rows = [
            {over: getattr(asked, over), **row}
            for asked, row in along([setting.but(**{over: place}) for place in places], over, progress)
        ]
    rows.reverse()
    return Curve(over=over, setting=asdict(setting), rows=rows, warnings=flags(rows))


def _second_only(setting: Setting, over: str, places: Sequence[float], progress: bool) -> list[Row]:
    from tqdm.auto import tqdm

    first = setting.first()
    rows, near = [], None
    for place in tqdm(places, desc=over, unit="point", disable=not progress):
        found = setting.but(**{over: place}).second(first, near)
        near = found if found.converged and found.q > 1e-3 else None
        rows.append({over: place, **row_of(first, found)})
    return rows


def mismatch(
    setting: Setting,
    *,
    ridges: Sequence[float | int] | None = None,
    data: Sequence[str] = ("reused", "fresh"),
    progress: bool = False,
) -> Mismatch:
    """Test error against alignment along the pre-training ridge.

    On reused data a small ridge leaves a small residual on the sequences that are fine-tuned on, so that the update is found
    well, while the frozen matrix itself is poor on fresh data: a good alignment then does not mean a good test error.

    Args:
        setting: Everything but the ridge and the kind of data.
        ridges: Of stage 1; by default 31 from 0.003 to 1.
        data: Kinds of data.
        progress: Show a progress bar.

    Returns:
        The map, with the best ridge for each aim.

    Raises:
        InputError: A value is out of range or unknown.
    """
    given = logarithmic(0.003, 1.0, 31) if ridges is None else list(ridges)
    rows: list[Row] = []
    best: dict[str, dict[str, Row]] = {}
    differ: dict[str, bool] = {}
    for kind in data:
        found = curve(setting.but(data=kind), "ridge", given, progress=progress)
        part: list[Row] = [{"data": kind, **row} for row in found.rows]
        rows += part
        good = [row for row in part if not row["warnings"]] or part
        aligned = max(good, key=lambda row: row["alignment"])
        precise = min(good, key=lambda row: row["test_error"])
        best[kind] = {"alignment": aligned, "test_error": precise}
        ratio = max(aligned["ridge"], precise["ridge"]) / max(min(aligned["ridge"], precise["ridge"]), 1e-12)
        differ[kind] = ratio > DIFFER_RIDGE and aligned["test_error"] > (1 + DIFFER_ERROR) * precise["test_error"]
    return Mismatch(setting=asdict(setting), rows=rows, best=best, differ=differ, warnings=flags(rows))
