"""Accuracy, cross-entropy and perplexity of a model on a task."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from lorascope.core.errors import InputError
from lorascope.tasks.collate import IGNORE_INDEX, pad_token_id
from lorascope.tasks.encode import TEXT_WINDOW, EncodedChoices, Pair, context_length, encode_choices, encode_task
from lorascope.tasks.rows import Task
from lorascope.tasks.scoring import score_choices, score_pairs


@dataclass(frozen=True)
class Evaluation:
    """How well a model does on a task.

    Attributes:
        metrics: ``accuracy`` and ``accuracy_norm`` (fractions, multiple choice only), ``ce`` (nats per token of the
            correct answer or of the text), ``ppl`` (its exponential).
        errors: Standard errors of ``accuracy``, ``accuracy_norm``, ``ce`` and ``ppl`` over the rows (text: windows); none
            with a single row.
        counts: ``samples``, ``scored_tokens``, ``truncated``, ``dropped``.
        per_example: One record a row, in the order of the rows.
        settings: Task, split and prompt.
    """

    metrics: dict[str, float]
    errors: dict[str, float]
    counts: dict[str, int]
    per_example: list[dict[str, Any]]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping of all fields."""
        return asdict(self)


def evaluate_task(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    *,
    split: str = "test",
    limit: int | None = None,
    batch_size: int = 16,
    max_length: int | None = None,
    overlong: str = "error",
    progress: bool = True,
    device: str | torch.device | None = None,
    pad_token: str | None = None,
    seed: int = 0,
    use_cache: bool = True,
) -> Evaluation:
    r"""Score a model on a split, exactly as lm-eval scores log-likelihoods.

    With :math:`\ell_c` the log-likelihood of choice c, the answer is :math:`\arg\max_c \ell_c` (``accuracy``, lm-eval's
    ``acc``) or :math:`\arg\max_c \ell_c / \mathrm{len}(c)` with the length in characters (``accuracy_norm``, lm-eval's
    ``acc_norm``). ``ce`` is minus the sum of the correct answers' log-likelihoods over the number of their tokens.

    Args:
        model: A causal language model, with or without an adapter. Its training mode is restored.
        tokenizer: Its tokenizer.
        task: The task.
        split: Name of the split.
        limit: Largest number of rows (text: windows), a seeded sample.
        batch_size: Questions (or rows) in a forward pass.
        max_length: Largest number of tokens in a row; by default the model's context (text: windows of 512).
        overlong: What happens to longer rows: ``error``, ``drop`` or ``truncate``; see `encode_task`.
        progress: Show a progress bar.
        device: Move the model here first.
        pad_token: Pad token to use when the tokenizer has none; ``"eos"`` stands for its end-of-sequence token.
        seed: Decides which rows a limit keeps.
        use_cache: False runs every choice whole, without sharing the prompt's pass.

    Returns:
        The metrics in nats and fractions, with standard errors, counts and one record a row.

    Raises:
        DataError: A row is too long (unless told what to do), or nothing is left to score.
        ModelError: There is no pad token.

    References:
        lm-evaluation-harness, ``acc`` and ``acc_norm`` of ``multiple_choice`` tasks.
    """
    pad_id = pad_token_id(tokenizer, pad_token)
    if device is not None:
        model.to(device)
    longest = allowed_length(model, tokenizer, max_length)
    settings = {"task": task.name, "split": split, "prompt": task.prompt if task.kind == "multiple_choice" else None}
    with evaluation_mode(model):
        if task.kind == "multiple_choice":
            questions, counts = encode_choices(
                task, tokenizer, split, limit=limit, max_length=longest, overlong=overlong, seed=seed
            )
            with tqdm(total=len(questions), desc=f"scoring {task.name}", unit="row", disable=not progress) as bar:
                scores = score_choices(
                    model,
                    [question.pairs for question in questions],
                    batch_size=batch_size,
                    pad_id=pad_id,
                    advance=bar.update,
                    use_cache=use_cache,
                )
            records = [_record(question, values) for question, values in zip(questions, scores, strict=True)]
        else:
            if task.kind == "text" and max_length is None:
                longest = min(longest or TEXT_WINDOW, TEXT_WINDOW)
            encoded = encode_task(task, tokenizer, split, limit=limit, max_length=longest, overlong=overlong, seed=seed)
            counts = {key: encoded.counts[key] for key in ("truncated", "dropped")}
            pairs = [_split_labels(feature) for feature in encoded.features]
            with tqdm(total=len(pairs), desc=f"scoring {task.name}", unit="row", disable=not progress) as bar:
                totals = score_pairs(model, pairs, batch_size=batch_size, pad_id=pad_id, advance=bar.update)
            records = [
                {"where": where, "nats": -total, "tokens": len(continuation)}
                for where, total, (_, continuation) in zip(encoded.where, totals, pairs, strict=True)
            ]
    metrics, errors = _summary(records)
    scored = sum(record["tokens"] for record in records)
    return Evaluation(metrics, errors, {"samples": len(records), "scored_tokens": scored, **counts}, records, settings)


