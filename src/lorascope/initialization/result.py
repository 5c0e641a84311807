"""What an initialisation did: its settings, one row a layer, and where the numbers came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from lorascope.core.errors import DataError
from lorascope.core.files import read_json, write_json

SCHEMA_VERSION = 1
FILE = "initialization.json"


@dataclass(frozen=True, kw_only=True)
class FisherInitialization:
    """Result of `lorascope.initialize_lora_fisher`.

    Attributes:
        mode: Name of the mode.
        residual: Whether a part of the base weight moved into the adapter.
        layers: One row a layer: ``name``, ``layer``, ``projection``, ``d_in``, ``d_out``, ``rank`` (as it is now),
            ``tokens``, ``parameters`` (of the adapter there), ``fisher_trace`` (E |g|^2 |a|^2, the trace of the tokens'
            Fisher matrix, nats squared per squared unit of weight), ``share`` (of the sum over layers), ``known``
            (directions that the data decide); in mode ``fisher`` and with a table or budget ``captured`` (share of the
            Fisher factor's trace in the first ``rank`` directions), ``gain`` (their eigenvalues' sum) and
            ``gain_per_parameter``; with a table or budget also ``directions`` (effective number), ``directions_90`` (how
            many hold nine tenths of the trace) and ``suggested_rank`` (for the same number of parameters, or the budget).
        rank_pattern: Layer -> rank, of layers whose rank differs from the configuration's.
        alpha_pattern: Layer -> alpha, of the same layers; the scaling stays as it was.
        counts: ``samples``, ``tokens``, ``terms``, ``batches``, ``passes``, ``sketched`` layers,
            ``predicted_bytes``.
        settings: As asked for.
        loss_nats: Mean loss of a term on the calibration data.
        seconds: Of the whole call.
        warnings: What a reader must know, one sentence each.
        provenance: Versions, machine, seed.
        schema_version: Version of this layout.
    """

    mode: str
    residual: bool
    layers: list[dict[str, Any]]
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    loss_nats: float | None = None
    seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    kind: ClassVar[str] = "initialization"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return {"kind": self.kind, **{item.name: getattr(self, item.name) for item in fields(self)}}

    @classmethod
    def from_dict(cls, values: Any, *, source: str = "mapping") -> FisherInitialization:
        """Build a result from what `to_dict` made.

        Raises:
            DataError: It is something else, or of another version.
        """
        if not isinstance(values, Mapping) or values.get("kind") != cls.kind:
            raise DataError(f"'{source}' is no result of an initialisation: give the {FILE} of lorascope init")
        if values.get("schema_version") != SCHEMA_VERSION:
            raise DataError(
                f"'{source}' has schema_version {values.get('schema_version')!r}, this lorascope reads {SCHEMA_VERSION}: "
                "use the version of lorascope that wrote it"
            )
        known = {item.name for item in fields(cls)}
        lacking = [name for name in ("mode", "residual", "layers") if name not in values]
        if lacking or not isinstance(values["layers"], list):
            raise DataError(f"'{source}' is not a whole result: '{(lacking or ['layers'])[0]}' is missing or malformed")
        for number, row in enumerate(values["layers"]):
            wrong = [key for key in _NUMBERS if not _is_number(row.get(key))] if isinstance(row, Mapping) else ["name"]
            if wrong:
                raise DataError(
                    f"'{source}': layer {number + 1} has no number for '{wrong[0]}': the file was changed or damaged; make "
                    "it again with  lorascope init"
                )
        if not isinstance(values.get("rank_pattern") or {}, Mapping):
            raise DataError(f"'{source}': rank_pattern is {values['rank_pattern']!r}, where a mapping belongs")
        return cls(**{name: value for name, value in values.items() if name in known})

    def save(self, path: Path) -> Path:
        """Write it as JSON.

        Raises:
            OutputError: The disk is full, or the place cannot be written.
        """
        write_json(path, self.to_dict())
        return path

    @classmethod
    def load(cls, path: Path) -> FisherInitialization:
        """Read what `save` wrote.

        Raises:
            DataError: The file is missing, damaged or something else.
        """
        return cls.from_dict(read_json(path), source=str(path))


_NUMBERS = ("d_in", "d_out", "rank", "fisher_trace")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
