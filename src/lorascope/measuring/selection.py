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


class ForeignRowsError(Exception):
    """A layer ran on rows that are not the batch's tokens."""


@dataclass(frozen=True)
class Selection:
    """The rows of one batch that count.

    Attributes:
        samples: Number of samples in the batch.
        length: Tokens of each sample, padding included; 0 for inputs without tokens, such as images.
        index: Places of the tokens that count among all of them, in order; None if every one counts.
        sizes: Tokens that count in each sample; empty for inputs without tokens.
    """

    samples: int
    length: int
    index: Tensor | None
    sizes: tuple[int, ...]

    def is_pooled(self, shape: tuple[int, ...]) -> bool:
        """Whether a layer's output of that shape without its features has one row a sample of several tokens."""
        return self.length > 1 and shape in ((self.samples,), (self.samples, 1))

    def index_for(self, shape: tuple[int, ...]) -> Tensor | None:
        """Which of a layer's output rows count.

        Args:
            shape: Shape of the output without its features: (samples, length), (samples * length), or (samples) for a
                layer behind a pooling; anything for inputs without tokens.

        Returns:
            Their places among the rows, or None for all.

        Raises:
            ForeignRowsError: The rows are no tokens (relative positions, a routed part), so none of them counts.
        """
        if not self.length or shape in ((self.samples,), (self.samples, 1)):
            return None
        if shape in ((self.samples, self.length), (self.samples * self.length,), (1, self.samples * self.length)):
            return self.index
        raise ForeignRowsError

    def row_sizes(self, rows: int) -> list[int]:
        """How many of the rows that count belong to each sample, in order."""
        if sum(self.sizes) == rows:
            return list(self.sizes)
        return [rows // self.samples] * self.samples if rows % self.samples == 0 else [rows]

    def weights(self, rows: int) -> Tensor:
        """Weight of each of the rows that count so that every sample weighs one in all."""
        sizes = torch.tensor([size for size in self.row_sizes(rows) if size])
        return torch.repeat_interleave(1.0 / sizes.double(), sizes)


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
        return Selection(first.shape[0], 0, None, ())
    if ids.dim() != 2 + ("input_ids" not in batch) or ("input_ids" in batch and ids.is_floating_point()):
        raise InputError(
            f"input_ids of shape {tuple(ids.shape)} and type {ids.dtype}: give whole numbers of shape (rows, tokens)"
        )
    mask = batch.get("attention_mask")
    real = torch.ones(ids.shape[:2], dtype=torch.bool, device=ids.device) if mask is None else mask.bool()
    if real.dim() != 2:
        raise InputError(
            f"attention_mask has {real.dim()} dimensions: padding can only be told from a (batch, length) one"
        )
    if real.shape != ids.shape[:2]:
        raise InputError(
            f"attention_mask has shape {tuple(real.shape)} and input_ids {tuple(ids.shape[:2])}: give equal shapes"
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
    sizes = tuple(int(n) for n in real.sum(dim=1))
    index = None if sum(sizes) == real.numel() else real.reshape(-1).nonzero().reshape(-1)
    return Selection(int(real.shape[0]), int(real.shape[1]), index, sizes)


@dataclass(frozen=True)
class PadTokens:
    """The token ids that fill short rows, to tell padding where a batch has no attention_mask.

    Attributes:
        fill: Ids that stand for nothing else: each is padding wherever it is.
        end: Ids that also end a text: padding where they repeat at the end of a row.
    """

    fill: tuple[int, ...]
    end: tuple[int, ...]

    @classmethod
    def of(cls, config: Any, tokenizer: Any) -> PadTokens:
        """The pad tokens that a model's configuration and a tokenizer name; either may be None."""
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        pads, ends = (
            {int(x) for source in (text, tokenizer) for x in _ids(getattr(source, name, None))}
            for name in ("pad_token_id", "eos_token_id")
        )
        return cls(tuple(sorted(pads - ends)), tuple(sorted(pads & ends)))

    def count(self, batch: Mapping[str, Any], selection: Selection) -> Tensor | None:
        """How many of the tokens that count are padding; None where the batch says so itself, or has no tokens."""
        ids = batch.get("input_ids")
        if not isinstance(ids, Tensor) or ids.dim() != 2 or batch.get("attention_mask") is not None:
            return None
        padding = torch.isin(ids, torch.tensor(self.fill, dtype=ids.dtype, device=ids.device))
        for token in self.end:
            run = (ids == token).flip(1).cumprod(1).flip(1).bool()
            padding[:, 1:] |= run[:, 1:] & run[:, :-1]  # all of a run but its first, which ends the text
        flat = padding.reshape(-1)
        return (flat if selection.index is None else flat[selection.index]).sum()


def _ids(value: Any) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else [x for x in value if isinstance(x, int)]
