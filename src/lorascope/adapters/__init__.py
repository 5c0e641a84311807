"""All contact with PEFT: finding LoRA layers, capturing their outputs, reading adapters, checking them."""

from lorascope.adapters._peft import (
    Component,
    active_adapter,
    adapter_names,
    adapters_disabled,
    components,
    low_rank_factors,
    other_trained_modules,
)
from lorascope.adapters.capture import Capture
from lorascope.adapters.checks import check_rank, fingerprint
from lorascope.adapters.load import adapter_record, attach_adapter, read_adapter_config, read_adapter_record

__all__ = [
    "Capture",
    "Component",
    "active_adapter",
    "adapter_names",
    "adapter_record",
    "adapters_disabled",
    "attach_adapter",
    "check_rank",
    "components",
    "fingerprint",
    "low_rank_factors",
    "other_trained_modules",
    "read_adapter_config",
    "read_adapter_record",
]
