"""The elastic connection of IR-QLoRA inside PEFT's layers; all that knows how PEFT builds them is here."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import torch
from jaxtyping import Float
from peft.tuners.lora import LoraLayer, LoraModel
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lorascope.adapters.checks import fingerprints
from lorascope.core.errors import AdapterError
from lorascope.quantization import IcqLinear


def add_pooling(weight: Float[Tensor, "out inp"], beta: Float[Tensor, ...]) -> Float[Tensor, "out inp"]:
    r"""W + beta P, where x P^T averages groups of x and repeats each average.

    With g = gcd(out, inp): :math:`P_{ji} = g / \mathrm{inp}` where i and j lie in the same of g equal groups of their axis,
    else 0. So P averages each of g consecutive groups of the input and gives every output of a group its average.

    Args:
        weight: W.
        beta: Strength of the connection, one number.

    Returns:
        A new matrix.

    Example:
        >>> add_pooling(torch.zeros(2, 4), torch.tensor(1.0))
        tensor([[0.5000, 0.5000, 0.0000, 0.0000],
                [0.0000, 0.0000, 0.5000, 0.5000]])

    References:
        IR-QLoRA, arXiv 2402.05445, section 3.3.
    """
    rows, columns = weight.shape
    return torch.addcmul(weight, pooling(rows, columns, weight.dtype, weight.device), beta.reshape(1, 1))


@functools.lru_cache(maxsize=256)
def pooling(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """P of `add_pooling`: layers have few shapes, so that all layers of a shape share one."""
    groups = math.gcd(rows, columns)
    with torch.inference_mode(False):
        pool = torch.zeros((rows, columns), dtype=dtype, device=device)
        pool.view(groups, rows // groups, groups, columns // groups).diagonal(dim1=0, dim2=2).fill_(groups / columns)
    return pool


class Pooling(nn.Module):
    """Parametrisation of a factor: its weight is A + beta P, with beta trained from zero."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.zeros((1, 1), dtype=like.dtype, device=like.device))

    def forward(self, weight: Tensor) -> Tensor:
        """A + beta P."""
        return add_pooling(weight, self.beta)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What A must be for the factor's weight to be this, so that assigning a weight works."""
        return add_pooling(weight, -self.beta).detach()


# Names in a file: as short as those of other adapters, so that PEFT finds the adapter's name in them. The factor has a
# third axis there: who reads it as an ordinary one, by another configuration say, ends in an error about its shape.
BETA = "elastic_beta"
_NAMES = {"weight": "parametrizations.weight.original", BETA: "parametrizations.weight.0.beta"}


