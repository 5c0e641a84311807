"""The tests behind the ledger: each takes units and gives a `Claim`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lorascope.core.errors import InputError
from lorascope.scaling.claims import Claim, Verdict, undecided, verdict_of
from lorascope.scaling.claims_cells import Curve, Units
from lorascope.scaling.claims_statistics import (
    FEWEST,
    chance_of_steady,
    fewest_to_decide,
    following,
    mean_interval,
    moves_steadily,
    relative_spread,
    share_interval,
    units_to_tell,
)

AXIS_WORDS = {
    "rank": ("rank", "as the rank rises"),
    "size": ("model size", "as the model grows"),
    "data": ("training-set size", "with more training rows"),
    "length": ("data length", "with longer data"),
}


@dataclass(frozen=True)
class Quantity:
    """A metric under the name by which the ledger speaks of it.

    Attributes:
        metric: Column of the table.
        name: Of the quantity, for the ledger.
        word: In a sentence.
    """

    metric: str
    name: str
    word: str


@dataclass(frozen=True)
class Bootstrap:
    """How the bootstrap is done.

    Attributes:
        n_boot: Resamples.
        seed: Of the resampling.

    Raises:
        InputError: There are fewer than 1000 resamples.
    """

    n_boot: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_boot < 1000:
            raise InputError(
                f"n_boot={self.n_boot}: give at least 1000 resamples, the intervals use the outer one per cent"
            )

    def mean(self, values: Sequence[float]) -> tuple[float, float]:
        """The interval of a mean."""
        return mean_interval(values, n_boot=self.n_boot, seed=self.seed)


def steady(key: str, units: Units, quantity: Quantity, *, falls: bool = True) -> Claim:
    """Test that a metric falls (or rises) along an axis and never turns back, against the same values in random order."""
    axis, phrase = AXIS_WORDS[units.axis]
    verb = "falls" if falls else "rises"
    statement = f"{quantity.word} {verb} {phrase}."
    statistic = f"share of units in which it {verb} without turning back"
    curves = [(c, known) for c in units.curves if len(known := _known(c, quantity.metric)) >= 2]
    n = len(curves)
    if not n:
        reason = _nothing(units, quantity, axis)
        return undecided(key, statement, quantity.name, reason, statistic=statistic)
    chance = float(np.mean([chance_of_steady(values) for _, values in curves]))
    hits = sum(moves_steadily(values, falls=falls) is True for _, values in curves)
    against = sum(moves_steadily(values, falls=not falls) is True for _, values in curves)
    ends = sum((values[-1] < values[0]) is falls and values[-1] != values[0] for _, values in curves)
    low, high = share_interval(hits, n)
    needed: int | None = fewest_to_decide(chance)
    verdict: Verdict
    found = (
        f"{quantity.word} {verb} over {axis} without turning back in {hits} of {n} {units.word(n)}; random order would give "
        f"{chance * n:.1f}. From the first level to the last it {verb} in {ends}"
        + (f", and it {'rises' if falls else 'falls'} without turning back in {against}." if against else ".")
    )
    if n < fewest_to_decide(chance):
        verdict = "undecided"
        found += f" At least {needed} are needed: more tasks, models or seeds."
    elif low > chance and hits > n / 2:
        verdict, needed = "supported", None
    elif high < chance or (against > n / 2 and share_interval(against, n)[0] > chance):
        verdict, needed = "contradicted", None
    else:
        verdict = "not supported"
        needed = units_to_tell(hits / n, low, high, n, chance)
        if low > chance:
            found += " More often than chance, but not in most of them."
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
        needed=needed,
        explanation=found,
        scope=units.scope,
        details={"units": n, "falls" if falls else "rises": hits, "opposite": against, "ends": ends, "chance": chance},
    )


def law_better(key: str, units: Units, quantity: Quantity, rival: Quantity, boot: Bootstrap) -> Claim:
    """Test that a metric keeps to the order of an axis better than a rival does."""
    axis = AXIS_WORDS[units.axis][0]
    statement = f"{quantity.word} keeps to a steady fall over {axis} better than {rival.word}."
    pairs = _taus(units, quantity, rival, lambda curve: curve.levels)
    counts = [
        sum(moves_steadily(curve.values[side.metric], falls=True) is True for curve in units.curves)
        for side in (quantity, rival)
    ]
    extra = f" It falls without turning back in {counts[0]}, {rival.word} in {counts[1]}."
    claim = _difference(key, statement, units, quantity, rival, pairs, boot, f"with {axis}", extra)
    return claim


def follows_better(key: str, units: Units, quantity: Quantity, rival: Quantity, boot: Bootstrap) -> Claim:
    """Test that a metric follows accuracy along an axis better than a rival does."""
    axis = AXIS_WORDS[units.axis][0]
    statement = f"{quantity.word} follows accuracy over {axis} better than {rival.word}."
    pairs = _taus(units, quantity, rival, lambda curve: curve.values["accuracy"])
    return _difference(key, statement, units, quantity, rival, pairs, boot, "with accuracy", "")


def follows(key: str, units: Units, quantity: Quantity, boot: Bootstrap) -> Claim:
    """Test that accuracy rises where a metric falls, along an axis."""
    axis = AXIS_WORDS[units.axis][0]
    statement = f"{quantity.word} follows accuracy over {axis}: it falls where accuracy rises."
    statistic = "mean Kendall tau of accuracy with the negated metric"
    taus = [tau for tau, _ in _taus(units, quantity, quantity, lambda curve: curve.values["accuracy"])]
    if not taus:
        reason = _nothing(units, quantity, axis, target="accuracy")
        return undecided(key, statement, quantity.name, reason, statistic=statistic)
    value = float(np.mean(taus))
    agree = sum(tau > 0 for tau in taus)
    words = f"mean tau {value:+.2f} over {len(taus)} {units.word(len(taus))}, positive in {agree}"
    return _mean_claim(key, statement, quantity, statistic, taus, boot, words, units, {"taus": taus})


def less_spread(key: str, units: Units, quantity: Quantity, rival: Quantity) -> Claim:
    """Test that a metric changes less along an axis than a rival, relative to its size."""
    axis = AXIS_WORDS[units.axis][0]
    statement = f"{quantity.word} changes less over {axis} than {rival.word}, relative to its size."
    pairs = [
        (relative_spread(mine), relative_spread(theirs))
        for curve in units.curves
        for mine, theirs in [_both(curve, quantity, rival)]
    ]
    return _smaller(key, statement, quantity, rival, pairs, units, units.word, f"along {axis}")


def less_noise(key: str, units: Units, quantity: Quantity, rival: Quantity) -> Claim:
    """Test that a metric varies less from seed to seed than a rival, relative to its size."""
    statement = f"{quantity.word} varies less from seed to seed than {rival.word}, relative to its size."
    places: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for curve in units.every:
        mine, theirs = curve.values[quantity.metric], curve.values[rival.metric]
        for level, first, second in zip(curve.levels, mine, theirs, strict=True):
            if math.isfinite(first) and math.isfinite(second):
                places.setdefault((curve.cell, level), []).append((first, second))
    pairs = [
        (relative_spread([a for a, _ in runs]), relative_spread([b for _, b in runs]))
        for runs in places.values()
        if len(runs) > 1
    ]
    return _smaller(key, statement, quantity, rival, pairs, units, lambda n: "settings", "over seeds")


def _how_many(needed: int | None) -> str:
    """How many units would tell an effect of the observed size from none."""
    if needed is None or needed > 1000:
        return "An effect as small as the one seen here could not be told from none with a thousand units."
    return f"An effect of the size seen here would take about {float(f'{needed:.2g}'):.0f} units to tell from none."


def _known(curve: Curve, metric: str) -> list[float]:
    return [value for value in curve.values[metric] if math.isfinite(value)]


def _both(curve: Curve, quantity: Quantity, rival: Quantity) -> tuple[list[float], list[float]]:
    """The values of two metrics where both are known."""
    pairs = [
        (mine, theirs)
        for mine, theirs in zip(curve.values[quantity.metric], curve.values[rival.metric], strict=True)
        if math.isfinite(mine) and math.isfinite(theirs)
    ]
    return [mine for mine, _ in pairs], [theirs for _, theirs in pairs]


def _taus(
    units: Units, quantity: Quantity, rival: Quantity, target: Callable[[Curve], Sequence[float]]
) -> list[tuple[float, float]]:
    """Kendall's tau of a target with both metrics negated, over the levels that have all three."""
    found = []
    for curve in units.curves:
        rows = [
            row
            for row in zip(target(curve), curve.values[quantity.metric], curve.values[rival.metric], strict=True)
            if all(math.isfinite(value) for value in row)
        ]
        if len(rows) >= 2:
            goal, mine, theirs = ([row[i] for row in rows] for i in range(3))
            tau = following(goal, mine), following(goal, theirs)
            if math.isfinite(tau[0]):
                found.append(tau)
    return found


