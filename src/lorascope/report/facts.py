"""What can be said about one record or two: names, standard errors, differences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorascope.figures.finite import number
from lorascope.results import AdapterMeasurement, RunRecord


@dataclass(frozen=True)
class Difference:
    """The difference of two accuracies.

    Attributes:
        value: Second minus first, as a fraction.
        error: Its standard error; None where it cannot be estimated.
        paired: Whether it was computed question by question.
    """

    value: float
    error: float | None
    paired: bool

    @property
    def clear(self) -> bool | None:
        """Whether the difference is over two standard errors; None if there is no standard error."""
        return None if self.error is None else abs(self.value) > 2 * self.error


def total(record: AdapterMeasurement, metric: str) -> float | None:
    """A total of the record if it is a finite number."""
    return number(record.totals.get(metric))


def questions(record: AdapterMeasurement) -> int | None:
    """How many questions the accuracy was computed on, if known."""
    if isinstance(record, RunRecord) and record.correct:
        return len(record.correct)
    known = number(record.counts.get("questions"))
    return int(known) if known else None


def accuracy_error(record: AdapterMeasurement) -> float | None:
    """Standard error of the accuracy, sqrt(p (1 - p) / (n - 1)); None if n is unknown or all answers are alike."""
    share, count = total(record, "accuracy"), questions(record)
    if share is None or count is None or count < 2 or not 0 < share < 1:
        return None
    return math.sqrt(share * (1 - share) / (count - 1))


def recorded_error(record: AdapterMeasurement, metric: str) -> float | None:
    """The standard error of a total: the accuracy's computed here, others as their evaluation recorded them."""
    if metric == "accuracy":
        return accuracy_error(record)
    stage, metric = ("text_evaluation", "ppl") if metric == "text_ppl" else ("evaluation", metric)
    evaluation = record.settings.get(stage)
    errors = evaluation.get("errors") if isinstance(evaluation, dict) else None
    return number(errors.get(metric)) if isinstance(errors, dict) else None


def accuracy_difference(first: AdapterMeasurement, second: AdapterMeasurement) -> Difference | None:
    """Accuracy of the second record minus that of the first.

    The standard error is computed question by question if both records hold the outcome of as many questions on the
    same task, else as if the two were independent (which overstates it for the same questions).
    """
    before, after = total(first, "accuracy"), total(second, "accuracy")
    if before is None or after is None:
        return None
    if isinstance(first, RunRecord) and isinstance(second, RunRecord) and len(first.correct) > 1:
        same = ("task", "prompt", "eval_limit")
        if len(first.correct) == len(second.correct) and all(
            first.spec.get(key) == second.spec.get(key) for key in same
        ):
            steps = np.asarray(second.correct, dtype=float) - np.asarray(first.correct, dtype=float)
            error = float(steps.std(ddof=1) / math.sqrt(len(steps)))
            return Difference(after - before, error or None, paired=True)
    errors = [accuracy_error(first), accuracy_error(second)]
    if errors[0] is None or errors[1] is None:
        return Difference(after - before, None, paired=False)
    return Difference(after - before, math.hypot(errors[0], errors[1]), paired=False)


def fact(record: AdapterMeasurement, *names: str) -> Any:
    """The first of these names that the record's spec, settings or provenance knows; None otherwise."""
    places: list[dict[str, Any]] = [record.settings, record.provenance]
    if isinstance(record, RunRecord):
        places.insert(0, record.spec)
    for name in names:
        for place in places:
            if isinstance(place.get(name), str | int | float) and place[name] != "":
                return place[name]
    return None


def display_name(record: AdapterMeasurement, index: int = 0, count: int = 1) -> str:
    """The run's name, ``base`` for a base model; a bare measurement's adapter, or its place among the records."""
    if isinstance(record, RunRecord) and record.name:
        return "base" if record.is_base else record.name
    adapter = fact(record, "adapter")
    if isinstance(adapter, str):
        return adapter
    return "adapter" if count == 1 else f"adapter {index + 1}"
