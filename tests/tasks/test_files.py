"""Local files: what is read, and one clear line with file and line number for what is wrong."""

from __future__ import annotations

import json
import os
import socket
import warnings

import pandas as pd
import pytest

from lorascope.core.errors import DataError, InputError
from lorascope.core.files import sha256_of
from lorascope.tasks import ChatRow, ChoiceRow, CompletionRow, TextRow, load_task
from lorascope.tasks.files import find_files
from tests.tasks.conftest import QUESTIONS

GOOD = {"question": "Q?", "choices": ["a", "b"], "answer": 1}
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


@pytest.mark.parametrize(
    ("row", "kind", "expected"),
    [
        (GOOD, "multiple_choice", ChoiceRow("Q?", ("a", "b"), 1, "")),
        ({"text": "words"}, "text", TextRow("words", "")),
        ({"prompt": "p", "completion": "c", "id": 4}, "completion", CompletionRow("p", "c", "")),
        ({"messages": CHAT}, "chat", ChatRow((("user", "hi"), ("assistant", "ho")), "")),
    ],
)
def test_every_kind_from_jsonl_and_parquet(row, kind, expected, write_rows):
    folder = write_rows(train=[row, row], test=[row])
    pd.DataFrame([row]).to_parquet(folder / "validation.parquet")
    task = load_task(folder)
    assert task.kind == kind
    assert {split: len(rows) for split, rows in task.splits.items()} == {"train": 2, "validation": 1, "test": 1}
    for split, place in (("train", "train.jsonl:1"), ("validation", "validation.parquet:row 1")):
        found = task.rows(split)[0]
        assert found.where.endswith(place)
        assert {**vars(found), "where": ""} == vars(expected)
    assert task.sources["train.jsonl"] == sha256_of(folder / "train.jsonl")
    assert str(folder) == task.name


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"text": "a"', r"not valid JSON \(Expecting ',' delimiter at column 13\): write one JSON object a line"),
        ("{", r"not valid JSON \(.* at column \d+\): write one JSON object a line"),
        ("", "empty line: delete it"),
        ("[1]", r"a JSON list, not an object: a row is \{\"question\", \"choices\", \"answer\"\} or"),
        ("{}", "unknown kind of row with no keys"),
        ({"label": 1}, "unknown kind of row with 'label'"),
        ({"question": "Q?", "choices": ["a", "b"]}, "key 'answer' is missing beside 'question'"),
        ({"prompt": "p"}, "key 'completion' is missing beside 'prompt'"),
        ({**GOOD, "question": "  "}, "'question' is empty: fill it in or delete the row"),
        ({**GOOD, "question": None}, "'question' must be text, not null"),
        ({**GOOD, "choices": "ab"}, "'choices' must be a list of texts, not text"),
        ({**GOOD, "choices": ["a"], "answer": 0}, "1 choices: a question needs at least 2"),
        ({**GOOD, "choices": []}, "0 choices: a question needs at least 2"),
        ({**GOOD, "choices": ["a", ""]}, r"'choices\[1\]' is empty"),
        ({**GOOD, "choices": ["a", 3]}, r"'choices\[1\]' must be text, not a number"),
        ({**GOOD, "answer": 2}, "answer 2 is outside the 2 choices: indices count from 0, so give 0 to 1"),
        ({**GOOD, "answer": -1}, "answer -1 is outside"),
        ({**GOOD, "answer": True}, r"'answer' is True \(true/false\): give the index"),
        ({**GOOD, "answer": "b"}, r"'answer' is 'b' \(text\): give the index"),
        ({**GOOD, "answer": 1.0}, r"'answer' is 1.0 \(float\)"),
        ({**GOOD, "answer": None}, r"'answer' is None \(null\)"),
        ({"text": "words"}, "a text row among multiple_choice rows"),
        (
            '{"question": "a", "question": "b", "choices": ["a", "b"], "answer": 0}',
            "not a row .key 'question' stands twice",
        ),
        ('{"messages": [{"role": "user", "role": "assistant"}]}', "not a row .key 'role' stands twice"),
        (b'{"question": "caf\xe9"}', "not UTF-8 .byte 0xe9.: save the file with UTF-8 encoding"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(bad, message, write_rows):
    folder = write_rows(train=[GOOD], test=[GOOD, GOOD, bad, GOOD])
    with pytest.raises(DataError, match=r"test\.jsonl:3: " + message) as caught:
        load_task(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": ""}, "'text' is empty"),
        ({"prompt": "p", "completion": " "}, "'completion' is empty"),
        ({"prompt": CHAT, "completion": "x"}, "'prompt' must be text, not a list: write conversations as 'messages'"),
        ({"messages": []}, "'messages' is empty: give a 'user' and an 'assistant' message"),
        ({"messages": 3}, "'messages' must be a list"),
        ({"messages": ["hi"]}, r"messages\[0\] needs the keys 'role' and 'content'"),
        ({"messages": CHAT[:1]}, "the last message is from 'user': end with the 'assistant' message"),
        ({"messages": CHAT[1:]}, "'messages' holds only the answer"),
        ({"messages": [*CHAT[:1], {"role": "assistant", "content": ""}]}, r"'messages\[1\] content' is empty"),
    ],
)
def test_bad_rows_of_the_other_kinds(row, message, write_rows):
    with pytest.raises(DataError, match=r"test\.jsonl:1: " + message):
        load_task(write_rows(test=[row]))


