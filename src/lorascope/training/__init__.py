"""Training an adapter from a spec, and measuring adapters while any other trainer trains them."""

from __future__ import annotations

from lorascope.training.callback import InformationCallback
from lorascope.training.lora import attach_lora, lora_config
from lorascope.training.runner import run
from lorascope.training.spec import OPTIMIZERS, PRESETS, SCHEDULES, RunSpec

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
