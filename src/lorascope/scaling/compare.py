"""Which law to believe: AICc, and the error on the largest values when they are left out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lorascope.core.errors import InputError, unknown_name
from lorascope.scaling.criteria import aicc
from lorascope.scaling.fit import SIGNS, is_relative
from lorascope.scaling.identify import lost_parameters, show
from lorascope.scaling.laws import LAWS, Form, check_law, values
from lorascope.scaling.optimum import fit_form
from lorascope.scaling.solve import LOSSES
from lorascope.scaling.table import Observations, as_table, observe

CLEAR = 6.0  # a difference of AICc that decides (one more parameter in 27 runs already costs 4)
CLEARER = 0.7  # an error of extrapolation that is smaller by this factor decides
_ORDER = {("additive", False): 0, ("multiplicative", True): 1, ("multiplicative", False): 2, ("additive", True): 3}


@dataclass(frozen=True)
class Candidate:
    """One law with its marks.

    Attributes:
        law: ``"additive"`` or ``"multiplicative"``.
        floor: Whether it has a floor.
        parameters: How many it fits.
        aicc: Corrected Akaike criterion of all runs; infinite with too few runs for it.
        delta: ``aicc`` minus the smallest one.
        held_out: Mean absolute error on the largest values of the axes, each predicted from the rest: a fraction of the
            metric if the noise is relative, else in its unit. None where the rest cannot tell this law's parameters.
        by_axis: The same for each axis that was tested.
    """

    law: str
    floor: bool
    parameters: int
    aicc: float
    delta: float
    held_out: float | None
    by_axis: dict[str, float]

    @property
    def name(self) -> str:
        """The law in words."""
        return f"{self.law} law {'with' if self.floor else 'without'} a floor"


@dataclass(frozen=True)
class LawComparison:
    """Laws side by side.

    Attributes:
        metric: The metric.
        candidates: Best first.
        decided: Whether the runs speak clearly for the first one.
        statement: The choice in words, with its margin.
        warnings: What could not be compared, and why.
        noise: ``"relative"`` or ``"absolute"``: what ``held_out`` is measured in.
        n_runs: Runs that were compared on.
    """

    metric: str
    candidates: tuple[Candidate, ...]
    decided: bool
    statement: str
    warnings: tuple[str, ...]
    noise: str
    n_runs: int

    @property
    def best(self) -> Candidate:
        """The chosen law."""
        return self.candidates[0]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping; an infinite criterion becomes None."""
        found = asdict(self)
        for candidate in found["candidates"]:
            for key in ("aicc", "delta"):
                candidate[key] = candidate[key] if math.isfinite(candidate[key]) else None
        return {**found, "candidates": list(found["candidates"]), "warnings": list(self.warnings)}


def compare_laws(
    table: pd.DataFrame | Mapping[str, Any] | str | Path,
    metric: str = "ce",
    *,
    laws: Sequence[str] = LAWS,
    floors: Sequence[bool] = (False, True),
    loss: str = "bisquare",
    noise: str = "auto",
    signs: str = "auto",
    pool: bool = False,
) -> LawComparison:
    """Compare the laws, with and without a floor, on the same runs.

    AICc decides where it differs by 6 or more. Among laws that are closer, an error of extrapolation that is smaller by
    30 % decides (of each axis the largest value is left out and predicted from the rest); failing that, the lowest AICc
    is taken and said not to be clear.

    Args:
        table: As in `fit_scaling_law`.
        metric: The metric's column.
        laws: Which laws.
        floors: With a floor, without one, or both.
        loss: As in `fit_scaling_law`.
        noise: As in `fit_scaling_law`; the same for all laws.
        signs: As in `fit_scaling_law`.
        pool: As in `fit_scaling_law`.

    Returns:
        The candidates, best first, and the choice in words.

    Raises:
        InputError: As `fit_scaling_law`.

    Example:
        >>> N, R = np.meshgrid([1e8, 3e8, 1e9, 3e9], [4.0, 16, 64, 256])
        >>> noise = 1 + 0.01 * np.cos(7 * np.arange(16))
        >>> runs = {"N": N.ravel(), "R": R.ravel(), "ce": (1e9 / N.ravel()) ** 0.3 * (16 / R.ravel()) ** 0.4 * noise}
        >>> compare_laws(runs).best.law
        'multiplicative'

    References:
        Burnham & Anderson (2002), Model Selection and Multimodel Inference.
    """
    for law in laws:
        check_law(law)
    if not laws or not floors:
        raise InputError("no law to compare: give at least one law and one choice of floor")
    for kind, value, known in (("loss", loss, LOSSES), ("signs", signs, SIGNS)):
        if value not in known:
            raise unknown_name(kind, str(value), known)
    seen = observe(as_table(table), metric, pool=pool)
    relative = is_relative(seen, noise)
    forms = sorted({(law, bool(floor)) for law in laws for floor in floors}, key=lambda form: _ORDER[form])
    criteria, errors = {}, {}
    for law, floor in forms:
        form = Form(law, seen.axes, floor)
        criteria[law, floor] = _criterion(form, seen, loss, relative, signs)
        errors[law, floor] = {axis: _extrapolate(form, seen, axis, loss, relative, signs) for axis in seen.axes}
    tested = [axis for axis in seen.axes if sum(found[axis] is not None for found in errors.values()) > 1]
    least = min(criteria.values())
    candidates = []
    for law, floor in forms:
        each = {axis: errors[law, floor][axis] for axis in tested}
        marks = {axis: float(found.mean()) for axis, found in each.items() if found is not None}
        whole = bool(tested) and len(marks) == len(tested)
        candidates.append(
            Candidate(
                law=law,
                floor=floor,
                parameters=Form(law, seen.axes, floor).size,
                aicc=criteria[law, floor],
                delta=criteria[law, floor] - least if math.isfinite(least) else math.inf,
                held_out=float(np.mean(list(marks.values()))) if whole else None,
                by_axis=marks,
            )
        )
    ranked, decided, statement = _choose(candidates, tested, relative)
    untested = [axis for axis in seen.axes if axis not in tested]
    warnings = list(seen.notes)
    if untested:
        warnings.append(
            f"{' and '.join(untested)}: too few values to leave the largest out and predict it; run at least 4 values"
        )
    return LawComparison(
        metric, tuple(ranked), decided, statement, tuple(warnings), "relative" if relative else "absolute", len(seen.y)
    )


