"""The loss of held-out rows at chosen steps of a training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorascope.core.errors import InputError
from lorascope.tasks.collate import IGNORE_INDEX
from lorascope.tasks.evaluate import evaluation_mode


class HeldOutLoss(TrainerCallback):
    """Writes the mean loss of fixed rows into the history after chosen steps; training is not touched.

    Args:
        features: Encoded rows with labels.
        collate: Makes a batch of rows.
        batch_size: Rows in a pass.
        steps: Steps after which to look; 0 is before the first.
        write: Called with ``{"step", "held_out_loss"}``, nats per scored token.
    """

    def __init__(
        self,
        features: Sequence[dict[str, list[int]]],
        collate: Callable[[list[dict[str, Any]]], dict[str, Tensor]],
        batch_size: int,
        steps: Sequence[int],
        write: Callable[[dict[str, Any]], None],
    ) -> None:
        self.batches = [
            collate(list(features[start : start + batch_size])) for start in range(0, len(features), batch_size)
        ]
        self.steps, self.write = frozenset(steps), write

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look before the first step."""
        if state.global_step == 0:
            self._look(state, kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look after a step."""
        self._look(state, kwargs["model"])

    def _look(self, state: TrainerState, model: nn.Module) -> None:
        if state.global_step not in self.steps or not state.is_world_process_zero:
            return
        loss = held_out_loss(model, self.batches)
        if not math.isfinite(loss):
            raise InputError(
                f"the loss of held-out rows is {loss} after step {state.global_step}: training diverged; use a smaller "
                "learning_rate, in a new output folder"
            )
        self.write({"step": state.global_step, "held_out_loss": loss})


def held_out_loss(model: nn.Module, batches: Sequence[dict[str, Tensor]]) -> float:
    """Mean loss of all scored tokens of some batches, nats.

    Args:
        model: A causal language model; its mode is restored.
        batches: With ``labels``, -100 where nothing is scored.

    Returns:
        The mean, summed in float64.

    Raises:
        InputError: No token is scored.
    """
    device = next(model.parameters()).device
    total, count = 0.0, 0
    with torch.no_grad(), evaluation_mode(model):
        for batch in batches:
            inputs = {key: value.to(device) for key, value in batch.items()}
            labels = inputs.pop("labels")[:, 1:]
            logits = model(**inputs).logits[:, :-1]
            places = labels != IGNORE_INDEX
            losses = nn.functional.cross_entropy(logits[places].float(), labels[places], reduction="none")
            total += float(losses.double().sum())
            count += int(places.sum())
    if not count:
        raise InputError("held-out rows have no scored token: give rows with an answer")
    return total / count
