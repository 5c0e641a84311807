"""From rows to token ids: prompt and answer for learning and measuring, context and continuation for scoring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from transformers import PreTrainedTokenizerBase

from lorascope.core.errors import DataError, InputError, unknown_name
from lorascope.tasks.collate import IGNORE_INDEX
from lorascope.tasks.prompts import build_requests
from lorascope.tasks.rows import ChatRow, ChoiceRow, CompletionRow, Task, TextRow, sample_indices

OVERLONG = ("error", "drop", "truncate")
Pair: TypeAlias = tuple[list[int], list[int]]
TEXT_WINDOW = 512
"""Tokens in a window of text when nothing else is asked for."""


@dataclass(frozen=True)
class Encoded:
    """Token ids of a split.

    Attributes:
        features: One mapping a row (text: a window) with ``input_ids``, ``attention_mask`` and ``labels``; labels
            are -100 where nothing is learned or scored. Works as a dataset for the transformers Trainer.
        counts: ``samples`` (features), ``tokens`` (all), ``scored_tokens`` (with a label), ``truncated``, ``dropped``.
        where: File and line of each feature.
    """

    features: list[dict[str, list[int]]]
    counts: dict[str, int]
    where: list[str]


@dataclass(frozen=True)
class EncodedChoices:
    """One question as token ids: a (context, continuation) pair for each choice."""

    pairs: list[Pair]
    names: tuple[str, ...]
    answer: int
    where: str


def encode_task(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    split: str,
    *,
    limit: int | None = None,
    max_length: int | None = None,
    overlong: str = "error",
    seed: int = 0,
) -> Encoded:
    """Encode a split for learning or measuring: prompt and correct answer, labels only on the answer.

    * Multiple choice: context and correct continuation, exactly the tokens that `evaluate_task` scores.
    * Completion: prompt and completion joined as they are, with the end-of-sequence token if the tokenizer has one.
    * Chat: the tokenizer's chat template, or ``User: ...`` / ``Assistant: ...`` lines where there is none; the last
      answer is learned.
    * Text: windows of `max_length` tokens that do not overlap; each begins with the token before it (the first with the
      tokenizer's bos or eos token) as context, so that every token is predicted once.

    Args:
        task: The task.
        tokenizer: The model's tokenizer.
        split: Name of the split.
        limit: Largest number of rows (text: windows), a seeded sample.
        max_length: Largest number of tokens in a feature; by default the tokenizer's limit (text: 512).
        overlong: What happens to rows over it: ``error``, ``drop`` or ``truncate`` (cuts the left of the prompt, never
            the answer). Dropped and truncated rows are counted.
        seed: Decides which rows a limit keeps.

    Returns:
        Features and counts.

    Raises:
        DataError: A row is too long (unless told what to do), nothing is left, or the split does not exist.
        InputError: An option is wrong.
    """
    longest = max_length if max_length is not None else context_length(tokenizer)
    encoder = _Fitter(tokenizer, longest, overlong)
    if task.kind == "text":
        return _encode_text(task, tokenizer, split, limit, max_length or min(longest or TEXT_WINDOW, TEXT_WINDOW), seed)
    rows = task.rows(split, limit=limit, seed=seed)
    pairs: list[tuple[Pair, str]] = []
    if task.kind == "multiple_choice":
        for request in build_requests(task, [row for row in rows if isinstance(row, ChoiceRow)]):
            pair = encode_pair(tokenizer, *request.pair(request.answer), request.where)
            pairs += [(kept[0], request.where) for kept in encoder.fit([pair], request.where)]
    else:
        for row in rows:
            pair = _encode_chat(tokenizer, row) if isinstance(row, ChatRow) else _encode_completion(tokenizer, row)
            pairs += [(kept[0], row.where) for kept in encoder.fit([pair], row.where)]
    features = []
    for (context, continuation), _ in pairs:
        ids = context + continuation
        labels = [IGNORE_INDEX] * len(context) + continuation
        features.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    encoder.check_any(len(features), task.name, split)
    return Encoded(features, _counts(features, encoder), [where for _, where in pairs])


def encode_choices(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    split: str,
    *,
    limit: int | None = None,
    max_length: int | None = None,
    overlong: str = "error",
    seed: int = 0,
) -> tuple[list[EncodedChoices], dict[str, int]]:
    """Encode every choice of every question of a split; see `encode_task` for the arguments.

    Returns:
        The questions, and the counts ``truncated`` and ``dropped``.
    """
    rows = [row for row in task.rows(split, limit=limit, seed=seed) if isinstance(row, ChoiceRow)]
    encoder = _Fitter(tokenizer, max_length, overlong)
    questions = []
    for request in build_requests(task, rows):
        pairs = [
            encode_pair(tokenizer, *request.pair(choice), request.where) for choice in range(len(request.continuations))
        ]
        for kept in encoder.fit(pairs, request.where):
            questions.append(EncodedChoices(kept, request.names, request.answer, request.where))
    encoder.check_any(len(questions), task.name, split)
    return questions, {"truncated": encoder.truncated, "dropped": encoder.dropped}


def encode_pair(tokenizer: PreTrainedTokenizerBase, context: str, continuation: str, where: str) -> Pair:
    """Token ids of a context and its continuation, as lm-eval makes them.

    Spaces at the end of the context move to the continuation; both are tokenised together and cut where the context's
    own tokens end. An empty context becomes the tokenizer's bos (or eos) token.

    Raises:
        DataError: The continuation has no token of its own.
    """
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    if stripped:
        context_ids = tokenize(tokenizer, stripped)
        continuation_ids = tokenize(tokenizer, stripped + continuation)[len(context_ids) :]
    else:
        context_ids = prefix_ids(tokenizer)
        continuation_ids = tokenize(tokenizer, continuation, special=False)
        if not context_ids and len(continuation_ids) > 1:  # nothing to condition on: the first token is given
            context_ids, continuation_ids = continuation_ids[:1], continuation_ids[1:]
    if not continuation_ids or not context_ids:
        raise DataError(f"{where}: the text {continuation[:40]!r} has no token of its own: nothing can be scored")
    return context_ids, continuation_ids


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = True) -> list[int]:
    """Token ids with the tokenizer's own special tokens; a text that starts with its bos token gets no second one."""
    bos = tokenizer.bos_token
    if special and bos and text.startswith(bos):
        special = False
    return list(tokenizer.encode(text, add_special_tokens=special, verbose=False))


def prefix_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token before a text: bos, or eos where there is no bos; none for a tokenizer with neither."""
    token = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return [] if token is None else [int(token)]


def context_length(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The tokenizer's limit; None if it states none (transformers writes 1e30 then)."""
    limit = tokenizer.model_max_length
    return int(limit) if limit is not None and 0 < limit < 10**9 else None


class _Fitter:
    """Fits pairs into the context, and counts what did not fit."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, longest: int | None, overlong: str) -> None:
        if overlong not in OVERLONG:
            raise unknown_name("overlong", overlong, OVERLONG)
        if longest is not None and longest < 2:
            raise InputError(f"max_length {longest} leaves no room for a prompt and an answer: give at least 2")
        self.bos = tokenizer.bos_token_id
        self.longest = longest
        self.overlong = overlong
        self.truncated = 0
        self.dropped = 0

    def fit(self, pairs: list[Pair], where: str) -> list[list[Pair]]:
        """The pairs of one row, cut if needed, as a list of one; an empty list if the row is dropped."""
        needed = max(len(context) + len(continuation) for context, continuation in pairs)
        if self.longest is None or needed <= self.longest:
            return [pairs]
        if self.overlong == "drop":
            self.dropped += 1
            return []
        if self.overlong == "error":
            raise DataError(
                f"{where}: prompt and answer are {needed} tokens, over the limit of {self.longest}: give --overlong "
                "drop or --overlong truncate, or a larger --max-length if the model allows it"
            )
        cut = needed - self.longest
        answer = max(len(continuation) for _, continuation in pairs)
        if any(len(context) - cut < 1 for context, _ in pairs):
            raise DataError(
                f"{where}: the answer alone is {answer} tokens of the limit of {self.longest}, and an answer is never "
                "cut: give --overlong drop"
            )
        self.truncated += 1
        return [[(self._cut(context, cut), continuation) for context, continuation in pairs]]

    def _cut(self, context: list[int], cut: int) -> list[int]:
        """Cut from the left, but keep a bos token: some models fail without it."""
        keep = context[:1] if context[0] == self.bos else []
        return keep + context[cut + len(keep) :]

    def check_any(self, kept: int, name: str, split: str) -> None:
        """Complain when every row was dropped."""
        if not kept:
            raise DataError(
                f"task '{name}': all {self.dropped} rows of split '{split}' are over the limit of {self.longest} "
                "tokens and were dropped: give --overlong truncate or a larger --max-length"
            )


def _encode_completion(tokenizer: PreTrainedTokenizerBase, row: object) -> Pair:
    assert isinstance(row, CompletionRow)
    context, continuation = encode_pair(tokenizer, row.prompt, row.completion, row.where)
    end = tokenizer.eos_token_id
    return context, continuation if end is None or continuation[-1] == end else [*continuation, int(end)]


def _encode_chat(tokenizer: PreTrainedTokenizerBase, row: ChatRow) -> Pair:
    messages = [{"role": role, "content": content} for role, content in row.messages]
    if not tokenizer.chat_template:
        lines = [f"{role.capitalize()}: {content}\n" for role, content in row.messages[:-1]]
        prompt = "".join(lines) + "Assistant:"
        return _encode_completion(tokenizer, CompletionRow(prompt, f" {row.messages[-1][1]}", row.where))
    try:
        prompt = str(tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True))
        whole = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception as error:  # templates raise jinja2 errors of their own making
        raise DataError(f"{row.where}: the tokenizer's chat template refuses these messages ({error})") from error
    if not whole.startswith(prompt):
        raise DataError(
            f"{row.where}: the chat template writes the conversation differently with the answer, so that the answer "
            "cannot be told from the prompt: give rows of 'prompt' and 'completion' instead"
        )
    context = tokenize(tokenizer, prompt, special=False)
    return context, tokenize(tokenizer, whole[len(prompt) :], special=False)


def _encode_text(
    task: Task, tokenizer: PreTrainedTokenizerBase, split: str, limit: int | None, window: int, seed: int
) -> Encoded:
    windows: list[tuple[list[int], str]] = []
    for row in task.rows(split):
        assert isinstance(row, TextRow)
        ids = prefix_ids(tokenizer) + tokenize(tokenizer, row.text, special=False)
        starts = range(0, max(len(ids) - 1, 0), window - 1)
        windows += [(ids[start : start + window], row.where) for start in starts]
    if not windows:
        raise DataError(f"task '{task.name}': split '{split}' has no text of at least two tokens")
    windows = [windows[index] for index in sample_indices(len(windows), limit, seed)]
    features = [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [IGNORE_INDEX, *ids[1:]]} for ids, _ in windows
    ]
    return Encoded(features, _counts(features, None), [where for _, where in windows])


def _counts(features: Sequence[dict[str, list[int]]], fitter: _Fitter | None) -> dict[str, int]:
    return {
        "samples": len(features),
        "tokens": sum(len(feature["input_ids"]) for feature in features),
        "scored_tokens": sum(label != IGNORE_INDEX for feature in features for label in feature["labels"][1:]),
        "truncated": fitter.truncated if fitter else 0,
        "dropped": fitter.dropped if fitter else 0,
    }
