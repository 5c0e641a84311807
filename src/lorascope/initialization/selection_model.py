"""What scoring a pool asks of the model: layers to look at, attention weights, leading directions."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from peft import LoraConfig, PeftModel, get_peft_model
from scipy.sparse.linalg import eigsh
from torch import Tensor
from transformers import PreTrainedModel

from lorascope.core.errors import AdapterError, ModelError
from lorascope.core.seeds import preserved_random_state
from lorascope.initialization.accumulators import SymmetricSum
from lorascope.initialization.spectrum import signed

SINKS = 1
"""First keys that attention logits leave out: models park attention there, whatever the row says."""


def leading_directions(factor: SymmetricSum, tokens: int, rank: int) -> Float[Tensor, "d r"]:
    """Leading eigenvectors of a layer's Fisher factor, by Lanczos where the whole matrix is kept.

    A few vectors of many matrices are wanted here; all of them, as `SymmetricSum.spectrum` finds them, take ten times as
    long as the pass over the data.

    Args:
        factor: The sum.
        tokens: Number of tokens in it.
        rank: How many at most; a layer that is narrower has fewer.

    Returns:
        Orthonormal columns, float32 in main memory, the largest eigenvalue first; each one's largest entry is positive.

    Example:
        >>> total = SymmetricSum(3, torch.device("cpu"))
        >>> total.update(torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]]))
        >>> leading_directions(total, 2, 1).flatten().tolist()
        [0.0, 1.0, 0.0]
    """
    size = factor.size
    if factor.sketched or size <= max(64, 4 * rank):
        return factor.spectrum(tokens, rank).vectors[:, :rank].contiguous().cpu()
    matrix = factor.sum.double().cpu().numpy()
    start = np.random.default_rng(0).standard_normal(size)  # ARPACK would draw its own
    _, vectors = eigsh((matrix + matrix.T) / 2, k=rank, which="LA", v0=start)
    return signed(torch.from_numpy(vectors[:, ::-1].copy()).float())


def attention_spread(weights: Float[Tensor, "heads t t"]) -> tuple[float, int]:
    """Sum over heads and queries of the variance of the attention logits, and how many there are.

    Args:
        weights: Attention after softmax, causal: row q has keys 0..q. A key that all heads give exactly 0 is outside a
            sliding window, or cannot be told from such a key, and does not count; other weights are at least 1e-30, or the
            smallest number of their type.

    Returns:
        Sum of variances, float64, and their number.

    Example:
        >>> logits = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [0.0, 0, 0, 0], [5.0, 1.0, 3.0, 0.0], [0, 0, 0, 0]]])
        >>> mask = torch.ones(4, 4).tril().bool()
        >>> attention = logits.masked_fill(~mask, -torch.inf).softmax(-1)
        >>> total, count = attention_spread(attention)
        >>> round(total, 4), count
        (1.0, 2)
    """
    counts = (weights.tril() > 0).any(0).expand_as(weights).clone()
    counts[..., :SINKS] = False
    kind = torch.finfo(weights.dtype)
    logs = weights.double().clamp_min(max(1e-30, kind.smallest_normal * kind.eps)).log()
    keys = counts.sum(-1)
    number = keys.clamp_min(1)
    mean = logs.masked_fill(~counts, 0.0).sum(-1) / number
    spread = (logs - mean[..., None]).masked_fill(~counts, 0.0).square().sum(-1) / number
    use = keys >= 2
    return float(spread[use].sum()), int(use.sum())


@contextlib.contextmanager
def with_layers(model: torch.nn.Module, targets: str | tuple[str, ...]) -> Iterator[PeftModel]:
    """The model with LoRA layers: its own, or idle ones of rank 1 that are taken off again."""
    if isinstance(model, PeftModel):
        yield model
        return
    needed = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    hooks = {module: set(module._forward_hooks) for module in model.modules()}
    names: str | list[str] = targets if isinstance(targets, str) else list(targets)
    with preserved_random_state(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        try:
            adapted = get_peft_model(model, LoraConfig(r=1, target_modules=names))
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise AdapterError(f"target_modules {targets!r} do not fit this model: {reason}") from error
    try:
        yield adapted
    finally:
        adapted.unload()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in needed)
        for (
            module,
            before,
        ) in hooks.items():  # with gradient checkpointing PEFT makes the embeddings' outputs need gradients
            for key in set(module._forward_hooks) - before:
                del module._forward_hooks[key]


@contextlib.contextmanager
def eager_attention(model: torch.nn.Module) -> Iterator[None]:
    """Attention that gives its weights, then as it was."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(base, PreTrainedModel):
        raise ModelError("smallest_attention needs a model of transformers, which can give its attention weights")
    untyped: Any = base
    before = untyped.config._attn_implementation
    try:
        untyped.set_attn_implementation("eager")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{type(base).__name__} gives no attention weights ({error}): take another method") from error
    try:
        yield
    finally:
        untyped.set_attn_implementation(before)
