"""All contact with PEFT: finding LoRA layers, capturing their outputs, reading adapters, checking them; sharing layers."""

from lorascope.adapters._icq_lora import support_quantised
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
from lorascope.adapters.checks import adapter_digest, check_rank, fingerprint
from lorascope.adapters.elastic import ElasticLoraConfig, elastic_parameter_groups
from lorascope.adapters.fold import fold_adapter
from lorascope.adapters.load import (
    adapter_record,
    attach_adapter,
    quantization_config_of,
    quantization_of,
    read_adapter_config,
    read_adapter_record,
)
from lorascope.adapters.sharing import (
    SharedLayers,
    count_parameters,
    layers_shared,
    load_shared,
    retie,
    share_layers,
    sharing_of,
    unshare_layers,
)

__all__ = [
    "Capture",
    "Component",
    "ElasticLoraConfig",
    "SharedLayers",
    "active_adapter",
    "adapter_digest",
    "adapter_names",
    "adapter_record",
    "adapters_disabled",
    "attach_adapter",
    "check_rank",
    "components",
    "count_parameters",
    "elastic_parameter_groups",
    "fingerprint",
    "fold_adapter",
    "layers_shared",
    "load_shared",
    "low_rank_factors",
    "other_trained_modules",
    "quantization_config_of",
    "quantization_of",
    "read_adapter_config",
    "read_adapter_record",
    "retie",
    "share_layers",
    "sharing_of",
    "support_quantised",
    "unshare_layers",
]
