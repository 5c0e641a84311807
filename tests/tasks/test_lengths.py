from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorascope.core.errors import DataError, InputError
from lorascope.tasks import encode_task, evaluate_task, load_task
from lorascope.tasks.encode import encode_choices
from lorascope.tasks.lengths import length_bins, prompt_lengths, with_length
from lorascope.tasks.prompts import build_requests

from .conftest import QUESTIONS

WORDS = ["ox", "a cat", "many dogs", "a very long caravan of camels", "fish"]


def choice_rows(offset: int = 0) -> list[dict[str, object]]:
    return [
        {"question": f"What are {word}{'!' * offset}?", "choices": ["one", "a longer answer"], "answer": index % 2}
        for index, word in enumerate(WORDS)
    ]


@pytest.mark.parametrize("prompt", ["main", "prompt1", "prompt2", "prompt3", "plain"])
def test_both_ends_count_and_every_user_sees_the_same_rows(
    write_rows: Callable[..., Path],
    tokenizer: PreTrainedTokenizerBase,
    make_model: Callable[[str], PreTrainedModel],
    prompt: str,
) -> None:
    task = load_task(write_rows(train=choice_rows(1), test=choice_rows()), prompt=prompt)
    whole, _ = encode_choices(task, tokenizer, "test")
    lengths = prompt_lengths(task, tokenizer, "test")
    assert lengths == [len(question.pairs[question.answer][0]) for question in whole]
    low, high = sorted(lengths)[1], sorted(lengths)[3]
    expected = [question for question, length in zip(whole, lengths, strict=True) if low <= length <= high]
    assert len(expected) == 3
    kept_task, found = with_length(task, tokenizer, low, high)
    assert (found.kept["test"], found.dropped["test"]) == (3, 2)
    # the prompts, with their worked examples, are those that were counted
    assert encode_choices(kept_task, tokenizer, "test")[0] == expected
    assert prompt_lengths(kept_task, tokenizer, "test") == [length for length in lengths if low <= length <= high]
    assert encode_task(kept_task, tokenizer, "test").where == [question.where for question in expected]
    found_rows = evaluate_task(make_model("llama"), tokenizer, kept_task, progress=False).per_example
    assert [row["where"] for row in found_rows] == [question.where for question in expected]


def test_examples_are_still_drawn_from_all_train_rows(
    write_rows: Callable[..., Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    task = load_task(write_rows(train=choice_rows(1), test=choice_rows()), prompt="prompt2")
    lengths = prompt_lengths(task, tokenizer, "test")
    kept, found = with_length(task, tokenizer, min(lengths), min(lengths))
    assert sum(found.kept.values()) < 4
    again, same = with_length(kept, tokenizer, min(lengths), min(lengths))
    assert (again.splits, same.kept["test"], sum(same.dropped.values())) == (kept.splits, found.kept["test"], 0)
    before = {request.where: request for request in build_requests(task, task.splits["test"])}  # type: ignore[arg-type]
    for request in build_requests(kept, kept.splits["test"]):  # type: ignore[arg-type]
        assert before[request.where] == request


def test_limits_count_after_the_filter(write_rows: Callable[..., Path], tokenizer: PreTrainedTokenizerBase) -> None:
    task = load_task(write_rows(train=choice_rows() * 4, test=choice_rows()))
    lengths = prompt_lengths(task, tokenizer, "train")
    kept, found = with_length(task, tokenizer, min(lengths), sorted(set(lengths))[2])
    assert found.kept["train"] == 12
    assert encode_task(kept, tokenizer, "train", limit=10).counts["samples"] == 10
    assert found.sentence() == (
        f"only rows whose prompt has {found.low} to {found.high} tokens count: 12 of 20 train, 3 of 5 test rows"
    )
    assert found.to_dict()["dropped"] == {"train": 8, "test": 2}


def test_completions_chats_and_texts(write_rows: Callable[..., Path], tokenizer: PreTrainedTokenizerBase) -> None:
    completions = [{"prompt": "a" * n, "completion": " yes"} for n in (1, 2, 3)]
    task = load_task(write_rows(test=completions))
    assert prompt_lengths(task, tokenizer, "test") == [1, 2, 3]
    assert with_length(task, tokenizer, 2, 9)[1].kept == {"test": 2}
    chats = [
        {"messages": [{"role": "user", "content": "b" * n}, {"role": "assistant", "content": "fine"}]} for n in (1, 5)
    ]
    lengths = prompt_lengths(load_task(write_rows(test=chats)), tokenizer, "test")
    assert lengths[1] - lengths[0] == 4
    texts = load_task(write_rows(test=[{"text": "c" * n} for n in (4, 700)]))
    assert prompt_lengths(texts, tokenizer, "test") == [4, 700]
    assert [len(row.text) for row in with_length(texts, tokenizer, 1, 10)[0].rows("test")] == [4]  # type: ignore[union-attr]


def test_nothing_left_and_no_range_are_one_line(
    write_rows: Callable[..., Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    task = load_task(write_rows(train=QUESTIONS, test=QUESTIONS[:2]))
    with pytest.raises(DataError, match=r"no row has a prompt of 1 to 2 tokens \(they have \d+ to \d+\): give another"):
        with_length(task, tokenizer, 1, 2)
    train, test = prompt_lengths(task, tokenizer, "train"), prompt_lengths(task, tokenizer, "test")
    only = next(length for length in train if length not in test)
    with pytest.raises(DataError, match=rf"no row of split 'test' .* \(they have {min(test)} to {max(test)}\)"):
        with_length(task, tokenizer, only, only, splits=("train", "test"))
    assert set(with_length(task, tokenizer, only, only)[0].splits) == {"train", "examples"}
    assert with_length(task, tokenizer, 1, 999, splits=["test"])[1].kept == {"test": 2}
    with pytest.raises(DataError, match="has no split 'validation'"):
        with_length(task, tokenizer, 1, 999, splits=["validation"])
    for low, high in ((0, 5), (6, 5)):
        with pytest.raises(InputError, match=f"length {low}-{high} is no range"):
            with_length(task, tokenizer, low, high)


def test_bins_hold_about_as_many_rows_each(write_rows: Callable[..., Path], tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{"question": "x" * (1 + n // 2), "choices": ["a", "b"], "answer": 0} for n in range(24)]
    task = load_task(write_rows(train=rows, test=rows[::2]))
    bins = length_bins(task, tokenizer)
    assert len(bins) == 3
    assert all(low <= high for low, high in bins)
    assert [bins[0][1] + 1, bins[1][1] + 1] == [bins[1][0], bins[2][0]], "no gap, no overlap"
    kept = [with_length(task, tokenizer, *ends)[1].kept for ends in bins]
    assert [found["train"] for found in kept] == [8, 8, 8]
    assert all(found["test"] == 4 for found in kept)
    lengths = prompt_lengths(task, tokenizer, "train")
    assert (bins[0][0], bins[-1][1]) == (min(lengths), max(lengths))
    with pytest.raises(InputError, match="count 1 must be at least 2"):
        length_bins(task, tokenizer, 1)


def test_no_bins_where_prompts_are_all_as_long(
    write_rows: Callable[..., Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [{"question": f"{n}?", "choices": ["a", "b"], "answer": 0} for n in range(5)]
    assert length_bins(load_task(write_rows(train=rows, test=rows)), tokenizer) == []
    longer = [{"question": "much longer?", "choices": ["a", "b"], "answer": 0}]
    task = load_task(write_rows(train=[*rows, *longer], test=rows))
    assert length_bins(task, tokenizer) == [], "a bin without a test row is none, and one bin is the whole task"
