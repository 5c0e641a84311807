"""What the bridge found: measurement and theory side by side, as one record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from lorascope.core.errors import DataError
from lorascope.core.files import read_json, write_json
from lorascope.results.plain import plain

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class BridgeResult:
    """Runs of a real model beside the theory's curve.

    Attributes:
        plan: What was run; see `lorascope.bridge.BridgePlan`.
        parameters: Numbers in an adapter.
        noise: Residual variances of the frozen model and the largest run; see `lorascope.bridge.EffectiveNoise`.
        theory: Settings of the curve: ``tokens``, ``ridge``, ``noise``, ``rank``.
        runs: One row a run, the frozen model and the reference included: ``name``, ``rows``, ``seed``,
            ``rows_per_parameter``, ``accuracy``, ``ce`` (nats per token) with ``_error`` over questions, ``residual``
            (variance against the right answers), ``relative_error`` (see `lorascope.bridge.relative_distance`), and overlaps
            with the reference: ``column``, ``row``, ``update``, their ``_chance`` levels, ``column_above``, ``row_above``
            (chance is 0), means over layers weighted by the squared norm of the reference's update, and with ``_plain`` the
            unweighted ones.
        sizes: One row a data size: means over seeds with ``_error`` (standard error over seeds; None with one seed), and
            ``between``: overlap of the runs of one size with each other, chance taken out, with ``between_chance``.
        layers: Overlap of the runs of the largest size with the reference for each layer, mean over seeds.
        curve: The theory against data per parameter; see `lorascope.bridge.CurvePoint`.
        shapes: Each measured curve over the theory's; see `lorascope.bridge.ShapeFit`.
        relations: One row a size: ``overlap``, measured ``relative_error``, and ``theory_error`` where the theory's
            overlap is the same (None outside its range).
        findings: Where the theory's shape holds and where it does not, one sentence each.
        warnings: What a reader must know.
        provenance: Versions, machine, times.
        schema_version: Version of this layout.
    """

    plan: dict[str, Any]
    parameters: int
    noise: dict[str, Any]
    theory: dict[str, Any]
    runs: list[dict[str, Any]]
    sizes: list[dict[str, Any]]
    layers: list[dict[str, Any]]
    curve: list[dict[str, Any]]
    shapes: list[dict[str, Any]]
    relations: list[dict[str, Any]]
    findings: list[str]
    warnings: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    kind: ClassVar[str] = "bridge"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping; what is not known is None."""
        found: dict[str, Any] = plain(
            {"kind": self.kind, **{item.name: getattr(self, item.name) for item in fields(self)}}
        )
        return found

    @classmethod
    def from_dict(cls, values: Any, *, source: str = "mapping") -> BridgeResult:
        """Build a result from what `to_dict` made.

        Raises:
            DataError: It is something else, of another version, or not whole.
        """
        if not isinstance(values, Mapping) or values.get("kind") != cls.kind:
            raise DataError(f"'{source}' is no bridge result: give a bridge.json of lorascope theory bridge")
        if values.get("schema_version") != SCHEMA_VERSION:
            raise DataError(
                f"'{source}' has schema_version {values.get('schema_version')!r}, this lorascope reads {SCHEMA_VERSION}"
            )
        names = [item.name for item in fields(cls)]
        for name in names:
            if name not in values:
                raise DataError(f"'{source}' is not a whole bridge result: '{name}' is missing")
        return cls(**{name: values[name] for name in names})

    def save(self, path: str | Path) -> Path:
        """Write the result as JSON, whole or not at all.

        Raises:
            OutputError: The disk is full, or the place cannot be written.
        """
        target = Path(path)
        write_json(target, self.to_dict())
        return target

    @classmethod
    def load(cls, path: str | Path) -> BridgeResult:
        """Read what `save` wrote.

        Raises:
            DataError: The file is missing, interrupted, foreign or of another version.
        """
        return cls.from_dict(read_json(Path(path)), source=str(path))

    def table(self) -> pd.DataFrame:
        """One row a run."""
        return pd.DataFrame(self.runs)