def allowed_length(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> int | None:
    """The length limit that was asked for, or the model's context; None if there is neither.

    Raises:
        InputError: More is asked for than the model's context.
    """
    context = model_context_length(model, tokenizer)
    if max_length is not None and context is not None and max_length > context:
        raise InputError(f"max_length {max_length} is over the model's context of {context} tokens: give at most that")
    return max_length or context


def model_context_length(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Largest number of tokens that model and tokenizer allow; None if neither states a limit."""
    config = getattr(model, "config", None)
    config = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
    names = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
    limits = [getattr(config, name, None) for name in names] + [context_length(tokenizer)]
    known = [limit for limit in limits if isinstance(limit, int) and limit > 0]
    return min(known) if known else None


@contextlib.contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Turn dropout off, and each module back to its own mode afterwards.

    Layers that bitsandbytes quantised stay in training mode: in evaluation mode they repack their weights for a kernel
    without gradients (on CPUs with AVX-512 BF16), and a training that went on afterwards would learn nothing below them.

    Args:
        model: Any module.

    Yields:
        Nothing.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    for module in four_bit_layers(model):
        module.training = True
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def four_bit_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Layers whose weight bitsandbytes holds in 4 bits; they have no dropout."""
    return [module for module in model.modules() if hasattr(module._parameters.get("weight"), "quant_state")]


def _split_labels(feature: dict[str, list[int]]) -> Pair:
    start = next(index for index, label in enumerate(feature["labels"]) if label != IGNORE_INDEX)
    return feature["input_ids"][:start], feature["input_ids"][start:]


def _record(question: EncodedChoices, scores: list[float]) -> dict[str, Any]:
    lengths = [max(len(name), 1) for name in question.names]
    normalised = [score / length for score, length in zip(scores, lengths, strict=True)]
    return {
        "where": question.where,
        "answer": question.answer,
        "choice": scores.index(max(scores)),
        "choice_norm": normalised.index(max(normalised)),
        "log_likelihoods": scores,
        "nats": -scores[question.answer],
        "tokens": len(question.pairs[question.answer][1]),
    }


def _summary(records: Sequence[dict[str, Any]]) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics and their standard errors; cross-entropy is a ratio of sums, its error by linearisation.

    So is that of ppl = exp(ce): ppl times the error of ce. Windows of one document are not independent, which the errors
    of text do not count.
    """
    count = len(records)
    tokens = math.fsum(record["tokens"] for record in records)
    ce = math.fsum(record["nats"] for record in records) / tokens
    metrics: dict[str, float] = {}
    errors: dict[str, float] = {}
    for name, key in (("accuracy", "choice"), ("accuracy_norm", "choice_norm")):
        if key in records[0]:
            share = sum(record[key] == record["answer"] for record in records) / count
            metrics[name] = share
            if count > 1:
                errors[name] = math.sqrt(share * (1 - share) / (count - 1))
    metrics |= {"ce": ce, "ppl": math.exp(ce) if ce < 700 else math.inf}
    if count > 1:
        squares = math.fsum((record["nats"] - ce * record["tokens"]) ** 2 for record in records)
        errors["ce"] = math.sqrt(squares * count / (count - 1)) / tokens
        if math.isfinite(metrics["ppl"] * errors["ce"]):
            errors["ppl"] = metrics["ppl"] * errors["ce"]
    return metrics, errors
