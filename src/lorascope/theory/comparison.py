"""A simulation beside the theory: each quantity with its difference and what a finite d allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lorascope.theory.finetuning import finetune, finetune_after
from lorascope.theory.points import SimulationPoint
from lorascope.theory.pretraining import pretrain

ALLOWANCE = 3.4
"""Over d: the leading finite-size effect on the effective noise, seen from d = 40 to 240."""
FIRST = ("Q", "M", "delta_eff", "delta_reuse", "error")
SECOND = ("m", "q", "alignment", "train_loss", "test_error")


@dataclass(frozen=True)
class Comparison:
    """One quantity.

    Attributes:
        quantity: Its name.
        simulated: Mean over seeds.
        error: Standard error; None with one seed.
        theory: Prediction; None where there is none.
        difference: Simulated minus predicted.
        allowed: Three standard errors plus 3.4 / d.
        within: Whether the difference is no larger; None where there is no prediction or no standard error.
    """

    quantity: str
    simulated: float
    error: float | None
    theory: float | None
    difference: float | None
    allowed: float | None
    within: bool | None


def predict(point: SimulationPoint) -> tuple[dict[str, float], list[str]]:
    """What the theory says about a simulation, and what stands against its numbers.

    A rank above one is not predicted here (see `lorascope.theory.extension_rank`).
    """
    given = dict(point.settings)
    words: list[str] = []
    values: dict[str, float] = {}
    if point.stage == "finetune":
        if given.get("rank", 1) == 1:
            names = ("alpha", "tokens", "ridge", "noise", "base_error")
            second = finetune(**{name: given[name] for name in names})
            values = {name: float(getattr(second, name)) for name in SECOND}
            words = list(second.warnings)
    else:
        names = ("alpha", "tokens", "kappa0", "noise", "ridge", "penalty", "activation")
        first = pretrain(**{name: given[name] for name in names})
        values = {name: float(getattr(first, name)) for name in FIRST}
        words = [f"stage 1: {word}" for word in first.warnings]
        if point.stage == "pipeline" and given.get("rank", 1) == 1:
            more: dict[str, Any] = {"data": given["data"], "dim": point.dim}
            if given["data"] == "active":
                more |= {"fraction": given["fraction"], "largest": given["largest"]}
            after = finetune_after(first, alpha=given["alpha_finetune"], ridge=given["ridge_finetune"], **more)
            values |= {name: float(getattr(after, name)) for name in SECOND}
            words = list(after.warnings)
    if given.get("rank", 1) != 1:
        words.append("stage 2 of a rank above 1 is not compared here")
    if given.get("optimiser") == "adam" and given.get("factors") == "lora" and point.stage != "pretrain":
        words.append("the theory is of tied factors W W^T; these are B A")
    if given.get("start", "informed") != "informed":
        words.append("the theory describes the informed solution")
    return values, words


def compare(point: SimulationPoint) -> tuple[list[Comparison], list[str]]:
    """Each quantity of a simulation beside the theory's, and what stands against the comparison.

    Example:
        >>> point = SimulationPoint(
        ...     stage="pretrain",
        ...     settings={"alpha": 0.1, "tokens": 3, "kappa0": 1.0, "noise": 0.5, "ridge": 0.1}
        ...     | {"penalty": "nuclear", "activation": "linear"},
        ...     dim=100,
        ...     samples={"delta_eff": [0.70, 0.72, 0.71]},
        ... )
        >>> rows, _ = compare(point)
        >>> rows[0].quantity, round(rows[0].theory, 3), rows[0].within
        ('delta_eff', 0.695, True)
    """
    values, words = predict(point)
    rows = []
    for name in point.samples:
        if name not in FIRST + SECOND:
            continue
        mean, error, theory = point.mean(name), point.error(name), values.get(name)
        if theory is None or error is None:
            gap = None if theory is None else mean - theory
            rows.append(Comparison(name, mean, error, theory, gap, None, None))
            continue
        allowed = 3 * error + ALLOWANCE / point.dim
        rows.append(Comparison(name, mean, error, theory, mean - theory, allowed, abs(mean - theory) <= allowed))
    return rows, words