def _difference(
    key: str,
    statement: str,
    units: Units,
    quantity: Quantity,
    rival: Quantity,
    pairs: Sequence[tuple[float, float]],
    boot: Bootstrap,
    what: str,
    extra: str,
) -> Claim:
    statistic = f"mean difference of Kendall tau {what}, against {rival.name}"
    if not pairs:
        target = "accuracy" if what == "with accuracy" else None
        reason = _nothing(units, quantity, AXIS_WORDS[units.axis][0], rival=rival, target=target)
        return undecided(key, statement, quantity.name, reason, statistic=statistic)
    mine, theirs = (float(np.mean([pair[i] for pair in pairs])) for i in range(2))
    n = len(pairs)
    words = f"mean tau {what} {mine:+.2f} against {theirs:+.2f} for {rival.word}, over {n} {units.word(n)}"
    differences = [a - b for a, b in pairs]
    details = {"tau": mine, "tau_rival": theirs, "taus": [list(pair) for pair in pairs]}
    claim = _mean_claim(key, statement, quantity, statistic, differences, boot, words + "." + extra, units, details)
    return claim


def _mean_claim(
    key: str,
    statement: str,
    quantity: Quantity,
    statistic: str,
    values: Sequence[float],
    boot: Bootstrap,
    words: str,
    units: Units,
    details: dict[str, object],
) -> Claim:
    """A claim that a mean over units is above zero."""
    n, value = len(values), float(np.mean(values))
    verdict: Verdict
    needed: int | None
    text = f"{words[0].upper()}{words[1:].rstrip('.')}."
    if n < FEWEST:
        low = high = math.nan
        verdict, needed = "undecided", FEWEST
        text += f" {FEWEST} are needed: more tasks, models or seeds."
    else:
        low, high = boot.mean(values)
        verdict = verdict_of(low, high, 0.0)
        needed = units_to_tell(value, low, high, n) if verdict == "not supported" else None
        if verdict == "not supported":
            text += f" {_how_many(needed)}"
    return Claim(
        key=key,
        statement=statement,
        verdict=verdict,
        quantity=quantity.name,
        statistic=statistic,
        value=value,
        low=low,
        high=high,
        n=n,
        reference=0.0,
        needed=needed,
        explanation=text,
        scope=units.scope,
        details=details,
    )


