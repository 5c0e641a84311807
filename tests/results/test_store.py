from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from lorascope.core.errors import DataError, InputError, OutputError
from lorascope.core.spec import load_yaml
from lorascope.results import RunStore
from lorascope.testing.stores import RunStoreConformance, example_record


class TestRunStore(RunStoreConformance):
    def make_store(self, root: Path) -> RunStore:
        return RunStore(root)


def test_layout_of_a_run(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    store.write_spec("rank-4", {"rank": 4, "out": Path("x")})
    store.append_metrics("rank-4", {"step": 1})
    store.finish(example_record())
    assert {path.name for path in store.path("rank-4").iterdir()} == {"spec.yaml", "metrics.jsonl", "result.json"}
    assert load_yaml(store.path("rank-4") / "spec.yaml") == {"rank": 4, "out": "x"}


@pytest.mark.parametrize("torn", [b'{"step": 2, "lo', b'{"step": 2}', b"\xc3"])
def test_a_torn_last_line_is_left_out_and_then_cut_off(tmp_path: Path, torn: bytes) -> None:
    store = RunStore(tmp_path)
    store.append_metrics("a", {"step": 1})
    with (tmp_path / "a" / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    assert store.metrics("a") == [{"step": 1}]
    store.append_metrics("a", {"step": 3})
    assert store.metrics("a") == [{"step": 1}, {"step": 3}]


def test_a_bad_line_in_the_middle_is_named(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    store.append_metrics("a", {"step": 1})
    with (tmp_path / "a" / "metrics.jsonl").open("a") as file:
        file.write("oops\n[1]\n")
    with pytest.raises(DataError, match="line 2 is not JSON"):
        store.metrics("a")
    (tmp_path / "a" / "metrics.jsonl").write_text("[1]\n")
    with pytest.raises(DataError, match="line 1 is not a mapping"):
        store.metrics("a")


def test_an_interrupted_result_is_said(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    path = store.finish(example_record())
    path.write_text(path.read_text()[:100])
    with pytest.raises(DataError, match=r"rank-4.*interrupted"):
        store.records()


def test_a_missing_store_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no results folder"):
        RunStore(tmp_path / "none").records()


def test_table_has_one_row_for_each_run(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    store.finish(example_record("base", 0))
    store.finish(example_record("rank-4", 4))
    table = store.table()
    assert list(table["name"]) == ["base", "rank-4"]
    assert list(table["rank"]) == [0, 4]
    assert list(table["accuracy"]) == [0.5, 0.5]
    assert table["ce"].isna().all()


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = RunStore(tmp_path / "file")
    with pytest.raises(OutputError, match="cannot write"):
        store.append_metrics("a", {"step": 1})
    with pytest.raises(OutputError, match="cannot write"):
        store.finish(example_record())


def test_windows_reserved_characters_are_refused() -> None:
    with pytest.raises(InputError, match="bad run name 'a:b'"):
        RunStore("out").path("a:b")


def _write_run(root: str, name: str, steps: int) -> None:
    store = RunStore(root)
    for step in range(steps):
        store.append_metrics(name, {"step": step, "run": name})
    store.finish(example_record(name, steps))


def test_two_processes_on_different_runs_do_not_clash(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    jobs = [context.Process(target=_write_run, args=(str(tmp_path), name, 20)) for name in ("a", "b")]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0, 0]
    store = RunStore(tmp_path)
    for name in ("a", "b"):
        assert store.metrics(name) == [{"step": step, "run": name} for step in range(20)]
    assert store.names() == ["a", "b"]
