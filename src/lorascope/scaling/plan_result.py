"""`Plan`: what is advised, how sure that is, what the next step up would bring, and what to run if it is not settled."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from lorascope.core.errors import DataError
from lorascope.core.files import atomic_write_text, read_json, write_json

SCHEMA_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recommendation.

    Attributes:
        basis: ``"sweep"`` (runs were compared), ``"one run"`` (a first guess from the spectra of one run) or ``"curvature"``
            (one from statistics before training).
        metric: What was planned by.
        better: ``higher`` or ``lower``.
        goal: In words: the best, the cheapest for a target, the best for a budget.
        choice: ``N``, ``R``, ``D`` of the advice; None where unknown.
        settled: Whether the evidence is enough: knowing every candidate exactly would gain less than half the noise of a
            run, several ranks were run, and the choice is not an extrapolation; with a target, that the choice reaches it
            with probability ``level``.
        predicted: Metric expected of the choice, with ``low`` and ``high``: its mean over seeds, at ``level``.
        low: Lower end.
        high: Upper end.
        level: Level of all intervals.
        noise: Run-to-run standard deviation of the metric; smaller differences count as none.
        within_noise: Probability that the choice is within the noise of the best candidate.
        regret: Expected loss against the best candidate, if that were known.
        bigger_rank_helps: Probability that some larger rank is better by more than the noise, at the choice's N and D.
        best: The candidate with the best prediction: ``N``, ``R``, ``D``, ``predicted``, ``low``, ``high``.
        cost: Predicted cost: ``flops``, ``seconds``, ``memory``, ``adapter`` (bytes), ``tokens``; None where unknown.
        ranks: One record a rank at the choice's N and D: prediction, interval, ``within_noise``, ``runs``.
        data: The same over D, at the choice's N and R.
        models: The same over N, at the choice's R and D.
        steps: Next step up on each axis: ``axis``, ``to``, ``gain`` (positive is better), ``low``, ``high``,
            ``probability`` of more than the noise, ``cost_factor``, ``extrapolated``.
        next_cells: What to run next where the decision is not settled.
        target: The target, with its ``probability`` and the ``safer`` choice; empty without one.
        budget: The budget: ``kind``, ``amount``, ``affordable`` candidates; empty without one.
        candidates: One record a candidate, cheapest first: ``N``, ``R``, ``D``, prediction, interval, cost by kind,
            ``runs``, ``extrapolated``, ``affordable``.
        evidence: One record a run: ``N``, ``R``, ``D``, ``seed``, ``value``, and the surface there (``fitted``).
        base: Metric of the base model without adapter; None if unknown.
        calibration: Error of the time and memory models on left-out cells.
        model: How much of the prediction follows the fitted law; number of runs, seeds and cells.
        lora: Arguments of `peft.LoraConfig`.
        notes: What a reader must know, one sentence each.
        seed: Seed of the draws.
        schema_version: Version of this layout.
    """

    basis: str
    metric: str
    better: str
    goal: str
    choice: dict[str, Any]
    settled: bool
    lora: dict[str, Any]
    level: float = 0.9
    predicted: float | None = None
    low: float | None = None
    high: float | None = None
    noise: float | None = None
    within_noise: float | None = None
    regret: float | None = None
    bigger_rank_helps: float | None = None
    best: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    ranks: list[dict[str, Any]] = field(default_factory=list)
    data: list[dict[str, Any]] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    next_cells: list[dict[str, Any]] = field(default_factory=list)
    target: dict[str, Any] = field(default_factory=dict)
    budget: dict[str, Any] = field(default_factory=dict)
    candidates: list[dict[str, Any]] = field(default_factory=list)
    evidence: list[dict[str, Any]] = field(default_factory=list)
    base: float | None = None
    calibration: dict[str, dict[str, Any]] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seed: int = 0
    schema_version: int = SCHEMA_VERSION

    kind: ClassVar[str] = "plan"

    @property
    def rank(self) -> int:
        """The advised rank."""
        return int(self.choice["R"])

    def lora_config(self) -> dict[str, Any]:
        """Arguments for `peft.LoraConfig`.

        Example:
            >>> plan = Plan(basis="one run", metric="effective_rank", better="higher", goal="a first guess",
            ...             choice={"R": 8}, settled=False, lora={"r": 8, "lora_alpha": 16})
            >>> plan.lora_config()["r"]
            8
        """
        return dict(self.lora)

    def snippet(self) -> str:
        """Python that makes the configuration."""
        lines = "".join(f"    {name}={value!r},\n" for name, value in self.lora.items())
        return f"from peft import LoraConfig\n\nconfig = LoraConfig(\n{lines})\n"

    def summary(self) -> str:
        """The plan in words, a few lines."""
        from lorascope.scaling.plan_words import words

        return words(self)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping; what is not finite becomes None."""
        values = {item.name: _plain(getattr(self, item.name)) for item in fields(self)}
        return {"kind": self.kind, "summary": self.summary(), **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "mapping") -> Plan:
        """Read what `to_dict` made.

        Raises:
            DataError: The mapping is no plan, of another version, or not whole.
        """
        if not isinstance(values, Mapping) or values.get("kind") != cls.kind:
            raise DataError(f"'{source}' is no plan: give a plan.json that lorascope plan wrote")
        if values.get("schema_version") != SCHEMA_VERSION:
            raise DataError(
                f"'{source}' has schema_version {values.get('schema_version')!r}, this lorascope reads {SCHEMA_VERSION}: "
                "use the version of lorascope that wrote it"
            )
        try:
            return cls(**{item.name: values[item.name] for item in fields(cls)})
        except KeyError as error:
            raise DataError(f"'{source}' is not a whole plan: {error} is missing; plan again") from None

    def save(self, folder: str | Path) -> dict[str, Path]:
        """Write ``plan.json``, ``lora_config.json``, ``lora_config.py`` and ``plan.txt``, each whole or not at all.

        Raises:
            OutputError: The disk is full, or the place cannot be written.
        """
        folder = Path(folder)
        paths = {name: folder / name for name in ("plan.json", "lora_config.json", "lora_config.py", "plan.txt")}
        write_json(paths["plan.json"], self.to_dict())
        write_json(paths["lora_config.json"], json.loads(json.dumps(self.lora)))
        atomic_write_text(paths["lora_config.py"], self.snippet())
        atomic_write_text(paths["plan.txt"], self.summary() + "\n")
        return paths

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a ``plan.json``.

        Raises:
            DataError: The file is missing, interrupted, foreign, or of another version.
        """
        return cls.from_dict(read_json(Path(path)), source=str(path))


def _plain(value: Any) -> Any:
    if hasattr(value, "item") and not isinstance(value, dict):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
