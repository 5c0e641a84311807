"""Batches: right padding, and which token pads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lorascope.core.errors import ModelError

IGNORE_INDEX = -100
"""Label of a token that is not learned or scored."""


def pad_token_id(tokenizer: PreTrainedTokenizerBase, pad_token: str | None = None) -> int:
    """The token that fills short rows.

    Args:
        tokenizer: The tokenizer.
        pad_token: Token to use instead of the tokenizer's own; ``"eos"`` stands for its end-of-sequence token.

    Returns:
        A token id.

    Raises:
        ModelError: The tokenizer has no pad token, or the given one is not in its vocabulary.
    """
    name = tokenizer.name_or_path or type(tokenizer).__name__
    if pad_token is None:
        if tokenizer.pad_token_id is None:
            raise ModelError(
                f"the tokenizer '{name}' has no pad token: give one with --pad-token eos (pad_token=\"eos\"), "
                "or another token of its vocabulary"
            )
        return int(tokenizer.pad_token_id)
    if pad_token == "eos":
        if tokenizer.eos_token_id is None:
            raise ModelError(f"the tokenizer '{name}' has no eos token: give --pad-token a token of its vocabulary")
        return int(tokenizer.eos_token_id)
    vocabulary = tokenizer.get_vocab()
    if pad_token not in vocabulary:
        raise ModelError(
            f"pad token '{pad_token}' is not in the vocabulary of the tokenizer '{name}': give --pad-token eos or a "
            "token that is"
        )
    return int(vocabulary[pad_token])


class PaddingCollator:
    """Make a batch of features, padded on the right to the longest of them.

    Attributes:
        pad_id: Token id that fills ``input_ids``; ``attention_mask`` is filled with 0 and ``labels`` with -100.

    Example:
        >>> batch = PaddingCollator(0)([{"input_ids": [5, 6]}, {"input_ids": [7]}])
        >>> batch["input_ids"].tolist(), batch["attention_mask"].tolist()
        ([[5, 6], [7, 0]], [[1, 1], [1, 0]])
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | int, *, pad_token: str | None = None) -> None:
        self.pad_id = tokenizer if isinstance(tokenizer, int) else pad_token_id(tokenizer, pad_token)

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Pad features with keys ``input_ids`` and, where all have them, ``attention_mask`` and ``labels``."""
        length = max(len(feature["input_ids"]) for feature in features)
        fill = {"input_ids": self.pad_id, "attention_mask": 0, "labels": IGNORE_INDEX}
        batch = {}
        for key, value in fill.items():
            if key == "attention_mask":
                rows = [list(feature.get(key, [1] * len(feature["input_ids"]))) for feature in features]
            elif all(key in feature for feature in features):
                rows = [list(feature[key]) for feature in features]
            else:
                continue
            batch[key] = torch.tensor([row + [value] * (length - len(row)) for row in rows], dtype=torch.long)
        return batch
