"""Training an adapter from a spec, and measuring adapters while any other trainer trains them.

The names below are loaded when they are first used, so that reading a `RunSpec` imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorascope.training.callback import InformationCallback
    from lorascope.training.lora import attach_lora, lora_config
    from lorascope.training.runner import run
    from lorascope.training.spec import OPTIMIZERS, PRESETS, SCHEDULES, RunSpec

_HOMES = {
    "OPTIMIZERS": "lorascope.training.spec",
    "PRESETS": "lorascope.training.spec",
    "SCHEDULES": "lorascope.training.spec",
    "InformationCallback": "lorascope.training.callback",
    "RunSpec": "lorascope.training.spec",
    "attach_lora": "lorascope.training.lora",
    "lora_config": "lorascope.training.lora",
    "run": "lorascope.training.runner",
}

__all__ = [
    "OPTIMIZERS",
    "PRESETS",
    "SCHEDULES",
    "InformationCallback",
    "RunSpec",
    "attach_lora",
    "lora_config",
    "run",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lorascope.training' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
