"""Cross-entropy of the labels under a causal language model, and perplexity."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lorascope.core.errors import InputError


def token_cross_entropy(
    logits: Float[Tensor, "batch t v"], labels: Int[Tensor, "batch t"], ignore_index: int = -100
) -> tuple[float, int]:
    """Summed cross-entropy of a causal model: the logits at position t predict the label at t + 1.

    Args:
        logits: Logits, any floating type; the loss of a token is computed in float32 at least, the sum in float64.
        labels: Token ids, not shifted; ``ignore_index`` where a token does not count.
        ignore_index: The label that does not count.

    Returns:
        Sum of -ln p over the labels that count, in nats, and their number. (0.0, 0) when none counts.

    Raises:
        InputError: A label is outside the vocabulary, or a loss is NaN.

    Example:
        >>> token_cross_entropy(torch.zeros(1, 2, 4), torch.tensor([[0, 3]]))[1]
        1
    """
    targets = labels[:, 1:]
    keep = targets != ignore_index
    rows, targets = logits[:, :-1][keep], targets[keep].long()
    if targets.numel() == 0:
        return 0.0, 0
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= logits.shape[-1]:
        raise InputError(f"label {low if low < 0 else high} is outside the vocabulary of {logits.shape[-1]} tokens")
    if rows.dtype not in (torch.float32, torch.float64):
        rows = rows.float()
    total = float(torch.nn.functional.cross_entropy(rows, targets, reduction="none").sum(dtype=torch.float64))
    if math.isnan(total):
        raise InputError("cross-entropy is NaN: the logits hold NaN or infinity; try float32")
    return total, int(targets.numel())


def perplexity(sum_nats: float, n_tokens: int) -> float:
    """Perplexity, exp(sum_nats / n_tokens).

    Args:
        sum_nats: Summed cross-entropy in nats.
        n_tokens: Number of tokens behind it.

    Returns:
        Perplexity, dimensionless, >= 1; ``inf`` above the largest float (about 709 nats a token).

    Raises:
        InputError: There is no token, or the sum is negative or NaN.

    Example:
        >>> perplexity(0.0, 3)
        1.0
    """
    if n_tokens < 1 or not sum_nats >= 0:
        raise InputError(
            f"perplexity of {sum_nats} nats over {n_tokens} tokens: need a sum >= 0 and at least one token"
        )
    mean = sum_nats / n_tokens
    return math.exp(mean) if mean < 709.0 else math.inf
