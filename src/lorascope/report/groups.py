"""Which runs can be compared: those that differ in rank and seed only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorascope.figures.finite import number
from lorascope.report.facts import display_name, fact
from lorascope.results import AdapterMeasurement, RunRecord

# Not a reason to keep two runs apart: what varies with rank on purpose, repeats, and what only costs time or memory.
_FREE = {"rank", "alpha", "seed", "name", "preset", "out", "report_to", "save_steps", "logging_steps"} | {
    "micro_batch_size",
    "eval_batch_size",
}


@dataclass(frozen=True)
class Group:
    """Runs that differ in rank and seed only, with the base model they started from.

    Attributes:
        name: What tells this group from the others; empty if it is the only one.
        base: The base model without an adapter, if it was recorded.
        runs: The runs, rising in rank.
        labels: What to call each run in a sentence, as ``"rank 4"``.
    """

    name: str
    base: RunRecord | None
    runs: tuple[AdapterMeasurement, ...]
    labels: tuple[str, ...]

    @property
    def ranks(self) -> tuple[int | None, ...]:
        """The rank of each run."""
        return tuple(run.rank for run in self.runs)

    @property
    def members(self) -> tuple[AdapterMeasurement, ...]:
        """The runs, or the base model if there is none."""
        return self.runs or ((self.base,) if self.base is not None else ())


def group_records(records: Sequence[AdapterMeasurement]) -> tuple[Group, ...]:
    """Put comparable runs together, in order of first appearance.

    Args:
        records: Measurements and runs.

    Returns:
        The groups. The first base model of a model and task joins every group of them; a base without any run is a
        group of its own. Each bare measurement is in the group of measurements of its model and task.
    """
    bases = [record for record in records if isinstance(record, RunRecord) and record.is_base]
    rest = [record for record in records if not any(record is base for base in bases)]
    keys = [_key(record) for record in rest]
    varying = {name for key in keys for name in key if len({repr(other.get(name)) for other in keys}) > 1}
    found: dict[str, list[AdapterMeasurement]] = {}
    for record, key in zip(rest, keys, strict=True):
        name = ", ".join(f"{field} {_short(key[field])}" for field in sorted(varying) if key.get(field) is not None)
        found.setdefault(name, []).append(record)
    groups = []
    for name, runs in found.items():
        base = next((base for base in bases if _home(base) == _home(runs[0])), None)
        ordered = sorted(runs, key=lambda run: (run.rank is None, run.rank or 0))
        groups.append(Group(name, base, tuple(ordered), _labels(ordered)))
    homes = [_home(record) for record in rest]
    for base in bases:
        if _home(base) not in homes:
            homes.append(_home(base))
            groups.append(Group(display_name(base) if len(records) > 1 else "", base, (), ()))
    return tuple(groups)


def at(label: str) -> str:
    """A run's label as part of a sentence.

    Example:
        >>> at("rank 4"), at("the adapter")
        ('at rank 4', 'with the adapter')
    """
    return f"at {label}" if label.startswith("rank ") else f"with {label}"


def shared(groups: Sequence[Group], *names: str) -> list[str]:
    """The different values that the groups' runs have for a fact, as text in order of appearance."""
    values = [fact(member, *names) for group in groups for member in group.members]
    return list(dict.fromkeys(str(value) for value in values if value is not None))


def _home(record: AdapterMeasurement) -> tuple[Any, Any]:
    return fact(record, "model"), fact(record, "task")


def _key(record: AdapterMeasurement) -> dict[str, Any]:
    if not isinstance(record, RunRecord):
        return {"model": fact(record, "model"), "task": fact(record, "task")}
    key = {name: value for name, value in record.spec.items() if name not in _FREE}
    alpha, rank = number(record.spec.get("alpha")), number(record.spec.get("rank"))
    key["alpha/rank"] = alpha / rank if alpha is not None and rank else None
    return key


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _labels(runs: Sequence[AdapterMeasurement]) -> tuple[str, ...]:
    ranks = [run.rank for run in runs]
    if len(runs) == 1 and not isinstance(runs[0], RunRecord):
        return ("the adapter",)
    if None not in ranks and len(set(ranks)) == len(ranks):
        return tuple(f"rank {rank}" for rank in ranks)
    seeds = [fact(run, "seed") for run in runs]
    if None not in ranks and None not in seeds and len(set(zip(ranks, seeds, strict=True))) == len(runs):
        return tuple(f"rank {rank} (seed {seed})" for rank, seed in zip(ranks, seeds, strict=True))
    return tuple(display_name(run, index, len(runs)) for index, run in enumerate(runs))
