"""What the bridge runs on a real model: a small grid of data sizes and seeds, and one larger run to compare with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorascope.core.errors import InputError
from lorascope.core.spec import from_mapping
from lorascope.training.spec import RunSpec

REFERENCE_SEED = 1000
"""Seed of the reference run. No run of the grid may share it: PEFT draws A from the seed, so equal seeds would have row
spaces in common before anything is learned."""


@dataclass(frozen=True, kw_only=True)
class BridgePlan:
    """A grid of data sizes and seeds at one rank.

    Attributes:
        model: Base model.
        task: A multiple-choice task.
        rank: Rank of every adapter.
        sizes: Distinct training rows of the runs; each run makes the same number of optimiser steps.
        seeds: One run of each size for each.
        steps: Optimiser steps of 16 rows.
        reference_rows: Distinct rows of the reference run.
        reference_steps: Its steps.
        questions: Test questions that every run is scored on, the same for all.

    Raises:
        InputError: A number is out of range, or a seed is the reference's.

    Example:
        >>> [name for name, _ in BridgePlan(sizes=(16, 64), seeds=(0,)).runs()]
        ['reference', 'n16-s0', 'n64-s0']
    """

    model: str = "smollm2"
    task: str = "towns"
    rank: int = 4
    sizes: tuple[int, ...] = (16, 48, 120, 320)
    seeds: tuple[int, ...] = (0, 1)
    steps: int = 20
    reference_rows: int = 960
    reference_steps: int = 60
    questions: int = 160

    def __post_init__(self) -> None:
        numbers = {"rank": self.rank, "steps": self.steps, "reference_rows": self.reference_rows}
        numbers |= {"reference_steps": self.reference_steps}
        for name, value in numbers.items():
            if value < 1:
                raise InputError(f"{name} {value} must be at least 1")
        if self.questions < 2:
            raise InputError(f"questions {self.questions} must be at least 2: a spread needs two")
        if not self.sizes or not self.seeds:
            raise InputError("the bridge needs at least one data size and one seed: give --sizes and --seeds")
        if min(self.sizes) < 1 or len(set(self.sizes)) != len(self.sizes):
            raise InputError(f"sizes {list(self.sizes)} must be different numbers of rows of at least 1")
        if min(self.seeds) < 0 or REFERENCE_SEED in self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(
                f"seeds {list(self.seeds)} must be different, at least 0 and not {REFERENCE_SEED}, the reference's"
            )
        if self.reference_rows < max(self.sizes):
            raise InputError(
                f"reference_rows {self.reference_rows} is below the largest size {max(self.sizes)}: give at least that"
            )

    def runs(self) -> list[tuple[str, RunSpec]]:
        """Name and spec of every run, the reference first."""
        base: dict[str, Any] = {
            "preset": "quick",
            "model": self.model,
            "task": self.task,
            "rank": self.rank,
            # The bridge scores every run itself, on all its questions, and needs no metric of information.
            "eval_limit": 2,
            "measure_limit": 2,
            "metrics": ("update_ratio",),
        }
        reference = {"train_limit": self.reference_rows, "max_steps": self.reference_steps, "seed": REFERENCE_SEED}
        cells = [("reference", reference)]
        cells += [
            (f"n{size}-s{seed}", {"train_limit": size, "max_steps": self.steps, "seed": seed})
            for seed in self.seeds  # whole curves first: a bridge that is stopped shows all sizes
            for size in self.sizes
        ]
        return [(name, RunSpec.from_mapping({**base, **values})) for name, values in cells]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in self.__dict__.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "plan") -> BridgePlan:
        """Build a plan from what `to_dict` made.

        Raises:
            InputError: A name is unknown, or a value has the wrong type.
        """
        lists = {item.name for item in dataclasses.fields(cls) if item.name in ("sizes", "seeds")}
        return from_mapping(
            cls,
            {key: tuple(value) if key in lists else value for key, value in values.items()},
            source=source,
        )
