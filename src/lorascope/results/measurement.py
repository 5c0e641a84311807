"""What `lorascope.measure` found: totals, one record a component, counts and where the numbers came from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pandas as pd
import plotly.graph_objects as go

from lorascope.core.errors import DataError
from lorascope.core.files import read_json, write_json
from lorascope.core.metrics import METRICS
from lorascope.results.plain import plain

SCHEMA_VERSION = 1

_Result = TypeVar("_Result", bound="AdapterMeasurement")

_CONTAINERS: dict[str, type] = {
    "totals": dict,
    "layers": list,
    "counts": dict,
    "settings": dict,
    "warnings": list,
    "provenance": dict,
    "name": str,
    "spec": dict,
    "history": list,
    "correct": list,
}


@dataclass(frozen=True, kw_only=True)
class AdapterMeasurement:
    """The measurement of one adapter on one set of data.

    Attributes:
        totals: Metric name -> value over all components; unit as in `lorascope.core.METRICS`. NaN where unknown.
        layers: One record a component: ``name``, ``layer`` (int or None), ``projection``, ``rank`` (int or None),
            ``d_in``, ``d_out``, ``adapter``, and the metrics that have a value of their own there.
        counts: How much was seen: ``samples``, ``tokens``, ``components``, ``questions``, ``truncated`` ...
        settings: How it was measured: variant, tokens, reduction, seed ...
        warnings: What a reader must know, one sentence each.
        provenance: Versions, machine, command, seed and hashes (`lorascope.core.provenance.collect`).
        schema_version: Version of this layout.

    Example:
        >>> found = AdapterMeasurement(totals={"miub_js": 0.5}, layers=[])
        >>> found.to_dict()["units"]
        {'miub_js': 'nats'}
    """

    totals: dict[str, float]
    layers: list[dict[str, Any]]
    counts: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    kind: ClassVar[str] = "measurement"

    @property
    def rank(self) -> int | None:
        """The rank of the adapter if all components share one, else None."""
        ranks = {record.get("rank") for record in self.layers}
        return ranks.pop() if len(ranks) == 1 else None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping of every field, with ``kind`` and the ``units`` of the metrics; NaN becomes None."""
        names = [*self.totals, *(name for record in self.layers for name in record)]
        units = {name: METRICS[name].unit for name in dict.fromkeys(names) if name in METRICS}
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        head = {"schema_version": self.schema_version, "kind": self.kind}
        result: dict[str, Any] = plain({**head, **values, "units": units})
        return result

    @classmethod
    def from_dict(cls: type[_Result], values: Any, *, source: str = "mapping") -> _Result:
        """Build a measurement from what `to_dict` made.

        Args:
            values: The mapping; ``kind`` ``"run"`` gives a `RunRecord`.
            source: Where it came from, for messages.

        Returns:
            The measurement; None among ``totals`` has become NaN again.

        Raises:
            DataError: The mapping is not a lorascope result, is of another version, or misses a field.
        """
        kinds = {kind.kind: kind for kind in (cls, *cls.__subclasses__())}
        if not isinstance(values, Mapping) or "schema_version" not in values or "kind" not in values:
            raise DataError(f"'{source}' is not a lorascope result: it has no schema_version and kind")
        if values["schema_version"] != SCHEMA_VERSION:
            raise DataError(
                f"'{source}' has schema_version {values['schema_version']!r}, this lorascope reads {SCHEMA_VERSION}: "
                "use the version of lorascope that wrote it"
            )
        if values["kind"] not in kinds:
            raise DataError(f"'{source}' holds a {values['kind']!r}, expected {' or '.join(kinds)}: give another file")
        target = kinds[values["kind"]]
        names = [item.name for item in fields(target) if item.name in values]
        for name in ("totals", "layers", *names):
            expected = _CONTAINERS.get(name)
            if name not in values or (expected is not None and not isinstance(values[name], expected)):
                raise DataError(f"'{source}' is not a whole lorascope result: '{name}' is missing or malformed")
        given = values["totals"].values()
        if any(isinstance(value, bool) or not isinstance(value, int | float | None) for value in given) or any(
            not isinstance(record, dict) for record in values["layers"]
        ):
            raise DataError(f"'{source}' is not a whole lorascope result: 'totals' or 'layers' is malformed")
        bad_history = not all(isinstance(line, dict) for line in values.get("history", []))
        bad_counts = any(isinstance(n, bool) or not isinstance(n, int) for n in values.get("counts", {}).values())
        if bad_history or bad_counts:
            what = "history" if bad_history else "counts"
            raise DataError(f"'{source}' is not a whole lorascope result: '{what}' is malformed")
        try:
            totals = {name: math.nan if value is None else float(value) for name, value in values["totals"].items()}
            json.dumps(values, ensure_ascii=False).encode()  # half a character could not be written again
        except (OverflowError, UnicodeEncodeError) as error:
            raise DataError(f"'{source}' is not a whole lorascope result: {error}") from error
        try:
            return target(**{**{name: values[name] for name in names}, "totals": totals})
        except TypeError as error:
            raise DataError(f"'{source}' is not a whole lorascope result: {error}") from error

    def save(self, path: str | Path) -> Path:
        """Write the measurement as JSON, whole or not at all.

        Raises:
            OutputError: The disk is full, or the place cannot be written.
        """
        path = Path(path)
        write_json(path, self.to_dict())
        return path

    @classmethod
    def load(cls: type[_Result], path: str | Path) -> _Result:
        """Read what `save` wrote; a run's file gives a `RunRecord`.

        Raises:
            DataError: The file is missing, interrupted, foreign, or of another version.
        """
        return cls.from_dict(read_json(Path(path)), source=str(path))

    def table(self) -> pd.DataFrame:
        """The components as a table, one row each: name, layer, projection, shapes and metrics."""
        return pd.DataFrame.from_records(self.layers)

    def plot_layers(self, metric: str = "miub_js") -> go.Figure:
        """Heat map of a metric over layers and projections.

        Raises:
            InputError: No component has that metric.
        """
        from lorascope.figures import layer_heatmap_info, plot_layer_heatmap

        return plot_layer_heatmap(layer_heatmap_info(self.layers, metric))

    def plot_depth(self, metric: str = "miub_js") -> go.Figure:
        """A metric against the depth of the layer, one line for each projection.

        Raises:
            InputError: No component with a layer number has that metric.
        """
        from lorascope.figures import depth_profile_info, plot_depth_profile

        return plot_depth_profile(depth_profile_info(self.layers, metric))
