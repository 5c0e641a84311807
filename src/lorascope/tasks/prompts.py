"""The paper's four prompts, and lm-eval's own formats, as (context, continuations) pairs.

How each is read (x: the question, y: the text of a choice, s: a solved example, n: a wrongly solved example):

==========  ==========================================================================================
``main``    the paper's training and main prompt: x, then one of the choices' texts is scored
``prompt1`` one solved example s = "x'\\nAnswer: y'" from the train split comes first
``prompt2`` s, and one negative example n, another question with a wrong choice as its answer
``prompt3`` x is the question with its lettered options; only the option's letter is scored
``plain``   lm-eval's template for the task, so that official numbers can be compared
==========  ==========================================================================================

The examples are drawn once with the task's seed, and are the same for all rows; a row is never its own example (the
next one drawn takes its place).
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorascope.core.errors import DataError
from lorascope.core.seeds import derive_seed
from lorascope.tasks.rows import ChoiceRow, Task

PROMPTS = ("main", "prompt1", "prompt2", "prompt3", "plain")
EXAMPLES = "examples"
"""Split that worked examples are drawn from where a task has it; else they come from ``train``."""
_SPARE = 8


@dataclass(frozen=True)
class Request:
    """What a model is asked about one row.

    Attributes:
        contexts: What the model reads: one text shared by all choices, or one for each choice.
        continuations: The texts whose likelihoods are compared, one for each choice.
        names: The choices as lm-eval measures their length for the normalised accuracy.
        answer: Index of the correct choice.
        where: File and line, for messages.
    """

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    names: tuple[str, ...]
    answer: int
    where: str

    def pair(self, choice: int) -> tuple[str, str]:
        """Context and continuation of one choice."""
        return self.contexts[choice if len(self.contexts) > 1 else 0], self.continuations[choice]


def build_requests(task: Task, rows: Sequence[ChoiceRow]) -> list[Request]:
    """Put rows into the task's prompt.

    Args:
        task: A multiple-choice task; its prompt, style, seed and train split are used.
        rows: Rows of the task.

    Returns:
        One request for each row.

    Raises:
        DataError: Prompt 1 or 2 finds no example in the train split, a row has more than 26 options for letters, or a
            fill-in question has no blank.
    """
    examples = _examples(task) if task.prompt in ("prompt1", "prompt2") else []
    return [_request(task, row, examples) for row in rows]


def _request(task: Task, row: ChoiceRow, examples: list[tuple[ChoiceRow, int]]) -> Request:
    continuations = tuple(f" {choice}" for choice in row.choices)
    names = row.choices
    instruction = "Choose the correct answer for the following question"
    if task.prompt == "plain":
        if task.style == "blank":
            return _fill_in(row)
        context = row.question if task.style == "continuation" else f"Question: {row.question}\nAnswer:"
    elif task.prompt == "main":
        context = f"{instruction}: {row.question}\nAnswer:"
    elif task.prompt == "prompt3":
        letters = string.ascii_uppercase[: len(row.choices)]
        if len(letters) < len(row.choices):
            raise DataError(f"{row.where}: {len(row.choices)} choices: prompt3 has letters for 26; use another prompt")
        options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(letters, row.choices, strict=True))
        allowed = f"{', '.join(letters[:-1])} or {letters[-1]}"
        context = (
            f"Please note that you can only choose from {allowed}. {instruction}: {row.question}\n{options}\nAnswer:"
        )
        continuations, names = tuple(f" {letter}" for letter in letters), tuple(letters)
    else:
        usable = [(example, wrong) for example, wrong in examples if example.question != row.question]
        needed = 1 if task.prompt == "prompt1" else 2
        if len(usable) < needed:
            raise DataError(
                f"task '{task.name}': {task.prompt} needs {needed} train rows beside the row at {row.where}: "
                "add rows to the train split or use --prompt main"
            )
        good = usable[0][0]
        shown = f"{good.question}\nAnswer: {good.choices[good.answer]}"
        if task.prompt == "prompt1":
            shown = f". Here is an example shown below: {shown}"
        else:
            bad, wrong = usable[1]
            shown = (
                f". Here is an positive example shown below: {shown}\n"
                f"Here is an negative example shown below: {bad.question}\nAnswer: {bad.choices[wrong]}"
            )
        context = f"{instruction}{shown}\nThe new question is: {row.question}\nAnswer:"
    return Request((context,), continuations, names, row.answer, row.where)


def _fill_in(row: ChoiceRow) -> Request:
    """WinoGrande as lm-eval scores it: each option goes into the sentence, and what follows the blank is scored."""
    before, blank, after = row.question.partition("_")
    if not blank:
        raise DataError(f"{row.where}: no '_' in the question: mark the blank that the choices fill")
    contexts = tuple(before + choice for choice in row.choices)
    return Request(contexts, (f" {after.strip()}",) * len(row.choices), contexts, row.answer, row.where)


def _examples(task: Task) -> list[tuple[ChoiceRow, int]]:
    """Train rows in a seeded order, each with the index of a wrong choice; a few, since only two can be needed."""
    pool = task.splits.get(EXAMPLES) or task.splits.get("train", ())
    train = [row for row in pool if isinstance(row, ChoiceRow)]
    if not train:
        raise DataError(
            f"task '{task.name}' has no train split, from which {task.prompt} takes its example: add train.jsonl or "
            "use --prompt main"
        )
    generator = np.random.default_rng(derive_seed(task.seed, "examples"))
    chosen: list[tuple[ChoiceRow, int]] = []
    for index in generator.permutation(len(train)):
        row = train[int(index)]
        wrong = [choice for choice in range(len(row.choices)) if choice != row.answer]
        if row.question not in {example.question for example, _ in chosen}:
            chosen.append((row, wrong[int(generator.integers(len(wrong)))]))
        if len(chosen) == _SPARE:
            break
    return chosen