def test_bad_parquet_rows_and_files(tmp_path):
    pd.DataFrame([GOOD, {**GOOD, "answer": 5}]).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(DataError, match=r"test\.parquet:row 2: answer 5 is outside"):
        load_task(tmp_path)
    (tmp_path / "test.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(DataError, match=r"test\.parquet' cannot be read as Parquet"):
        load_task(tmp_path)


def test_files_that_are_missing_empty_or_double(tmp_path, write_rows):
    with pytest.raises(DataError, match=r"folder '.*' has no train\.jsonl, validation\.jsonl, test\.jsonl"):
        load_task(tmp_path)
    folder = write_rows(test=[])
    with pytest.raises(DataError, match=r"test\.jsonl' is empty: write one row a line"):
        load_task(folder)
    write_rows(test=[GOOD])
    pd.DataFrame([GOOD]).to_parquet(folder / "test.parquet")
    with pytest.raises(DataError, match=r"holds both test\.jsonl and test\.parquet: keep one"):
        load_task(folder)
    with pytest.raises(DataError, match=r"no file or folder '\./nowhere'"):
        load_task("./nowhere")
    with pytest.raises(DataError, match=r"no file or folder 'rows\.jsonl'"):
        load_task("rows.jsonl")
    (tmp_path / "rows.csv").write_text("a,b\n")
    with pytest.raises(DataError, match=r"rows\.csv' is not \.jsonl or \.parquet"):
        load_task(tmp_path / "rows.csv")


def test_capitals_in_suffixes_and_names_make_no_difference(tmp_path):
    for name in ("mine.JSONL", "mine.Jsonl"):
        (tmp_path / name).write_text(json.dumps(GOOD) + "\n")
        assert len(load_task(tmp_path / name).rows("all")) == 1
    pd.DataFrame([GOOD, GOOD]).to_parquet(tmp_path / "mine.PARQUET")
    assert len(load_task(tmp_path / "mine.PARQUET").rows("all")) == 2
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.JSONL").write_text(json.dumps(GOOD) + "\n")
    pd.DataFrame([GOOD]).to_parquet(folder / "TEST.PARQUET")
    assert set(load_task(folder).splits) == {"train", "test"}
    (folder / "train.jsonl").write_text(json.dumps(GOOD) + "\n")
    with pytest.raises(DataError, match=r"holds both train\.JSONL and train\.jsonl: keep one"):
        load_task(folder)


@pytest.mark.timeout(20)
def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "rows.jsonl")
    address = os.path.relpath(tmp_path / "socket.jsonl")  # a socket's path may not be long
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        for name, kind in (("rows.jsonl", "pipe"), ("socket.jsonl", "socket")):
            with pytest.raises(DataError, match=f"{name}' is a {kind}, not a file: write the rows to a"):
                load_task(tmp_path / name)
    with pytest.raises(DataError, match="'/dev/null' is a device, not a file"):
        load_task("/dev/null")
    folder = tmp_path / "folder"
    folder.mkdir()
    os.mkfifo(folder / "train.jsonl")
    with pytest.raises(DataError, match=r"train\.jsonl' is a pipe, not a file"):
        load_task(folder)
    (folder / "train.jsonl").unlink()
    (folder / "train.jsonl").mkdir()
    with pytest.raises(DataError, match=r"train\.jsonl' is a folder, not a file"):
        load_task(folder)
    (folder / "train.jsonl").rmdir()
    (folder / "train.jsonl").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"train\.jsonl' is a broken link, not a file"):
        load_task(folder)


