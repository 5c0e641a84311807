"""lorascope: see what a LoRA adapter learned.

The names below, and the sub-packages (``lorascope.information``), are loaded when they are first used, so that importing
the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorascope.adapters import ElasticLoraConfig, attach_adapter, fold_adapter, share_layers
    from lorascope.core.errors import LorascopeError
    from lorascope.initialization import initialize_lora_fisher
    from lorascope.measuring import load_model_and_tokenizer, measure
    from lorascope.quantization import ICQConfig
    from lorascope.report import write_report
    from lorascope.results import AdapterMeasurement, RunRecord, RunStore
    from lorascope.tasks import evaluate_task, load_task
    from lorascope.training import InformationCallback, RunSpec, run

__version__ = "0.1.0"

_HOMES = {
    "AdapterMeasurement": "lorascope.results",
    "ElasticLoraConfig": "lorascope.adapters",
    "ICQConfig": "lorascope.quantization",
    "InformationCallback": "lorascope.training",
    "LorascopeError": "lorascope.core.errors",
    "RunRecord": "lorascope.results",
    "RunSpec": "lorascope.training",
    "RunStore": "lorascope.results",
    "attach_adapter": "lorascope.adapters",
    "evaluate_task": "lorascope.tasks",
    "fold_adapter": "lorascope.adapters",
    "initialize_lora_fisher": "lorascope.initialization",
    "load_model_and_tokenizer": "lorascope.measuring",
    "load_task": "lorascope.tasks",
    "measure": "lorascope.measuring",
    "run": "lorascope.training",
    "share_layers": "lorascope.adapters",
    "write_report": "lorascope.report",
}

__all__ = [
    "AdapterMeasurement",
    "ElasticLoraConfig",
    "ICQConfig",
    "InformationCallback",
    "LorascopeError",
    "RunRecord",
    "RunSpec",
    "RunStore",
    "attach_adapter",
    "evaluate_task",
    "fold_adapter",
    "initialize_lora_fisher",
    "load_model_and_tokenizer",
    "load_task",
    "measure",
    "run",
    "share_layers",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if not name.startswith("_"):
        from importlib.util import find_spec

        if find_spec(f"lorascope.{name}") is not None:
            return importlib.import_module(f"lorascope.{name}")
    raise AttributeError(f"module 'lorascope' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
