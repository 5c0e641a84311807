"""Which tokens of a batch count, and what each weighs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorascope.core.errors import InputError

TOKENS = ("all", "prompt", "completion", "last")
REDUCTIONS = ("mean", "sum", "sample_mean")


@dataclass(frozen=True)
class Selection:
    """The rows of one batch that count.

    Attributes:
        samples: Number of samples in the batch.
        mask: (samples, length) with True where a token counts; None for inputs without tokens, such as images.
        everything: Every row of every layer counts.
    """

    samples: int
    mask: Tensor | None
    everything: bool

    @property
    def sizes(self) -> list[int]:
        """Tokens that count in each sample (empty for inputs without tokens)."""
        return [] if self.mask is None else [int(n) for n in self.mask.sum(dim=1)]

    def rows(self, output: Tensor, where: str) -> Tensor:
        """Pick the rows of one layer's output that count.

        Args:
            output: (..., d), with leading sizes (samples, length), (samples * length,) or (samples,).
            where: The layer's name, for the message.

        Returns:
            (n, d), in the order of the tokens.

        Raises:
            InputError: The rows cannot be matched with tokens, and not all of them count.
        """
        flat = output.reshape(-1, output.shape[-1])
        if self.everything or flat.shape[0] == self.samples:
            return flat
        if self.mask is None or flat.shape[0] != self.mask.numel():
            raise InputError(
                f"layer '{where}' gives {flat.shape[0]} rows for {self.samples} samples, which cannot be matched with "
                "tokens: use rows of equal length (or batch_size=1) and tokens='all'"
            )
        return flat[self.mask.reshape(-1).to(flat.device)]

    def row_sizes(self, n: int) -> list[int]:
        """How many of ``n`` picked rows belong to each sample, in order."""
        sizes = self.sizes
        if sum(sizes) == n:
            return sizes
        return [n // self.samples] * self.samples if n % self.samples == 0 else [n]

    def weights(self, n: int) -> Tensor:
        """Weight of each of ``n`` picked rows so that every sample weighs one in all."""
        return torch.cat([torch.full((size,), 1.0 / size, dtype=torch.float64) for size in self.row_sizes(n) if size])


def select_tokens(batch: Mapping[str, Any], tokens: str) -> Selection:
    """Find the tokens of a batch that count; padding never does.

    Args:
        batch: The model's inputs, with ``labels`` where there are any.
        tokens: ``all`` real tokens; ``prompt`` (label -100) or ``completion`` (the others); ``last`` of each row.

    Returns:
        The selection.

    Raises:
        InputError: The choice does not fit the batch, or no token is left.
    """
    ids = batch.get("input_ids", batch.get("inputs_embeds"))
    if not isinstance(ids, Tensor):
        if tokens != "all":
            raise InputError(f"tokens='{tokens}' needs input_ids: for images use tokens='all'")
        first = next((value for value in batch.values() if isinstance(value, Tensor)), None)
        if first is None:
            raise InputError(f"a batch has no tensors (keys: {', '.join(map(str, batch)) or 'none'})")
        return Selection(samples=first.shape[0], mask=None, everything=True)
    mask = batch.get("attention_mask")
    real = torch.ones(ids.shape[:2], dtype=torch.bool, device=ids.device) if mask is None else mask.bool()
    if real.dim() != 2:
        raise InputError(
            f"attention_mask has {real.dim()} dimensions: padding can only be told from a (batch, length) one"
        )
    if tokens in ("prompt", "completion"):
        labels = batch.get("labels")
        if not isinstance(labels, Tensor) or labels.shape != real.shape:
            raise InputError(f"tokens='{tokens}' needs labels of shape {tuple(real.shape)} with -100 on the prompt")
        real = real & ((labels != -100) if tokens == "completion" else (labels == -100))
    elif tokens == "last":
        position = torch.arange(real.shape[1], device=real.device)
        last = torch.where(real, position, -1).amax(dim=1, keepdim=True)
        real = real & (position == last)
    if not bool(real.any()):
        raise InputError(f"no token counts with tokens='{tokens}' in a batch of {real.shape[0]} rows")
    return Selection(samples=int(real.shape[0]), mask=real, everything=bool(real.all()))
