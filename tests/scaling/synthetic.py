"""Tables of runs drawn from known laws."""

from __future__ import annotations

import numpy as np

from lorascope.scaling import additive, multiplicative

RANGES = {"N": (1e8, 1e10), "R": (4.0, 512.0), "D": (1e3, 1e6)}
ADDITIVE = {"A": 1.0, "alpha": 0.3, "B": 0.5, "beta": 0.5, "C": 0.8, "gamma": 0.2}
MULTIPLICATIVE = {"A": 2.0, "alpha": 0.15, "beta": 0.05, "gamma": 0.2, "E": 0.5}
LAWS = {"additive": additive, "multiplicative": multiplicative}


def grid(**levels: int) -> dict[str, np.ndarray]:
    """A full grid, evenly spaced in the logarithm: ``grid(N=3, R=4)``."""
    steps = [np.geomspace(*RANGES[axis], count) for axis, count in levels.items()]
    return dict(zip(levels, (column.ravel() for column in np.meshgrid(*steps, indexing="ij")), strict=True))


def middle(places: dict[str, np.ndarray]) -> dict[str, float]:
    return {axis: float(np.exp(np.log(column).mean())) for axis, column in places.items()}


def runs(
    law: str,
    truth: dict[str, float],
    places: dict[str, np.ndarray],
    *,
    noise: float = 0.0,
    outliers: float = 0.0,
    seed: int = 0,
    metric: str = "ce",
) -> dict[str, np.ndarray]:
    """Runs of a known law, its reference at the middle of the runs, with noise that is proportional to the metric."""
    rng = np.random.default_rng(seed)
    y = LAWS[law](**places, **truth, reference=middle(places))
    y = y * (1 + noise * rng.standard_normal(len(y)))
    return {**places, metric: np.where(rng.random(len(y)) < outliers, y * rng.choice([0.5, 2.0], size=len(y)), y)}
