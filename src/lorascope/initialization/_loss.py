"""The summed loss of a batch, and labels drawn from the model itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lorascope.core.errors import InputError, ModelError

IGNORED = -100


def targets(batch: Mapping[str, Any], logits: Tensor, causal: bool) -> Tensor | None:
    """The labels at the places of the logits, ignored ones as -100; None if the batch has none.

    A causal model's logits at one place are held against the next place's label; a batch of text without labels is its
    own label. A label that only padding predicts, as that of a row's first token with padding on the left, is ignored.
    """
    labels = batch.get("labels")
    if labels is None and causal and isinstance(batch.get("input_ids"), Tensor):
        labels = batch["input_ids"]
        if batch.get("attention_mask") is not None:
            labels = labels.masked_fill(batch["attention_mask"] == 0, IGNORED)
    if not isinstance(labels, Tensor):
        return None
    if causal and logits.dim() == 3 and labels.dim() == 2:
        labels = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        mask = batch.get("attention_mask")
        if isinstance(mask, Tensor) and mask.shape == labels.shape:
            labels = labels.masked_fill(mask == 0, IGNORED)
        return labels
    return labels


def loss_terms(
    logits: Tensor, labels: Tensor | None, generator: torch.Generator | None, problem: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of every term of a batch.

    Cross-entropy for whole-number labels. For others, and where there is one output, half the squared error, which is the
    likelihood of a Gaussian of variance 1, or binary cross-entropy: as ``problem`` says, else the former for one output and
    the latter for several. With a generator the labels are drawn from the model: from softmax, that Gaussian, or sigmoid.

    Args:
        logits: (samples, classes) or (samples, length, classes).
        labels: As `targets`; with a generator only their places and kind count, and None means what ``problem`` says, else
            one class a sample.
        generator: For the true Fisher; None takes the labels as they are.
        problem: transformers' ``problem_type`` of the model, such as ``regression``; None goes by labels and outputs.

    Returns:
        Losses in nats, (terms); the sample of each, (terms); and where each sits among the rows of the logits, (terms).

    Raises:
        InputError: There are no labels, or they do not fit the logits.
    """
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    rows = wide.reshape(-1, wide.shape[-1])
    each = len(rows) // len(wide)
    if labels is None:
        if generator is None or logits.dim() != 2:
            raise InputError("a batch has no labels: give them, or take fisher='true', which draws them from the model")
        real = problem in ("regression", "multi_label_classification")
        labels = torch.zeros_like(wide) if real else torch.zeros(len(rows), dtype=torch.long, device=logits.device)
    if labels.is_floating_point() or (logits.dim() == 2 and logits.shape[1] == 1):
        return _real_terms(wide, labels, generator, problem)
    if labels.shape == logits.shape and logits.dim() == 2:
        raise InputError("labels of several classes at once are whole numbers: give them as floats")
    if labels.shape != logits.shape[:-1]:
        raise InputError(
            f"labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}: one label a row is "
            "needed"
        )
    flat = labels.reshape(-1)
    places = (flat != IGNORED).nonzero().reshape(-1)
    rows, flat = rows[places], flat[places]
    if generator is not None:
        with torch.no_grad():
            shares = torch.softmax(rows.detach(), -1)
            flat = (
                torch.multinomial(shares.cpu(), 1, generator=generator).reshape(-1).to(rows.device)
                if len(rows)
                else flat
            )
    elif len(flat) and not 0 <= int(flat.min()) <= int(flat.max()) < rows.shape[1]:
        raise InputError(f"labels from {int(flat.min())} to {int(flat.max())} do not fit {rows.shape[1]} classes")
    return nn.functional.cross_entropy(rows, flat, reduction="none"), places // each, places


def _real_terms(
    logits: Tensor, labels: Tensor, generator: torch.Generator | None, problem: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    if labels.numel() != logits.numel():
        raise InputError(f"labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}")
    labels = labels.reshape(logits.shape).to(logits)
    binary = problem == "multi_label_classification" or (problem != "regression" and logits.shape[-1] > 1)
    if binary and generator is None and not bool(((labels >= 0) & (labels <= 1)).all()):
        raise InputError(
            f"labels from {float(labels.min()):g} to {float(labels.max()):g} are no shares of several classes: set "
            "model.config.problem_type to 'regression' if they are numbers to predict"
        )
    if generator is not None:
        detached = logits.detach().cpu()
        drawn = (
            torch.bernoulli(torch.sigmoid(detached), generator=generator)
            if binary
            else detached + torch.randn(detached.shape, generator=generator)
        )
        labels = drawn.to(logits)
    losses = (
        nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        if binary
        else 0.5 * (logits - labels).square()
    )
    samples = torch.arange(len(logits), device=logits.device)
    return losses.reshape(len(logits), -1).sum(1), samples, samples


def logits_of(outputs: Any) -> Tensor:
    """The logits of a model's output.

    Raises:
        ModelError: There are none.
    """
    logits = getattr(outputs, "logits", None)
    if not isinstance(logits, Tensor) or logits.dim() not in (2, 3):
        raise ModelError("the model gives no logits: take a causal language model or a classifier")
    return logits
