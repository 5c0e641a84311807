"""What the functions that answer one question each share: the answer, and the numbers of a group of runs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lorascope.report.facts import total
from lorascope.report.groups import Group, at
from lorascope.report.text import listing, show_metrics
from lorascope.results import AdapterMeasurement

TINY = 1e-9  # relative rounding that does not count as a change or a broken bound

Trend = Literal["rises", "falls", "stays the same", "moves both ways"]


@dataclass(frozen=True)
class Finding:
    """One answer.

    Attributes:
        title: The answer in a few words.
        text: The answer in sentences.
    """

    title: str
    text: str


def trend(values: list[float]) -> Trend:
    """How a sequence moves: strictly one way, not at all, or both ways.

    Example:
        >>> trend([1.0, 2.0, 4.0]), trend([1.0, 3.0, 2.0])
        ('rises', 'moves both ways')
    """
    scale = max((abs(value) for value in values), default=0.0)
    steps = [after - before for before, after in itertools.pairwise(values)]
    if all(abs(step) <= TINY * scale for step in steps):
        return "stays the same"
    if all(step > TINY * scale for step in steps):
        return "rises"
    return "falls" if all(step < -TINY * scale for step in steps) else "moves both ways"


def by_rank(group: Group, metric: str) -> dict[int, float]:
    """The metric at each rank, averaged over runs of one rank; ranks rising."""
    found: dict[int, list[float]] = {}
    for run in group.runs:
        value = total(run, metric)
        if run.rank is not None and value is not None:
            found.setdefault(run.rank, []).append(value)
    return {rank: sum(values) / len(values) for rank, values in sorted(found.items())}


def values_of(group: Group, metric: str) -> list[tuple[str, AdapterMeasurement, float]]:
    """Label, record and value of every run that has the metric."""
    return [
        (label, run, value)
        for label, run in zip(group.labels, group.runs, strict=True)
        if (value := total(run, metric)) is not None
    ]


def base_value(group: Group, metric: str) -> float | None:
    """The base model's value, if there is one."""
    return None if group.base is None else total(group.base, metric)


def each(group: Group, metric: str) -> str:
    """The values of all runs as a phrase: ``2.4 at rank 4 and 2.3 at rank 16``."""
    found = values_of(group, metric)
    texts = show_metrics(metric, [value for _, _, value in found])
    return condense([value for *_, value in found], [f"{text} {at(found[i][0])}" for i, text in enumerate(texts)])


def condense(values: Sequence[float], parts: Sequence[str]) -> str:
    """A phrase for each value as a list; of more than six, only those of the smallest and the largest.

    Example:
        >>> condense([2.0, 1.0], ["two", "one"]), condense([float(i) for i in range(9)], "abcdefghi")
        ('two and one', 'between a and i (9 runs, all in the table)')
    """
    if len(parts) <= 6:
        return listing(parts)
    low, high = min(range(len(parts)), key=values.__getitem__), max(range(len(parts)), key=values.__getitem__)
    return f"between {parts[low]} and {parts[high]} ({len(parts)} runs, all in the table)"
