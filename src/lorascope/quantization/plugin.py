"""``quantization_config=ICQConfig(...)`` for `from_pretrained` of transformers: quantise on load, save, and load again."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name, should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin

from lorascope.core.errors import InputError, ModelError
from lorascope.quantization.icq import IcqTensor, check_options, quantize_icq
from lorascope.quantization.linear import IcqLinear, state_of

METHOD = "icq"
_LOGGER = logging.getLogger(__name__)

Watcher = Callable[[nn.Module, str, torch.Tensor, IcqTensor], None]
"""Told of each layer that is quantised on load: the model, the layer's name, its dense weight, what became of it."""

_WATCHERS: list[Watcher] = []


@contextlib.contextmanager
def watch_quantization(watcher: Watcher) -> Iterator[None]:
    """Follow what `from_pretrained` quantises while the block runs, for progress bars and tables of errors."""
    _WATCHERS.append(watcher)
    try:
        yield
    finally:
        _WATCHERS.remove(watcher)


@register_quantization_config(METHOD)
class ICQConfig(QuantizationConfigMixin):
    """How to quantise a model with information calibration.

    Importing `lorascope.quantization` makes the method known to transformers; loading a model that was saved quantised needs
    that import and nothing else.

    Args:
        bits: Bits a code: 2, 3 or 4.
        block_size: Weights a block.
        n: Candidates on either side of the median; 100 in the paper.
        lam: Width of the window of shifts.
        objective: ``"entropy"``, ``"mse"`` or ``"none"`` (no shift: plain NF).
        codebook: ``"nf"`` or ``"int"``.
        search: ``"shift"`` or, for integers, ``"scale"``.
        double_quant: Keep scales and shifts in 8 bits.
        group_size: Blocks that share a float then.
        modules_to_not_convert: Layers to leave alone, as transformers names them, beside the output head, which always is.

    Raises:
        InputError: A value is out of range.

    Example:
        >>> ICQConfig(bits=3).to_dict()["quant_method"]
        'icq'
        >>> from transformers import AutoModelForCausalLM
        >>> AutoModelForCausalLM.from_pretrained("path", quantization_config=ICQConfig(bits=4))  # doctest: +SKIP

    References:
        IR-QLoRA, arXiv 2402.05445.
    """

    def __init__(
        self,
        bits: int = 4,
        block_size: int = 64,
        n: int = 100,
        lam: float = 0.1,
        objective: str = "entropy",
        codebook: str = "nf",
        search: str = "shift",
        double_quant: bool = True,
        group_size: int = 256,
        modules_to_not_convert: Sequence[str] | None = None,
        **unknown: Any,
    ) -> None:
        if set(unknown) - {"quant_method"}:
            raise InputError(f"ICQConfig has no option '{min(set(unknown) - {'quant_method'})}'")
        self.quant_method = METHOD  # type: ignore[assignment]
        self.bits, self.block_size, self.n, self.lam = bits, block_size, n, lam
        self.objective, self.codebook, self.search = objective, codebook, search
        self.double_quant, self.group_size = double_quant, group_size
        self.modules_to_not_convert = None if modules_to_not_convert is None else list(modules_to_not_convert)
        check_options(**self.quantize_options)

    @property
    def quantize_options(self) -> dict[str, Any]:
        """The options for `quantize_icq`."""
        names = ("bits", "block_size", "n", "lam", "objective", "search", "double_quant", "group_size")
        return {**{name: getattr(self, name) for name in names}, "codebook_kind": self.codebook}

    @property
    def layer_options(self) -> dict[str, Any]:
        """The options for `IcqLinear`."""
        names = ("bits", "block_size", "double_quant", "group_size")
        shifted = self.objective != "none"
        return {**{name: getattr(self, name) for name in names}, "codebook_kind": self.codebook, "shifted": shifted}


