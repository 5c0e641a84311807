"""Ground floor: errors, files, seeds, configuration, metric names and provenance. Imports no torch."""

from lorascope.core.errors import (
    AdapterError,
    DataError,
    InputError,
    LorascopeError,
    MissingDependencyError,
    ModelError,
    OutputError,
    unknown_name,
)
from lorascope.core.metrics import GROUPS, METRICS, Metric, resolve_groups

__all__ = [
    "GROUPS",
    "METRICS",
    "AdapterError",
    "DataError",
    "InputError",
    "LorascopeError",
    "Metric",
    "MissingDependencyError",
    "ModelError",
    "OutputError",
    "resolve_groups",
    "unknown_name",
]
