"""The theory's curve beside a measurement: what can be compared although the two have different scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.bridge.plan import BridgePlan
from lorascope.core.errors import InputError
from lorascope.theory import FineTuned, finetune
from lorascope.theory.extension_rank import RankFineTuning, finetune_rank

LARGEST_RANK = 16
"""Above it the curve against data per parameter hardly changes with the rank, and the average has many dimensions."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """The theory at one amount of data.

    Attributes:
        data: Sequences per parameter of the update, alpha' / r.
        overlap: Squared alignment o_w^2, the squared cosine between update and target.
        error: Error of the update alone over that of no update, (q^2 + q0^2 - 2 m^2) / q0^2.
        jump: The theory's own diagnostic.
        valid: Whether nothing is known against the point; others are not to be trusted.
        why: The theory's warnings.
    """

    data: float
    overlap: float
    error: float
    jump: float
    valid: bool
    why: list[str]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class ShapeFit:
    """A measured curve laid over the theory's by one free factor on the horizontal axis.

    Attributes:
        measured: Name of what was measured.
        quantity: What the theory calls it: ``overlap`` or ``error``.
        factor: The theory's data per parameter for one row per parameter of the measurement, by least squares.
        deviations: Measurement minus theory at each size.
        errors: Standard errors of the measurement.
        rms: Root mean square of the deviations.
        constant_rms: The same of the best constant, which has as many free numbers as the curve.
        within: Number of sizes within two standard errors of the curve.
        outside: Number of sizes that the fit places where the theory is not valid.
        theory_change: Change of the theory from the smallest to the largest size at this factor.
        measured_change: The same of the measurement.
    """

    measured: str
    quantity: str
    factor: float
    deviations: list[float]
    errors: list[float]
    rms: float
    constant_rms: float
    within: int
    outside: int
    theory_change: float
    measured_change: float

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return asdict(self)


def check_curve(plan: BridgePlan, tokens: int, ridge: float | int) -> None:
    """Refuse a curve that cannot be drawn, before anything is trained for it.

    Raises:
        InputError: A value is out of range, or the plan has one data size only.
    """
    if not 1 <= tokens <= 4:
        raise InputError(f"tokens {tokens} must be from 1 to 4")
    if not (math.isfinite(ridge) and ridge > 0):
        raise InputError(f"ridge {ridge} must be a number above 0")
    if 1 < plan.rank < tokens:
        raise InputError(
            f"rank {plan.rank} lies between 1 and tokens {tokens}, where there is no theory: take tokens {plan.rank}"
        )
    if len(plan.sizes) < 2:
        raise InputError(
            f"{plan.sizes[0]} rows is one data size: the shape of a curve needs at least two, give more sizes"
        )


def theory_curve(
    *,
    noise: float | int,
    rank: int,
    tokens: int = 2,
    ridge: float | int = 0.1,
    data: Sequence[float] | None = None,
    samples: int = 2**10,
) -> list[CurvePoint]:
    """Stage 2 of the theory against data per parameter.

    Args:
        noise: Dn, in units of the update's own variance (q0 = 1).
        rank: Columns of the update; ranks over `LARGEST_RANK` are replaced by it, rank 1 is the article's model, ranks
            from T on are our extension.
        tokens: T of the model.
        ridge: lambda'.
        data: Places alpha' / r; by default from 0.3 to 60.
        samples: Quasi-random points of the extension.

    Returns:
        Points in rising order of data. Below the recovery threshold there is no theory: the first point whose jump is
        above 0.5 ends the curve.

    Raises:
        InputError: A value is out of range, or the rank lies between 1 and T, where there is no theory.
    """
    places = sorted(np.geomspace(0.3, 60.0, 25).tolist() if data is None else data, reverse=True)
    columns = min(rank, LARGEST_RANK)
    found: list[CurvePoint] = []
    for place in places:
        found.append(_point(place, noise, columns, tokens, ridge, samples))
        if found[-1].jump > 0.5:
            break
    return found[::-1]


def _point(place: float, noise: float | int, columns: int, tokens: int, ridge: float | int, samples: int) -> CurvePoint:
    shared: dict[str, Any] = {"tokens": tokens, "ridge": ridge, "noise": noise, "samples": samples, "start": "informed"}
    found: FineTuned | RankFineTuning
    if columns == 1:
        found = finetune(alpha=place, **shared)
    else:
        found = finetune_rank(alpha=place * columns, rank=columns, **shared, most=60)
    return CurvePoint(
        data=place,
        overlap=found.alignment**2,
        error=found.q**2 + 1.0 - 2.0 * found.m**2,
        jump=found.jump,
        valid=found.valid,
        why=list(found.warnings),
    )


def fit_shape(
    curve: Sequence[CurvePoint],
    quantity: str,
    data: Sequence[float],
    means: Sequence[float],
    errors: Sequence[float],
    *,
    measured: str = "",
) -> ShapeFit:
    """Lay a measurement over the theory's curve by the best factor between their horizontal axes.

    Args:
        curve: Of `theory_curve`.
        quantity: ``overlap`` or ``error``.
        data: Rows per parameter of the measured sizes, rising.
        means: Measured means, with chance taken out where there is a chance level.
        errors: Their standard errors; NaN where unknown.
        measured: Name of what was measured.

    Raises:
        InputError: There are fewer than two sizes, or the curve has fewer than two points.

    Example:
        >>> line = [CurvePoint(data=x, overlap=y, error=1 - y, jump=0.0, valid=True, why=[])
        ...         for x, y in ((1.0, 0.2), (10.0, 0.6), (100.0, 1.0))]
        >>> found = fit_shape(line, "overlap", [0.001, 0.01], [0.2, 0.6], [0.01, 0.01])
        >>> round(found.factor, -2), round(found.rms, 3)
        (1000.0, 0.0)
    """
    if len(data) < 2:
        raise InputError(f"{len(data)} data size: the shape of a curve needs at least two, give more --sizes")
    if len(curve) < 2:
        raise InputError("the theory's curve needs at least two points")
    places = np.log([point.data for point in curve])
    values = np.asarray([getattr(point, quantity) for point in curve])
    x, y = np.log(np.asarray(data, dtype=np.float64)), np.asarray(means, dtype=np.float64)
    shifts = np.linspace(places[0] - x[-1], places[-1] - x[0], 2001)
    predicted = np.interp(x[None] + shifts[:, None], places, values)
    sums = ((y[None] - predicted) ** 2).sum(1)
    best = int(sums.argmin())
    theory = predicted[best]
    return ShapeFit(
        measured=measured or quantity,
        quantity=quantity,
        factor=math.exp(float(shifts[best])),
        deviations=(y - theory).tolist(),
        errors=[float(error) for error in errors],
        rms=_rms(y - theory),
        constant_rms=_rms(y - y.mean()),
        within=int(sum(abs(a - b) <= 2 * e for a, b, e in zip(y, theory, errors, strict=True))),
        outside=_outside(curve, x + shifts[best]),
        theory_change=float(theory[-1] - theory[0]),
        measured_change=float(y[-1] - y[0]),
    )


def _rms(gaps: NDArray[np.float64]) -> float:
    return float(np.sqrt((gaps * gaps).mean()))


def _outside(curve: Sequence[CurvePoint], places: NDArray[np.float64]) -> int:
    """How many places lie outside the curve or beside a point of it that is not valid."""
    logs = np.log([point.data for point in curve])
    count = 0
    for place in places:
        right = int(np.searchsorted(logs, place))
        if right in (0, len(logs)) and not np.isclose(place, logs[min(right, len(logs) - 1)]):
            count += 1
            continue
        sides = (max(right - 1, 0), min(right, len(logs) - 1))
        count += not all(curve[side].valid for side in sides)
    return count


def error_at_overlap(curve: Sequence[CurvePoint], value: float) -> float | None:
    """The theory's error where its overlap is a given value, free of any horizontal scale; None outside its valid range."""
    points = sorted((point.overlap, point.error) for point in curve if point.valid)
    if len(points) < 2 or not points[0][0] <= value <= points[-1][0]:
        return None
    return float(np.interp(value, [point[0] for point in points], [point[1] for point in points]))