@register_quantizer(METHOD)
class IcqQuantizer(HfQuantizer):
    """What `from_pretrained` calls: puts `IcqLinear` in place of dense layers and quantises weights as they arrive.

    Embeddings, norms, the output head, convolutions, routers of experts (which are small and decide much) and experts whose
    weights are fused in one tensor of three axes (no layer holds them) stay as they are.
    """

    quantization_config: ICQConfig

    def __init__(self, quantization_config: ICQConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.refused: list[InputError] = []

    def is_serializable(self) -> bool:
        """Quantised models can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters can be trained on quantised models."""
        return True

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        """Whether this tensor of the checkpoint is a dense weight that becomes codes."""
        module, name = get_module_from_name(model, param_name)
        return isinstance(module, IcqLinear) and name == "weight"

    def get_quantize_ops(self) -> ConversionOps:
        """What turns a dense weight into codes."""
        return _Quantize(self.quantization_config, self.refused)

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        config = self.quantization_config
        wide = list(model._keep_in_fp32_modules or [])
        given = config.modules_to_not_convert or []
        for key in [] if self.pre_quantized else given:
            if all(should_convert_module(name, [key]) for name, _ in model.named_modules()):
                raise InputError(f"modules_to_not_convert names '{key}', and no layer of this model is called so")
        # A head may share its weight with the embedding, which cannot be codes.
        named = self.get_modules_to_not_convert(model, given, wide, add_default_skips=True)
        # Of a classifier's head transformers names the bias alone.
        skip = [key.removesuffix(".weight").removesuffix(".bias") for key in named]
        for name, module in list(model.named_modules()):
            if is_quantizable(name, module) and should_convert_module(name, skip):
                model.set_submodule(name, _empty_like(module, config))

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        layers = icq_layers(model)
        if self.refused:
            raise self.refused[0]
        for name, layer in layers.items():
            if layer.weight.is_meta:
                raise ModelError(
                    f"quantised layer '{name}' was put on the disk, from where it cannot work: "
                    "give a device_map without 'disk'"
                )
        if self.pre_quantized:
            _check_whole(layers)
        for name, layer in layers.items():
            layer.check(name)
        fused = [p for name, p in model.named_parameters() if p.dim() == 3 and "experts" in name]
        if fused and not self.pre_quantized:
            _LOGGER.warning(
                "%s million weights of fused experts stay dense: no linear layer holds them",
                f"{sum(p.numel() for p in fused) / 1e6:,.3g}",
            )
        return model

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
        for name, layer in icq_layers(model).items():
            dense: nn.Linear | Conv1D = nn.Linear(
                layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta"
            )
            weight = layer.dequantize(dtype)
            if layer.transposed:
                with torch.device("meta"):
                    dense = Conv1D(layer.out_features, layer.in_features)  # type: ignore[no-untyped-call]
                weight = weight.T.contiguous()
            dense.weight = nn.Parameter(weight)
            dense.register_parameter("bias", layer.bias)
            model.set_submodule(name, dense)
        return model


def _check_whole(layers: Mapping[str, IcqLinear]) -> None:
    """Refuse tensors that the checkpoint lacks: transformers leaves them as the memory happened to be, with a mere warning.

    It marks each tensor that it loaded; if no tensor has a mark, this version of transformers has none to go by.
    """
    loaded = {
        (name, key): getattr(tensor, "_is_hf_initialized", False)
        for name, layer in layers.items()
        for key, tensor in layer.state_dict(keep_vars=True).items()
    }
    if not any(loaded.values()):
        return
    for (name, key), there in loaded.items():
        if not there:
            kind = next((f"{part}s" for part in ("shift", "scale", "format") if part in key), f"{key}s")
            raise ModelError(
                f"the {kind} of quantised layer '{name}' are missing or damaged: quantise the base model again"
            )


class _Quantize(ConversionOps):
    """Turns weights into codes. What cannot be one is noted and raised when all is read: transformers would put a raised
    error into a report and end with a line that says nothing of it.
    """

    def __init__(self, config: ICQConfig, refused: list[InputError]) -> None:
        self.config, self.refused = config, refused

    def convert(
        self, input_dict: dict[str, Any], *args: Any, model: nn.Module | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        assert model is not None
        result: dict[str, Any] = {}
        for key, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            layer, _ = get_module_from_name(model, key)
            if layer.transposed:
                weight = weight.T.contiguous()
            name = key.removesuffix(".weight")
            try:
                quantized = quantize_icq(weight, **self.config.quantize_options)
            except InputError as error:
                self.refused.append(InputError(f"{key}: {error}"))
                weight = torch.zeros_like(weight)
                quantized = quantize_icq(weight, **self.config.quantize_options)
            for watcher in _WATCHERS:
                watcher(model, name, weight, quantized)
            prefix = key.removesuffix("weight")
            result.update({prefix + name: tensor for name, tensor in state_of(quantized).items()})
        return result


def is_router(name: str) -> bool:
    """Whether a layer decides which expert a token goes to."""
    return name.rpartition(".")[2] in ("gate", "router") or ".router." in name


def is_quantizable(name: str, module: nn.Module) -> bool:
    """Whether a layer can hold codes: linear, no router, and not inside `nn.MultiheadAttention`, which reads its weight."""
    linear = isinstance(module, nn.Linear | Conv1D) and not isinstance(module, NonDynamicallyQuantizableLinear)
    return linear and not is_router(name)


def _empty_like(module: nn.Linear | Conv1D, config: ICQConfig) -> IcqLinear:
    rows, columns = module.weight.shape
    transposed = isinstance(module, Conv1D)
    if transposed:
        rows, columns = columns, rows
    dtype = module.weight.dtype
    layer = IcqLinear(columns, rows, module.bias is not None, device="meta", dtype=dtype, **config.layer_options)
    layer.transposed = transposed
    return layer


def icq_layers(model: nn.Module) -> dict[str, IcqLinear]:
    """The quantised layers of a model, by their names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, IcqLinear)}
