"""A plan in words: the advice first, then how sure it is, what it costs and what the next step up would bring."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lorascope.scaling.plan_result import Plan

_AXIS = {"N": "model", "R": "rank", "D": "data"}


def words(plan: Plan) -> str:
    """The plan as lines of text, without markup."""
    if plan.basis in ("one run", "curvature"):
        return "\n".join([f"First guess, not a recommendation: rank {plan.rank}.", *plan.notes])
    lines = [_advice(plan)]
    lines.append(
        f"Expected {plan.metric} {_n(plan.predicted)} ({_n(plan.low)} to {_n(plan.high)}, {plan.level:.0%}); "
        f"run-to-run noise {_n(plan.noise)}; {_chance(plan.within_noise)} that it is within the noise of the best candidate"
        f" ({describe(plan.best)})."
    )
    if plan.base is not None and plan.predicted is not None:
        gain = (plan.predicted - plan.base) * (1 if plan.better == "higher" else -1)
        much = abs(plan.predicted - plan.base)
        lines.append(
            f"The base model without adapter has {_n(plan.base)}: the adapter is {_n(much)} better."
            if gain > 0
            else f"The base model without adapter has {_n(plan.base)}: no candidate is worth training, the advised one is "
            f"{_n(much)} worse."
        )
    lines += [line for line in (_target(plan), _budget(plan), _ranks(plan), _cost(plan)) if line]
    lines += [_step(plan, step) for step in plan.steps]
    if not plan.settled and plan.next_cells:
        lines.append("Not enough evidence: run these cells next.")
        lines += [f"  {describe(cell)}, seed {cell['seed']}: {cell['why']}" for cell in plan.next_cells]
    return "\n".join([*lines, *(f"Note: {note}" for note in plan.notes)])


def describe(cell: Mapping[str, Any]) -> str:
    """A cell in words: rank, data, model.

    Example:
        >>> describe({"N": 135000000, "R": 8, "D": 1600})
        'rank 8, D 1,600, N 135M'
    """
    parts = [f"rank {cell['R']:g}"] if cell.get("R") is not None else []
    parts += [f"D {cell['D']:,.0f}"] if cell.get("D") is not None else []
    parts += [f"N {_big(cell['N'])}"] if cell.get("N") is not None else []
    return ", ".join(parts)


def _advice(plan: Plan) -> str:
    start = "Use" if plan.settled else "For now use"
    return f"{start} {describe(plan.choice)}: {plan.goal}."


def _ranks(plan: Plan) -> str:
    if len(plan.ranks) < 2 or plan.bigger_rank_helps is None:
        return ""
    bigger = [record for record in plan.ranks if record["R"] > plan.rank]
    if not bigger:
        return f"Rank {plan.rank} is the largest candidate; smaller ones lose more than the noise."
    chance = f"{_chance(plan.bigger_rank_helps)} that a bigger one is better by more than the noise"
    if plan.bigger_rank_helps > 0.5:
        return f"A rank above {plan.rank} would probably be better: {chance}."
    return (
        f"Rank {plan.rank} is {'enough' if plan.bigger_rank_helps <= 1 - plan.level else 'probably enough'}: {chance}."
    )


def _target(plan: Plan) -> str:
    if not plan.target:
        return ""
    found = plan.target
    line = f"Target {plan.metric} {_n(found['value'])}: {_chance(found['probability'])} that the choice reaches it"
    safer = found.get("safer")
    if safer and any(safer[axis] != plan.choice[axis] for axis in _AXIS):
        return f"{line}; {describe(safer)} reaches it with {_chance(safer['probability'])}."
    return f"{line}." if safer else f"{line}; no candidate reaches it with {plan.level:.0%}."


def _budget(plan: Plan) -> str:
    if not plan.budget:
        return ""
    found = plan.budget
    return f"Budget {found['text']}: {found['affordable']} of {found['candidates']} candidates fit."


def _cost(plan: Plan) -> str:
    cost, parts = plan.cost, []
    if cost.get("flops") is not None:
        parts.append(f"{cost['flops']:.2g} FLOPs")
    if cost.get("seconds") is not None:
        error = plan.calibration.get("seconds", {}).get("median_error")
        close = "" if error is None or not math.isfinite(error) else f" (typical error {error:.0%} on left-out cells)"
        if close and "seconds_by_the_clock" in plan.calibration:
            clock = plan.calibration["seconds_by_the_clock"]["median_error"]
            close = f"{close[:-1]}; {clock:.0%} by the clock, with what else ran)"
        parts.append(f"{_time(cost['seconds'])} of training{close}")
    if cost.get("memory") is not None:
        parts.append(f"{cost['memory'] / 1e9:.2g} GB at the peak")
    if cost.get("adapter") is not None:
        parts.append(f"an adapter of {cost['adapter'] / 1e6:.2g} MB")
    return f"Cost: {', '.join(parts)}." if parts else ""


def _step(plan: Plan, step: Mapping[str, Any]) -> str:
    to = _big(step["to"]) if step["axis"] == "N" else f"{step['to']:,.0f}"
    beyond = ", beyond what was run" if step["extrapolated"] else ""
    word = "better" if step["gain"] >= 0 else "worse"
    return (
        f"Next step up, {_AXIS[step['axis']]} to {to}: {plan.metric} {_n(abs(step['gain']))} {word} "
        f"({_n(step['low'])} to {_n(step['high'])}), {_chance(step['probability'])} of more than the "
        f"noise, {_times(step['cost_factor'])}{beyond}."
    )


def _times(factor: float | int) -> str:
    """A factor of the cost in words.

    Example:
        >>> _times(1.001), _times(1.013), _times(0.9), _times(2.04)
        ('for the same FLOPs', '1% more FLOPs', '10% fewer FLOPs', '2 times the FLOPs')
    """
    if abs(factor - 1) < 0.005:
        return "for the same FLOPs"
    if factor < 1.5:
        return f"{abs(factor - 1):.0%} {'more' if factor > 1 else 'fewer'} FLOPs"
    return f"{factor:.2g} times the FLOPs"


def _chance(value: float | int | None) -> str:
    if value is None:
        return "unknown chance"
    return "under 1% chance" if value < 0.01 else "over 99% chance" if value > 0.99 else f"{value:.0%} chance"


def _n(value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if value == 0 or abs(value) < 0.1 else f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"


def _big(value: float | int) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:g}"


def _time(seconds: float | int) -> str:
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} s"
