"""Points of the simulation, as figures and tables read them: means over seeds with standard errors. No torch."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from lorascope.core.errors import DataError
from lorascope.core.files import atomic_write_text, read_json, write_json

SCHEMA_VERSION = 1
STAGES = ("pretrain", "finetune", "pipeline")


@dataclass(frozen=True, kw_only=True)
class SimulationPoint:
    """What a simulation at one setting found.

    Attributes:
        stage: ``pretrain``, ``finetune`` (with a synthetic residual) or ``pipeline`` (both stages).
        settings: The arguments of the call, under the names that `lorascope.theory` uses for them.
        dim: d.
        samples: Quantity -> its value for each seed, in the order of the seeds; for instance ``Q``, ``M``, ``alignment``,
            ``test_error``, ``train_loss``.
        seconds: Of the call.
        notes: What a reader must know, one sentence each.
        provenance: Versions and machine.
        schema_version: Version of this layout.

    Example:
        >>> point = SimulationPoint(stage="finetune", settings={"alpha": 2.0}, dim=40, samples={"alignment": [0.9, 0.92]})
        >>> round(point.mean("alignment"), 3), round(point.error("alignment"), 3)
        (0.91, 0.01)
    """

    stage: str
    settings: dict[str, Any]
    dim: int
    samples: dict[str, list[float]]
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    kind: ClassVar[str] = "simulation_point"

    @property
    def seeds(self) -> int:
        """Number of seeds."""
        return len(next(iter(self.samples.values()), []))

    def mean(self, quantity: str) -> float:
        """Mean over seeds.

        Raises:
            DataError: The simulation has no such quantity.
        """
        return statistics.fmean(self._of(quantity))

    def error(self, quantity: str) -> float | None:
        """Standard error of the mean; None with a single seed.

        Raises:
            DataError: The simulation has no such quantity.
        """
        values = self._of(quantity)
        return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None

    def _of(self, quantity: str) -> list[float]:
        if quantity not in self.samples:
            raise DataError(f"the simulation has no quantity '{quantity}': it has {', '.join(self.samples)}")
        return self.samples[quantity]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return {"kind": self.kind, **{item.name: getattr(self, item.name) for item in fields(self)}}

    @classmethod
    def from_dict(cls, values: Any, *, source: str = "mapping") -> SimulationPoint:
        """Build a point from what `to_dict` made.

        Raises:
            DataError: It is something else, of another version, or not whole.
        """
        if not isinstance(values, Mapping) or values.get("kind") != cls.kind:
            raise DataError(f"'{source}' is no simulation point: give a file of lorascope theory simulate")
        if values.get("schema_version") != SCHEMA_VERSION:
            raise DataError(
                f"'{source}' has schema_version {values.get('schema_version')!r}, this lorascope reads {SCHEMA_VERSION}"
            )
        names = {item.name for item in fields(cls)}
        for name in ("stage", "settings", "dim", "samples"):
            if name not in values:
                raise DataError(f"'{source}' is not a whole simulation point: '{name}' is missing")
        samples = values["samples"]
        numbers = isinstance(samples, Mapping) and all(
            isinstance(items, Sequence) and all(isinstance(x, int | float) and math.isfinite(x) for x in items)
            for items in samples.values()
        )
        if not numbers or len({len(items) for items in samples.values()}) > 1:
            raise DataError(f"'{source}': samples must be lists of finite numbers of one length")
        return cls(**{name: value for name, value in values.items() if name in names})


def save_points(points: Iterable[SimulationPoint], path: str | Path) -> Path:
    """Write points as JSON.

    Raises:
        OutputError: The place cannot be written.
    """
    target = Path(path)
    write_json(target, [point.to_dict() for point in points])
    return target


def load_points(path: str | Path) -> list[SimulationPoint]:
    """Read what `save_points` wrote.

    Raises:
        DataError: The file is missing, damaged or something else.
    """
    values = read_json(Path(path))
    if not isinstance(values, list):
        raise DataError(f"'{path}' holds no list of simulation points")
    return [SimulationPoint.from_dict(item, source=f"{path}[{index}]") for index, item in enumerate(values)]


def points_table(points: Sequence[SimulationPoint]) -> list[dict[str, Any]]:
    """One flat row a point: ``stage``, ``dim``, ``seeds``, the settings, and ``NAME``, ``NAME_se`` of each quantity."""
    rows = []
    for point in points:
        row: dict[str, Any] = {"stage": point.stage, "dim": point.dim, "seeds": point.seeds, **point.settings}
        for name in point.samples:
            row[name], row[f"{name}_se"] = point.mean(name), point.error(name)
        rows.append(row)
    return rows


def write_points_csv(points: Sequence[SimulationPoint], path: str | Path) -> Path:
    """Write `points_table` as CSV; what a point does not have is left empty.

    Raises:
        OutputError: The place cannot be written.
    """
    rows = points_table(points)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    target = Path(path)
    atomic_write_text(target, text.getvalue())
    return target
