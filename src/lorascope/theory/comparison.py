"""A simulation beside the theory: each quantity with its difference and what a finite d allows."""

from __future__ import annotations

from dataclasses import dataclass

from lorascope.theory.points import SimulationPoint
from lorascope.theory.prediction import predict

ALLOWANCE = 3.4
"""Over d, as a share of the theory's value: the leading finite-size effect on the effective noise, which lies 7.8, 4.3, 3.0
and 1.55 % above the theory at d = 40, 80, 120 and 240."""
COMPARED = ("Q", "M", "delta_eff", "delta_reuse", "error", "m", "q", "alignment", "train_loss", "test_error")


@dataclass(frozen=True)
class Comparison:
    """One quantity.

    Attributes:
        quantity: Its name.
        simulated: Mean over seeds.
        error: Standard error; None with one seed.
        theory: Prediction; None where there is none.
        difference: Simulated minus predicted.
        allowed: Three standard errors plus the share 3.4 / d of the theory's value.
        within: Whether the difference is no larger; None where there is no prediction or no standard error.
    """

    quantity: str
    simulated: float
    error: float | None
    theory: float | None
    difference: float | None
    allowed: float | None
    within: bool | None


def allowance(theory: float, error: float, dim: int) -> float:
    r"""How far a simulated mean may lie from the theory, :math:`3\,\mathrm{SE} + (3.4/d)\,|\mathrm{theory}|`.

    Args:
        theory: Prediction for large d.
        error: Standard error of the mean.
        dim: d.

    Example:
        >>> round(allowance(0.5, 0.01, 200), 6)
        0.0385
    """
    return 3 * error + ALLOWANCE / dim * abs(theory)


def compare(point: SimulationPoint, *, samples: int | None = None) -> tuple[list[Comparison], list[str]]:
    """Each quantity of a simulation beside the theory's, and what stands against the comparison.

    Args:
        point: The simulation.
        samples: Quasi-random points of the theory's stage 2.

    Returns:
        A row for each quantity that the theory describes, in the simulation's order, and sentences.

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
        ('delta_eff', 0.696, True)
    """
    given = point.settings
    values: dict[str, float] = {}
    words: list[str] = []
    if given.get("rank", 1) == 1:
        found = predict(point, samples=samples)
        values, words = found.values, list(found.warnings)
    else:
        words.append("a rank above 1 is not compared here")
    if given.get("optimiser") == "adam" and given.get("factors") == "lora" and point.stage != "pretrain":
        words.append("the theory is of tied factors W W^T, these are B A")
    if given.get("start", "informed") != "informed":
        words.append("the theory describes the informed solution")
    rows = []
    for name in (name for name in point.samples if name in COMPARED):
        mean, error, theory = point.mean(name), point.error(name), values.get(name)
        gap = None if theory is None else mean - theory
        allowed = None if error is None or theory is None else allowance(theory, error, point.dim)
        within = None if gap is None or allowed is None else abs(gap) <= allowed
        rows.append(Comparison(name, mean, error, theory, gap, allowed, within))
    return rows, words
