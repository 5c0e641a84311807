"""Tests on sets of numbers that belong together: a bound beside what it bounds, one metric under several prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lorascope.scaling.claims import Claim, Verdict, undecided, verdict_of
from lorascope.scaling.claims_rules import Quantity
from lorascope.scaling.claims_statistics import (
    FEWEST,
    fewest_to_decide,
    following,
    moves_steadily,
    share_interval,
    student_interval,
)

CLOSE = 0.01  # MI and MIUB within one per cent of each other are "close"


def stays_close(key: str, quantity: Quantity, pairs: Sequence[tuple[float, float]], unit: str, extra: str) -> Claim:
    """Test that a bound stays within one per cent of the mutual information.

    Args:
        key: Of the claim.
        quantity: The bound.
        pairs: Mutual information and bound, both positive (others are left out).
        unit: What one pair is, in the plural.
        extra: A sentence to add.
    """
    statement = f"{quantity.word} and mutual information stay close."
    statistic = "mean of ln(MIUB / MI)"
    gaps = [math.log(bound / mi) for mi, bound in pairs if mi > 0 and bound > 0]
    n = len(gaps)
    if n < 3:
        reason = f"{n} {unit} have both numbers above zero, and 3 are needed"
        return undecided(key, statement, quantity.name, reason, statistic=statistic, n=n, needed=3)
    low, high = student_interval(gaps)
    margin = math.log1p(CLOSE)
    outside = low > margin or high < -margin
    verdict: Verdict = (
        "supported" if -margin < low and high < margin else "contradicted" if outside else "not supported"
    )
    factors = [math.exp(gap) for gap in gaps]
    span = f"between {_factor(min(factors))} and {_factor(max(factors))} times the mutual information"
    return Claim(
        key=key,
        statement=statement,
        verdict=verdict,
        quantity=quantity.name,
        statistic=statistic,
        value=float(np.mean(gaps)),
        low=low,
        high=high,
        n=n,
        reference=margin,
        explanation=f"{quantity.word} is {span} in {n} {unit} (close means within 1 %).{extra}",
        details={"ratios": factors},
    )


def in_order(key: str, quantity: Quantity, sets: Sequence[Sequence[float]], order: Sequence[str], units: str) -> Claim:
    """Test that a metric has the claimed order over prompts, largest first, against a random order."""
    statement = f"{quantity.word} is ordered {' > '.join(order)} by prompt."
    statistic = "share of units in the claimed order"
    complete = [values for values in sets if all(math.isfinite(value) for value in values)]
    n, chance = len(complete), 1 / math.factorial(len(order))
    needed = fewest_to_decide(chance)
    if n < needed:
        reason = f"{n} {units} have all of {', '.join(order)}, and {needed} are needed"
        return undecided(key, statement, quantity.name, reason, statistic=statistic, n=n, needed=needed)
    hits = sum(moves_steadily(values, falls=True) is True for values in complete)
    taus = [following([float(place) for place in range(len(order))], values) for values in complete]
    low, high = share_interval(hits, n)
    verdict: Verdict = verdict_of(low, high, chance)
    if verdict == "supported" and hits <= n / 2:
        verdict = "not supported"
    if verdict == "not supported" and all(tau < 0 for tau in taus) and n >= FEWEST:
        verdict = "contradicted"
    return Claim(
        key=key,
        statement=statement,
        verdict=verdict,
        quantity=quantity.name,
        statistic=statistic,
        value=hits / n,
        low=low,
        high=high,
        n=n,
        reference=chance,
        explanation=f"The whole order holds in {hits} of {n} {units} (random order: {chance * n:.1f}); mean Kendall tau "
        f"with it {np.mean(taus):+.2f}.",
        details={"taus": taus},
    )


def _factor(value: float) -> str:
    return f"{value:.5f}" if abs(value - 1) < 0.1 else f"{value:.3g}"
