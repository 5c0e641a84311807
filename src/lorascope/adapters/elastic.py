"""Elastic LoRA: each factor also passes on averages of its input, with a trained strength (IEC of IR-QLoRA)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peft import LoraConfig
from torch import nn

from lorascope.adapters._elastic import Pooling, elastic_layer
from lorascope.adapters._icq_lora import support_quantised
from lorascope.core.errors import AdapterError

# Not a kind that PEFT knows, on purpose: PEFT alone must refuse such an adapter, not read it as plain LoRA.
ELASTIC_TYPE = "LORASCOPE_ELASTIC_LORA"


@dataclass
class ElasticLoraConfig(LoraConfig):  # type: ignore[misc]
    r"""LoRA with the elastic connections of IR-QLoRA.

    With g1 = gcd(in, r) and g2 = gcd(out, r), the update of a layer is scaling * U2(U1(x)) where

    - :math:`U_1(x) = A x + \beta_1\,\mathrm{rep}(\mathrm{mean}_{g_1}(x))`
    - :math:`U_2(z) = B z + \beta_2\,\mathrm{rep}(\mathrm{mean}_{g_2}(z))`

    with averages over consecutive groups, each repeated to the width of the output. beta1 and beta2 are one number each a
    layer, zero at first, so that a new adapter changes nothing. Dropout acts on the path through A only. Both maps are
    linear, so the adapter is an ordinary LoRA of the same rank with A + beta1 P and B + beta2 R: `fold_adapter`.

    All options of `peft.LoraConfig` go with it on dense layers, rsLoRA and DoRA included; layers of bitsandbytes and ICQ
    work too. Embeddings, convolutions and fused experts have no two matrices to connect and are refused.

    Saved with `save_pretrained` as usual. PEFT alone refuses to load it (its kind is not one of PEFT's); load it with
    `lorascope.attach_adapter`, or fold it first. On a model that has several adapters, add an elastic one before plain
    ones: PEFT makes a layer at the first, and a plain layer takes no connection. A model with connections can be
    copied and its state saved, but not pickled whole, as any model with parametrised weights.

    Attributes:
        elastic: Whether there are connections at all.
        elastic_source: Whether U1 has one.
        elastic_target: Whether U2 has one.
        elastic_base: How the last layer under the adapter holds its weight; set when the adapter is made, so that
            `lorascope.attach_adapter` can warn of another base.
        elastic_mark: Hashes of the weights of all layers under it, for the same.

    Raises:
        AdapterError: Fused parameters are targeted, the start is EVA or moves a part of the base, or this is a copy of a
            configuration in use, which `add_weighted_adapter` makes.

    Example:
        >>> config = ElasticLoraConfig(r=8, target_modules=["q_proj"])
        >>> config.to_dict()["peft_type"]
        'LORASCOPE_ELASTIC_LORA'

    References:
        IR-QLoRA, arXiv 2402.05445, section 3.3.
    """

    elastic: bool = field(default=True, metadata={"is_lora_variant": True})
    elastic_source: bool = True
    elastic_target: bool = True
    elastic_base: str | None = None
    elastic_mark: dict[str, list[str]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.elastic_base is not None or self.elastic_mark is not None:
            raise AdapterError(
                "an elastic configuration that is in use cannot be copied or made by hand (add_weighted_adapter of PEFT "
                "does so, and writes past the connections): fold the adapters first, or make a new ElasticLoraConfig"
            )
        self._base_is_saved = False
        if self.elastic:
            if self.target_parameters:
                raise AdapterError(
                    f"an elastic connection needs layers, not parameters ({', '.join(self.target_parameters)}): "
                    "leave out target_parameters"
                )
            if self.init_lora_weights == "eva":
                raise AdapterError(
                    "init_lora_weights 'eva' would leave the factors as they are, as PEFT writes past the connections: "
                    "take another start, or elastic=False"
                )
            if str(self.init_lora_weights).startswith(("pissa", "olora", "corda", "lora_ga")):
                raise AdapterError(
                    f"init_lora_weights '{self.init_lora_weights}' moves a part of the base into the factors; the adapter "
                    "would need twice the rank to stand alone, where the connections are others: take another start, or "
                    "elastic=False"
                )
            self._register_custom_module({nn.Module: elastic_layer})  # the first that fits is taken: before that of ICQ
            support_quantised(self)

    @classmethod
    def from_saved(cls, values: Mapping[str, Any]) -> ElasticLoraConfig:
        """The configuration of a saved adapter, with what it says of its base.

        Args:
            values: Content of its ``adapter_config.json``.

        Raises:
            AdapterError: As the class.
        """
        known = {field.name for field in dataclasses.fields(cls)} - {"peft_type"}
        options = {key: value for key, value in values.items() if key in known}
        base, mark = options.pop("elastic_base", None), options.pop("elastic_mark", None)
        config = cls(**options)
        config.elastic_base, config.elastic_mark, config._base_is_saved = base, mark, base is not None
        return config

    def to_dict(self) -> dict[str, Any]:
        """The configuration as it is saved."""
        values: dict[str, Any] = super().to_dict()
        return values | {"peft_type": ELASTIC_TYPE} if self.elastic else values


def betas(model: nn.Module) -> dict[str, nn.Parameter]:
    """The strengths of all elastic connections, by the names of their parameters.

    Example:
        >>> betas(nn.Linear(2, 2))
        {}
    """
    return {f"{name}.beta": module.beta for name, module in model.named_modules() if isinstance(module, Pooling)}


def elastic_parameter_groups(
    model: nn.Module, *, learning_rate: float, elastic_learning_rate: float, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser: the strengths of the connections with a learning rate of their own.

    AdamW moves a number by about the learning rate a step. At a rate that suits matrices, a short run leaves the strengths
    where they began.

    Args:
        model: A model with adapters.
        learning_rate: For everything else that is trained.
        elastic_learning_rate: For the strengths.
        weight_decay: For everything else; the strengths have none.

    Returns:
        Groups for any optimiser of torch.

    Example:
        >>> groups = elastic_parameter_groups(nn.Linear(2, 2), learning_rate=1e-3, elastic_learning_rate=1e-2)
        >>> [len(group["params"]) for group in groups]
        [2, 0]
    """
    strengths = {id(beta) for beta in betas(model).values()}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in strengths]
    own = [p for p in betas(model).values() if p.requires_grad]
    return [
        {"params": rest, "lr": learning_rate, "weight_decay": weight_decay},
        {"params": own, "lr": elastic_learning_rate, "weight_decay": 0.0},
    ]
