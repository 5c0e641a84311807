from __future__ import annotations

import pytest

from lorascope.core.errors import DataError
from lorascope.tasks import load_task
from lorascope.tasks.prompts import build_requests

ROWS = [{"question": f"Q{i}?", "choices": [f"right{i}", f"wrong{i}"], "answer": 0} for i in range(4)]


def request(write_rows, prompt, row=None, train=ROWS[:3], known=None):
    folder = write_rows(train=train, test=[row or ROWS[3]])
    task = load_task(known, data_dir=folder, prompt=prompt) if known else load_task(folder, prompt=prompt)
    return build_requests(task, task.rows("test"))[0]


def test_main_and_plain(write_rows):
    made = request(write_rows, "main")
    assert made.pair(1) == ("Choose the correct answer for the following question: Q3?\nAnswer:", " wrong3")
    assert request(write_rows, "plain").pair(0) == ("Question: Q3?\nAnswer:", " right3")
    assert request(write_rows, "plain", known="hellaswag").pair(0) == ("Q3?", " right3")


def test_prompt1_shows_a_solved_example(write_rows):
    made = request(write_rows, "prompt1", train=ROWS[:1])
    assert made.contexts == (
        "Choose the correct answer for the following question. Here is an example shown below: "
        "Q0?\nAnswer: right0\nThe new question is: Q3?\nAnswer:",
    )
    assert made.continuations == (" right3", " wrong3")


def test_prompt2_shows_a_solved_and_a_wrongly_solved_example(write_rows):
    made = request(write_rows, "prompt2", train=ROWS[:2])
    options = [
        "Choose the correct answer for the following question. Here is an positive example shown below: "
        f"Q{good}?\nAnswer: right{good}\nHere is an negative example shown below: Q{bad}?\nAnswer: wrong{bad}\n"
        "The new question is: Q3?\nAnswer:"
        for good, bad in ((0, 1), (1, 0))
    ]
    assert made.contexts[0] in options


def test_prompt3_letters_follow_the_number_of_choices(write_rows):
    made = request(write_rows, "prompt3", {"question": "Q?", "choices": ["x", "y", "z"], "answer": 2})
    assert made.contexts == (
        "Please note that you can only choose from A, B or C. Choose the correct answer for the following question: "
        "Q?\nA. x\nB. y\nC. z\nAnswer:",
    )
    assert made.continuations == (" A", " B", " C")
    assert made.names == ("A", "B", "C")
    assert made.answer == 2
    two = request(write_rows, "prompt3").contexts[0]
    assert two.startswith("Please note that you can only choose from A or B. ")
    with pytest.raises(DataError, match="27 choices: prompt3 has letters for 26"):
        request(write_rows, "prompt3", {"question": "Q?", "choices": [str(i) for i in range(27)], "answer": 0})


def test_winogrande_fills_the_blank(write_rows):
    row = {"question": "Ann saw Bo, so _ waved.", "choices": ["Ann", "Bo"], "answer": 0}
    made = request(write_rows, "plain", row, known="winogrande")
    assert [made.pair(0), made.pair(1)] == [("Ann saw Bo, so Ann", " waved."), ("Ann saw Bo, so Bo", " waved.")]
    with pytest.raises(DataError, match=r"test\.jsonl:1: no '_' in the question"):
        request(write_rows, "plain", ROWS[0], known="winogrande")


def test_a_row_is_never_its_own_example(write_rows):
    task = load_task(write_rows(train=ROWS), prompt="prompt2")
    for row, made in zip(task.rows("train"), build_requests(task, task.rows("train")), strict=True):
        assert made.contexts[0].count(row.question) == 1
    single = load_task(write_rows(train=ROWS[:1]), prompt="prompt1")
    with pytest.raises(DataError, match="prompt1 needs 1 train rows beside the row at"):
        build_requests(single, single.rows("train"))


def test_examples_need_a_train_split_and_follow_the_seed(tmp_path, write_rows):
    folder = write_rows(test=ROWS)
    task = load_task(folder, prompt="prompt1")
    with pytest.raises(DataError, match="has no train split, from which prompt1 takes its example"):
        build_requests(task, task.rows("test"))
    folder = write_rows(train=ROWS[:3], test=ROWS[3:])
    contexts = {}
    for seed in range(12):
        task = load_task(folder, prompt="prompt1", seed=seed)
        contexts[seed] = build_requests(task, task.rows("test"))[0].contexts[0]
        assert contexts[seed] == build_requests(task, task.rows("test"))[0].contexts[0]
    assert len(set(contexts.values())) == 3
