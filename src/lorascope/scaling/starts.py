"""Where fits start and how far parameters may go, for each choice of the amplitudes' signs."""

from __future__ import annotations

import itertools

import numpy as np
from jaxtyping import Float
from scipy.optimize import nnls

from lorascope.scaling.laws import Form

STEEPEST = 5.0  # bound of the exponents
LARGEST = 20.0  # bound of amplitudes and floor, in medians of the metric: the search ends here, the law need not
_EXPONENTS = (0.1, 0.4, 1.2)  # to start from, where the amplitudes' signs are given
_FEWER = (0.2, 0.8)  # likewise for each choice of directions, where they are free
_LEAST = 0.02  # a term that starts at zero has no exponent to improve


def bounds(form: Form, signs: str, top: float = LARGEST) -> tuple[Float[np.ndarray, " p"], Float[np.ndarray, " p"]]:
    """Bounds of the parameters, for a metric whose median is 1.

    Args:
        form: The law.
        signs: ``"positive"`` (amplitudes and floor at least 0), ``"ceiling"`` (amplitudes at most 0, below a positive
            E) or ``"free"``.
        top: The highest ceiling there can be.
    """
    low, high = np.full(form.size, -STEEPEST), np.full(form.size, STEEPEST)
    linear = list(form.linear)
    low[linear], high[linear] = (-LARGEST if signs == "free" else 0.0), LARGEST
    if signs == "ceiling":
        first = len(form.amplitudes)
        low[:first], high[:first], high[-1] = -LARGEST, 0.0, top
    return low, high


def starts(
    form: Form, x: Float[np.ndarray, "n k"], y: Float[np.ndarray, " n"], spread: Float[np.ndarray, " n"], signs: str
) -> Float[np.ndarray, "s p"]:
    """Places to start from: a grid of exponents, in the direction in which the metric moves, with amplitudes solved."""
    columns = np.column_stack([np.ones(len(y)), x])
    slopes = np.linalg.lstsq(columns / spread[:, None], y / spread, rcond=None)[0][1:]
    k, first, found = len(form.axes), len(form.amplitudes), []
    upward = 1.0 if signs == "ceiling" else -1.0
    ways = [(1.0, -1.0) if signs == "free" else (upward if slope > 0 else -upward,) for slope in slopes]
    sides = np.ones(len(form.linear))
    sides[:first] = -upward
    for direction in itertools.product(*ways):
        for sizes in itertools.product(_FEWER if signs == "free" else _EXPONENTS, repeat=k):
            exponents = np.array(direction) * np.array(sizes)
            basis = np.exp(-x * exponents) if form.law == "additive" else np.exp(-x @ exponents)[:, None]
            if form.floor:
                basis = np.column_stack([basis, np.ones(len(y))])
            basis, target = basis / spread[:, None], y / spread
            theta = np.zeros(form.size)
            theta[first : first + k] = exponents
            if signs == "free":
                theta[list(form.linear)] = np.linalg.lstsq(basis, target, rcond=None)[0]
            else:
                theta[list(form.linear)] = np.maximum(nnls(basis * sides, target)[0], _LEAST) * sides
            found.append(theta)
    return np.array(found)