def _save_by_name(factor: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for short, long in _NAMES.items():
        if prefix + long in state:
            saved = state.pop(prefix + long)
            state[prefix + short] = saved if short == BETA else saved.unsqueeze(0)


def _load_by_name(factor: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    for short, long in _NAMES.items():
        if prefix + short in state:
            saved, here = state.pop(prefix + short), factor.get_parameter(long)
            state[prefix + long] = saved.reshape(here.shape) if saved.numel() == here.numel() else saved


class _KeepingDropout(nn.Dropout):
    """Dropout that remembers what it dropped, for the connection, which drops nothing."""

    last: tuple[Tensor, Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:
        passed = super().forward(input)
        self.last = (input, passed) if self.training else None
        return passed


class _PassDropped:
    """Forward hook of the factor A: adds what the connection lost to dropout.

    DoRA also calls A with another input, to see its weight: only what came out of the dropout is made good.
    """

    def __init__(self, dropout: _KeepingDropout) -> None:
        self.dropout = dropout

    def __call__(self, factor: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> Tensor | None:
        last = self.dropout.last
        if last is None or given[0] is not last[1]:
            return None
        self.dropout.last = None
        untyped: Any = factor
        beta: Tensor = untyped.parametrizations.weight[0].beta
        rows, columns = result.shape[-1], given[0].shape[-1]
        groups = math.gcd(rows, columns)
        lost = (last[0] - last[1]).reshape(*last[0].shape[:-1], groups, columns // groups).mean(dim=-1)
        passed: Tensor = result + beta.reshape(()) * lost.repeat_interleave(rows // groups, dim=-1)
        return passed


def connect(layer: Any, adapter: str, *, source: bool, target: bool) -> None:
    """Give an adapter of a layer its elastic connections.

    Args:
        layer: PEFT's layer, with the adapter in it.
        adapter: The adapter's name.
        source: Around the first factor, U1.
        target: Around the second, U2.

    Raises:
        AdapterError: The layer has no two factors that are matrices (embeddings, convolutions, fused experts).
    """
    factors = [layer.lora_A, layer.lora_B]
    if any(adapter not in held or not isinstance(held[adapter], nn.Linear) for held in factors):
        kind = type(layer.get_base_layer()).__name__
        raise AdapterError(
            f"an elastic connection needs dense layers, and {kind} is none: leave it out of target_modules"
        )
    for held, wanted in zip(factors, (source, target), strict=True):
        factor = held[adapter]
        if wanted and not parametrize.is_parametrized(factor):
            parametrize.register_parametrization(factor, "weight", Pooling(factor.weight))
            factor.register_state_dict_post_hook(_save_by_name)
            factor.register_load_state_dict_pre_hook(_load_by_name)
    dropout = layer.lora_dropout[adapter]
    if source and isinstance(dropout, nn.Dropout) and not isinstance(dropout, _KeepingDropout):
        keeping = _KeepingDropout(dropout.p)
        layer.lora_dropout[adapter] = keeping
        layer.lora_A[adapter].register_forward_hook(_PassDropped(keeping))


class _Elastic:
    """Mixed into a PEFT layer's class: adapters with an elastic configuration are connected."""

    def update_layer(self, adapter_name: str, *args: Any, config: Any, **kwargs: Any) -> None:
        super().update_layer(adapter_name, *args, config=plain(config), **kwargs)  # type: ignore[misc]
        if getattr(config, "elastic", False):
            untyped: Any = self
            note_base(config, untyped.get_base_layer())
            connect(self, adapter_name, source=config.elastic_source, target=config.elastic_target)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        # PEFT reads the type of a factor's weight before it uses the weight: one A + beta P a pass is enough.
        with parametrize.cached():
            result: Tensor = super().forward(*args, **kwargs)  # type: ignore[misc]
        return result


def plain(config: Any) -> Any:
    """The configuration as PEFT's own layers should see it."""
    if not getattr(config, "elastic", False):
        return config
    other = copy.copy(config)
    other.elastic = False
    return other


@functools.cache
def _elastic(kind: Any) -> type:
    return kind if issubclass(kind, _Elastic) else type(f"Elastic{kind.__name__}", (_Elastic, kind), {})


def held_as(layer: nn.Module) -> str:
    """How a base layer holds its weight, in a few words.

    Example:
        >>> held_as(nn.Linear(2, 2))
        'dense weights'
    """
    if isinstance(layer, IcqLinear):
        shift = "ICQ" if layer.shifted else "plain"
        return f"{shift} codes {layer.codebook_kind}{layer.bits} in blocks of {layer.block_size}"
    state: Any = getattr(getattr(layer, "weight", None), "quant_state", None)
    return "dense weights" if state is None else f"bitsandbytes codes {getattr(state, 'quant_type', '')}".strip()


def note_base(config: Any, layer: nn.Module) -> None:
    """Let the configuration of a new adapter say what its base holds; that of a saved one says so already."""
    if not config._base_is_saved:
        config.elastic_base = held_as(layer)
        known = config.elastic_mark or {}
        config.elastic_mark = {k: sorted({*known.get(k, ()), mark}) for k, mark in mark_of(layer).items()}


def mark_of(layer: nn.Module) -> dict[str, str]:
    """Hashes that tell the weight of a base layer; none where bitsandbytes holds it, which reorders its codes in use.

    Example:
        >>> sorted(mark_of(nn.Linear(2, 2)))
        ['base_fingerprint', 'base_fingerprint_float16']
    """
    if isinstance(layer, IcqLinear):
        return {"codes": f"{int(layer.get_buffer('weight_format')[-1]) % 2**32:08x}"}
    if getattr(getattr(layer, "weight", None), "quant_state", None) is not None or layer.weight.is_meta:
        return {}
    return fingerprints(layer)


def elastic_layer(target: nn.Module, adapter_name: str, config: Any, **kwargs: Any) -> nn.Module:
    """What PEFT calls for a new layer: PEFT's own layer, connected.

    Raises:
        AdapterError: As `connect`.
    """
    inner = plain(config)
    inner._custom_modules = {k: v for k, v in (config._custom_modules or {}).items() if v is not elastic_layer} or None
    note_base(config, target.get_base_layer() if isinstance(target, LoraLayer) else target)
    layer: nn.Module = LoraModel._create_new_module(inner, adapter_name, target, **kwargs)
    kind: Any = type(layer)
    layer.__class__ = _elastic(kind)
    connect(layer, adapter_name, source=config.elastic_source, target=config.elastic_target)
    return layer
