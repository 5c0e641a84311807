"""What a measurement or a run found, and the folder that keeps it. Imports no torch."""

from __future__ import annotations

from lorascope.results.measurement import SCHEMA_VERSION, AdapterMeasurement
from lorascope.results.record import RunRecord
from lorascope.results.store import RunStore

__all__ = ["SCHEMA_VERSION", "AdapterMeasurement", "RunRecord", "RunStore"]
