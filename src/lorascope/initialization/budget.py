"""Which layers are worth adapting, and how a budget of parameters is best spread over their ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lorascope.core.errors import InputError


def water_fill(
    values: Mapping[str, Sequence[float]],
    costs: Mapping[str, int],
    budget: int,
    *,
    minimum: int = 1,
    maximum: int | None = None,
) -> dict[str, int]:
    r"""Spread a budget of parameters over ranks: each next direction goes where it brings most for its cost.

    The aim is the largest sum of leading eigenvalues, sum_l sum_{i <= r_l} lambda_{l,i}, under sum_l r_l c_l <= B. As
    eigenvalues fall, taking directions by lambda / c is the water-filling solution: one level that lambda / c is above in
    every layer. Whole directions do not always use a budget up: the sum may fall short of the largest one by less than the
    eigenvalue of the first direction that does not fit.

    Args:
        values: Layer -> eigenvalues, largest first; their number bounds the layer's rank.
        costs: Layer -> parameters of one direction, d_in + d_out.
        budget: B, parameters of the adapter.
        minimum: Least rank of a layer; 0 lets layers go without.
        maximum: Largest rank of a layer.

    Returns:
        Layer -> rank.

    Raises:
        InputError: The budget does not pay for the minimum.

    Example:
        >>> water_fill({"a": [9.0, 1.0], "b": [4.0, 3.0]}, {"a": 10, "b": 10}, 30, minimum=0)
        {'a': 1, 'b': 2}
    """
    ranks = {name: min(minimum, len(found)) for name, found in values.items()}
    left = budget - sum(ranks[name] * costs[name] for name in ranks)
    if left < 0:
        raise InputError(
            f"a budget of {budget:,} parameters is below the {budget - left:,} of rank {minimum} in all {len(ranks)} "
            "layers: give more, or fewer target_modules"
        )
    offers = sorted(
        (
            (-value / costs[name], index, name)
            for name, found in values.items()
            for index, value in enumerate(found[:maximum])
            if index >= ranks[name] and value > 0
        ),
    )
    closed: set[str] = set()
    for _, _index, name in offers:
        if name in closed:
            continue
        if costs[name] > left:
            closed.add(name)
            continue
        ranks[name] += 1
        left -= costs[name]
    return ranks


def effective_directions(values: Sequence[float], trace: float, size: int) -> float:
    """exp of the entropy of an eigenvalue distribution, what is not known of it being spread evenly.

    Args:
        values: Leading eigenvalues.
        trace: Sum of all.
        size: Number of all.

    Returns:
        A number from 1 to ``size``; 0 for a matrix that is zero.

    Example:
        >>> round(effective_directions([1.0, 1.0], 2.0, 2), 6), effective_directions([], 0.0, 3)
        (2.0, 0.0)

    References:
        Roy and Vetterli (2007), The effective rank: a measure of effective dimensionality.
    """
    known = math.fsum(values)
    total = max(trace, known)
    if total <= 0:
        return 0.0
    entropy = -math.fsum(v / total * math.log(v / total) for v in values if v > 0)
    rest, others = (total - known) / total, size - len(values)
    if rest > 1e-12 and others > 0:
        entropy -= rest * math.log(rest / others)
    return math.exp(entropy)


def directions_for(values: Sequence[float], trace: float, share: float) -> int | None:
    """How many leading eigenvalues hold a share of the trace; None if those that are known do not.

    Example:
        >>> directions_for([6.0, 3.0, 1.0], 10.0, 0.9)
        2
    """
    held = 0.0
    for number, value in enumerate(values, start=1):
        held += value
        if held >= share * trace * (1 - 1e-9):
            return number
    return None