def _criterion(form: Form, seen: Observations, loss: str, relative: bool, signs: str) -> float:
    found, unit = fit_form(form, seen, loss=loss, relative=relative, signs=signs)
    if found.sigma == 0:
        return math.inf
    return aicc(seen.y / unit - found.fitted, found.spread, form.size) + 2 * len(seen.y) * math.log(abs(unit))


def _extrapolate(form: Form, seen: Observations, axis: str, loss: str, relative: bool, signs: str) -> np.ndarray | None:
    """Absolute errors on the runs with the largest value of an axis, or None if the rest cannot tell the law."""
    column = seen.x[:, seen.axes.index(axis)]
    last = column >= column.max() - 1e-9
    rest = replace(seen, x=seen.x[~last], y=seen.y[~last])
    if len(np.unique(np.round(column[~last], 9))) < 2 or len(rest.y) <= form.size or np.ptp(rest.y) == 0:
        return None
    found, unit = fit_form(form, rest, loss=loss, relative=relative, signs=signs)
    if lost_parameters(found):
        return None
    miss = np.abs(values(form, found.theta[None], seen.x[last])[0] * unit - seen.y[last])
    scale = np.maximum(np.abs(seen.y[last]), 1e-9 * np.abs(seen.y).max()) if relative else 1.0
    errors: np.ndarray = miss / scale
    return errors


def _choose(
    candidates: Sequence[Candidate], tested: Sequence[str], relative: bool
) -> tuple[list[Candidate], bool, str]:
    """The candidates, best first; whether that is clear; and why, in words."""
    if len(candidates) == 1:
        return list(candidates), True, f"only the {candidates[0].name} was fitted"
    if all(math.isinf(candidate.aicc) for candidate in candidates):
        ranked = sorted(candidates, key=lambda candidate: candidate.parameters)
        return (
            ranked,
            False,
            f"too few runs, or a metric too flat, to choose: the {ranked[0].name} has the fewest parameters",
        )
    by_aicc = sorted(candidates, key=lambda candidate: candidate.aicc)
    close = [candidate for candidate in by_aicc if candidate.delta < CLEAR]
    first = by_aicc[0]
    how = f"{' and '.join(tested)} left out at the largest value and predicted"

    def miss(candidate: Candidate) -> str:
        error = candidate.held_out or 0.0
        return f"off by {error:.1%}" if relative else f"off by {show(error)}"

    if len(close) == 1:
        runner = by_aicc[1]
        text = f"the {first.name}: its AICc is lower than that of the {runner.name} by {runner.aicc - first.aicc:.1f}"
        known = [candidate for candidate in candidates if candidate.held_out is not None]
        decided = True
        if first.held_out is not None and len(known) > 1:
            nearest = min(known, key=lambda candidate: candidate.held_out or 0.0)
            if nearest is first:
                text += f", and with {how} it is nearest ({miss(first)})"
            else:
                decided = (nearest.held_out or 0.0) > CLEARER * first.held_out
                text += f"; with {how} it is {miss(first)}, the {nearest.name} {miss(nearest)}"
        return by_aicc, decided, text
    known = sorted(
        (candidate for candidate in close if candidate.held_out is not None), key=lambda found: found.held_out or 0.0
    )
    decided = len(known) > 1 and (known[0].held_out or 0.0) < CLEARER * (known[1].held_out or 0.0)
    if decided:
        first = known[0]
        text = f"the {first.name}: {len(close)} laws are within {CLEAR:g} of AICc, but with {how} it is nearest "
        text += f"({miss(first)}, the {known[1].name} {miss(known[1])})"
    else:
        text = f"the {first.name}, by an AICc lower by only {close[1].aicc - first.aicc:.1f} than the {close[1].name}"
        if len(known) > 1:
            text += f"; with {how} the {known[0].name} is {miss(known[0])}, the {known[1].name} {miss(known[1])}"
        text += "; the runs do not tell these laws apart clearly: run larger values"
    rest = [candidate for candidate in by_aicc if candidate is not first]
    return [first, *rest], decided, text
