"""Cross-entropy and accuracy from the forward pass that the measurement makes anyway."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lorascope.core.errors import InputError, ModelError
from lorascope.information import token_cross_entropy


def is_causal_lm(model: nn.Module) -> bool:
    """Whether a model (or the model inside a PEFT wrapper) predicts the next token."""
    base = getattr(model, "get_base_model", lambda: model)()
    return type(base).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


class Losses:
    """Sums of the cross-entropy and of right answers; ``tensors`` add up over processes."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._causal = is_causal_lm(model)
        # nats, number of predictions, right answers, number of answers
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)

    def update(self, outputs: Any, batch: Mapping[str, Any]) -> None:
        """Take in one batch; one without labels counts its text for a causal model and nothing for others."""
        logits, labels = getattr(outputs, "logits", None), batch.get("labels")
        if not isinstance(logits, Tensor):
            return
        if labels is None and self._causal and "input_ids" in batch:
            labels = batch["input_ids"]
            if batch.get("attention_mask") is not None:
                labels = labels.masked_fill(batch["attention_mask"] == 0, -100)
        if not isinstance(labels, Tensor) or labels.is_floating_point():
            return
        if logits.dim() == 3 and labels.dim() == 2:
            if labels.shape != logits.shape[:2]:
                raise InputError(
                    f"labels have shape {tuple(labels.shape)} and the model predicts {tuple(logits.shape[:2])}: give one "
                    "label for each token"
                )
            if not self._causal:
                # Shifted inside for next-token models; others predict each label at its own place.
                labels = nn.functional.pad(labels, (1, 0), value=-100)
                logits = nn.functional.pad(logits, (0, 0, 0, 1))
            try:
                nats, n = token_cross_entropy(logits, labels)
            except InputError:
                if bool(torch.isfinite(logits).all()):
                    raise  # the labels are wrong, not the model
                nats, n = math.nan, 1  # said at the end, when the first broken layer is known
            self._sums[0] += nats
            self._sums[1] += n
        elif logits.dim() == 2 and labels.dim() == 1:
            known = labels != -100
            labels, wide = labels[known], logits[known].double()
            strange = labels[(labels < 0) | (labels >= wide.shape[1])]
            if len(strange):
                raise InputError(f"label {int(strange[0])} is none of the {wide.shape[1]} classes, which count from 0")
            self._sums[0] += nn.functional.cross_entropy(wide, labels, reduction="sum")
            right = (wide.argmax(-1) == labels).sum()
            count = torch.as_tensor(len(labels), device=right.device)
            self._sums[1:] += torch.stack([count, right, count]).to(wide)

    def tensors(self) -> Iterator[Tensor]:
        """The tensors whose sum over processes is the state of all of them together."""
        yield self._sums

    def totals(self, groups: tuple[str, ...]) -> dict[str, float]:
        """``ce`` (nats), ``ppl`` and ``accuracy``, as far as asked for and known.

        Raises:
            ModelError: The logits held NaN or infinity.
        """
        nats, n, right, answers = (float(x) for x in self._sums)
        if not math.isfinite(nats):
            raise ModelError(
                "the logits hold NaN or infinity: check the adapter's weights, or load the model in float32"
            )
        totals: dict[str, float] = {}
        if n and "ce" in groups:
            totals["ce"] = nats / n
        if n and "ppl" in groups:
            totals["ppl"] = math.exp(nats / n) if nats / n < 700 else math.inf
        if answers and "accuracy" in groups:
            totals["accuracy"] = right / answers
        return totals