def _smaller(
    key: str,
    statement: str,
    quantity: Quantity,
    rival: Quantity,
    pairs: Sequence[tuple[float, float]],
    units: Units,
    word: Callable[[int], str],
    where: str,
) -> Claim:
    """A claim that the first of two relative spreads is smaller in most units."""
    statistic = f"share of units with the smaller relative spread {where}, against {rival.name}"
    known = [pair for pair in pairs if all(math.isfinite(spread) for spread in pair) and pair[0] != pair[1]]
    n = len(known)
    if n < FEWEST:
        have = (
            f"{n} {word(n)} {'has' if n == 1 else 'have'} both {quantity.word} and {rival.word} with a spread {where}"
        )
        reason = f"{have}, and {FEWEST} are needed"
        return undecided(key, statement, quantity.name, reason, statistic=statistic, n=n, needed=FEWEST)
    hits = sum(mine < theirs for mine, theirs in known)
    low, high = share_interval(hits, n)
    verdict = verdict_of(low, high, 0.5)
    typical = [float(np.median([pair[i] for pair in known])) for i in range(2)]
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
        reference=0.5,
        needed=units_to_tell(hits / n, low, high, n, 0.5) if verdict == "not supported" else None,
        explanation=f"Smaller in {hits} of {n} {word(n)}; typical spread {where} {typical[0]:.2%} of the mean against "
        f"{typical[1]:.2%}. A number that hardly moves also tells little.",
        scope=units.scope,
        details={"spread": typical[0], "spread_rival": typical[1]},
    )


def _nothing(
    units: Units, quantity: Quantity, axis: str, rival: Quantity | None = None, target: str | None = None
) -> str:
    """Why a test has no unit at all."""
    if not units.curves:
        return f"no two runs differ in {axis} alone: run at least two levels with everything else the same"
    wanted = [side.metric for side in (quantity, rival) if side is not None] + ([target] if target else [])
    lacking = [name for name in dict.fromkeys(wanted) if not any(_known(curve, name) for curve in units.curves)]
    if lacking:
        return f"no run has {' and '.join(f'`{name}`' for name in lacking)}: measure or score it"
    if target:
        return f"{target} does not vary over {axis} in any of the {len(units.curves)} {units.word(len(units.curves))}"
    return f"no unit has {' and '.join(wanted)} at two levels of {axis}"
