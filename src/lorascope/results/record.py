"""One training run, measured: what was asked, what happened, what was found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from lorascope.results.measurement import AdapterMeasurement


@dataclass(frozen=True, kw_only=True)
class RunRecord(AdapterMeasurement):
    """A measurement together with the run that made the adapter.

    Attributes:
        name: Name of the run, unique in its store.
        spec: What was asked: model, task, rank, seed, learning rate ... A base model without adapter has rank 0.
        history: The trainer's log in order, for example ``{"step": 10, "loss": 2.1}``.
        correct: Whether each evaluated question was answered correctly, in the order of the data; empty if unknown.
            Two runs on the same questions can then be compared question by question.
    """

    name: str
    spec: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    correct: list[bool] = field(default_factory=list)

    kind: ClassVar[str] = "run"

    @property
    def rank(self) -> int | None:
        """The rank that was asked for; 0 for the base model without an adapter."""
        asked = self.spec.get("rank")
        if isinstance(asked, int) and not isinstance(asked, bool):
            return asked
        return 0 if self.name == "base" else super().rank

    @property
    def is_base(self) -> bool:
        """Whether this is the base model without an adapter."""
        return self.rank == 0