def test_a_file_that_is_not_there_is_no_broken_link(tmp_path):
    with pytest.raises(DataError, match=r"no file '.*rows\.jsonl': check the path"):
        find_files(tmp_path / "rows.jsonl")


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def refuse(*_args: object) -> None:
        raise PermissionError(13, "Permission denied")  # root may read everything, so modes would not show this

    (tmp_path / "rows.jsonl").write_text(json.dumps(GOOD) + "\n")
    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.open", refuse)
        with pytest.raises(
            DataError, match=r"rows\.jsonl' cannot be read \(Permission denied\): check its permissions"
        ):
            load_task(tmp_path / "rows.jsonl")
    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.iterdir", refuse)
        with pytest.raises(DataError, match=r"cannot be read \(Permission denied\)"):
            load_task(tmp_path)


def test_a_column_that_stands_twice_is_refused(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet' has column 'text' twice"):
        load_task(tmp_path / "rows.parquet")


def test_a_file_of_one_row_can_be_measured_but_not_learned(tmp_path):
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps(GOOD) + "\n")
    task = load_task(file)
    assert len(task.rows("all")) == len(task.rows("test")) == 1
    with pytest.raises(
        DataError, match=r"has 1 row in one file, none for split 'train' .*: give more rows, or a folder"
    ):
        task.rows("train")


def test_a_single_file_is_split_without_overlap(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps({**GOOD, "question": f"Q{i}?"}) + "\n" for i in range(21)))
    task = load_task(str(file))
    assert {split: len(rows) for split, rows in task.splits.items()} == {
        "train": 16,
        "validation": 2,
        "test": 3,
        "all": 21,
    }
    assert [row.question for row in task.rows("test")] == ["Q0?", "Q10?", "Q20?"]
    questions = [row.question for split in ("train", "validation", "test") for row in task.rows(split)]
    assert sorted(questions) == sorted(row.question for row in task.rows("all"))


def test_a_byte_order_mark_and_windows_line_ends_are_read(write_rows):
    folder = write_rows(test=["\ufeff" + json.dumps(GOOD) + "\r", json.dumps(GOOD) + "\r"])
    assert len(load_task(folder).rows("test")) == 2


def test_a_folder_of_sentences_with_one_blank_each_is_filled_in(write_rows):
    sentence = {"question": "He saw _ there.", "choices": ["Ann", "Bo"], "answer": 0}
    assert load_task(write_rows(test=[sentence])).style == "blank"
    assert load_task(write_rows(test=[sentence, GOOD])).style == "question"
    assert load_task(write_rows(test=[{**sentence, "question": "He saw __ there."}])).style == "question"


def test_repeated_choices_warn_once_a_file(write_rows):
    rows = [{**GOOD, "choices": ["a", "a"]}] * 3 + [GOOD]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_task(write_rows(test=rows))
    [warning] = caught
    assert "3 of 4 rows offer a choice twice, the first at" in str(warning.message)
    assert "test.jsonl:1" in str(warning.message)


def test_limits_are_seeded_nested_samples(write_rows):
    task = load_task(write_rows(test=[{**GOOD, "question": f"Q{i}?"} for i in range(50)]))
    questions = [row.question for row in task.rows("test")]
    five, ten = ([row.question for row in task.rows("test", limit=n)] for n in (5, 10))
    assert set(five) < set(ten)
    assert ten == [question for question in questions if question in ten]
    assert ten != questions[:10]
    assert ten != [row.question for row in task.rows("test", limit=10, seed=1)]
    assert [row.question for row in task.rows("test", limit=99)] == questions
    with pytest.raises(InputError, match="limit 0 leaves no rows"):
        task.rows("test", limit=0)
    with pytest.raises(DataError, match=r"has no split 'train': it has test; add a file train\.jsonl"):
        task.rows("train")


def test_names_that_are_not_tasks(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="unknown task 'arc_esay': did you mean 'arc_easy'"):
        load_task("arc_esay")
    with pytest.raises(InputError, match="unknown prompt 'prompt4'"):
        load_task("towns", prompt="prompt4")
    with pytest.raises(InputError, match="unknown hub task for data_dir 'towns'"):
        load_task("towns", data_dir=tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "towns").mkdir()
    (tmp_path / "towns" / "test.jsonl").write_text(json.dumps(QUESTIONS[0]) + "\n")
    assert len(load_task("./towns").rows("test")) == 1
    (tmp_path / "mytask").mkdir()
    (tmp_path / "mytask" / "test.jsonl").write_text(json.dumps(QUESTIONS[0]) + "\n")
    assert len(load_task("mytask").rows("test")) == 1
