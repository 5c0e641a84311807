"""The folder of a sweep: growing, refusing, locks between processes, failures and the table."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lorascope.core import DataError, OutputError
from lorascope.results import RunRecord
from lorascope.sweeps import COSTS, HEAD, Event, SweepFolder, SweepSpec, run_sweep, sweep_table, write_table
from lorascope.sweeps.executors import Finished
from lorascope.sweeps.executors.protocol import Executor


class Inline:
    """An executor of this process, whose cells end as they are told to."""

    slots = 1

    def __init__(self, **ends: str) -> None:
        self.ends = ends
        self.asked: list[tuple[str, int]] = []
        self.closed = 0

    def start(self) -> None:
        pass

    def submit(self, folder: str, name: str, seen: int) -> None:
        self.asked.append((name, seen))
        self.place = SweepFolder(folder)

    def wait(self, timeout: float) -> list[Finished]:
        name = self.asked[-1][0]
        end = self.ends.get(name.split("-")[0], "done")
        if end == "failed":
            self.place.fail(name, ValueError("no\nluck"))
        if end == "done":
            self.place.store.finish(record(name, self.place.cell(name).spec.rank))
            self.place.forgive(name)
        return [Finished(name, end, "gone")]  # type: ignore[arg-type]

    def stop(self) -> None:
        pass

    def close(self) -> None:
        self.closed += 1


def record(name: str, rank: int, **more: Any) -> RunRecord:
    return RunRecord(name=name, totals={"accuracy": 0.5, "ce": float("nan")}, layers=[], spec={"rank": rank}, **more)


def grid(*ranks: int, **base: Any) -> SweepSpec:
    return SweepSpec(base=base, grid={"rank": list(ranks)})


def test_a_grid_can_grow(tmp_path: Path) -> None:
    first = Inline()
    run_sweep(grid(4, learning_rate=0.1), tmp_path / "s", executor=first)
    second = Inline()
    larger = SweepSpec(base={"learning_rate": 0.1}, grid={"rank": [4, 8], "seed": [0, 1]})
    run_sweep(larger, tmp_path / "s", executor=second)
    assert len(first.asked) == 1
    assert len(second.asked) == 3
    smaller = run_sweep(grid(8, learning_rate=0.1), tmp_path / "s", executor=Inline())
    assert len(smaller.done) == 1
    assert len(smaller.table) == 4


def test_a_changed_base_is_refused_by_name(tmp_path: Path) -> None:
    run_sweep(grid(4, learning_rate=0.1), tmp_path / "s", executor=Inline())
    before = (tmp_path / "s" / "sweep.yaml").read_text()
    for other, key in (
        (grid(4, learning_rate=0.2), "learning_rate 0.1, not 0.2"),
        (grid(8), "learning_rate 0.1, not 4e-05"),
    ):
        with pytest.raises(OutputError, match=key):
            run_sweep(other, tmp_path / "s", executor=Inline())
    assert (tmp_path / "s" / "sweep.yaml").read_text() == before
    moved = SweepSpec(base={"seed": 0}, grid={"rank": [4], "learning_rate": [0.1, 0.2]})
    assert (
        len(run_sweep(moved, tmp_path / "s", executor=Inline()).done) == 2
    )  # from the base into the grid; seed 0 is the default


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.tex").write_text("x")
    with pytest.raises(OutputError, match="holds no sweep"):
        run_sweep(grid(4), tmp_path / "s", executor=Inline())
    assert {path.name for path in (tmp_path / "s").iterdir()} <= {"thesis.tex", ".sweep.lock"}
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write"):
        run_sweep(grid(4), tmp_path / "file", executor=Inline())
    with pytest.raises(DataError, match="no sweep in"):
        sweep_table(tmp_path)


def test_what_a_killed_start_left_is_ours(tmp_path: Path) -> None:
    """Killed while it wrote its first files."""
    (tmp_path / "s" / "cells").mkdir(parents=True)
    (tmp_path / "s" / ".sweep.lock").touch()
    (tmp_path / "s" / ".sweep.yaml.abc.tmp").write_text("ba")
    assert len(run_sweep(grid(4), tmp_path / "s", executor=Inline()).done) == 1


def test_a_failure_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    executor = Inline(r4="failed")
    events: list[Event] = []
    outcome = run_sweep(grid(2, 4, 8), tmp_path / "s", executor=executor, on_event=events.append)
    assert outcome.failed == {"r4-s0": "ValueError: no luck"}
    assert outcome.done == ("r2-s0", "r8-s0")
    failure = json.loads((tmp_path / "s" / "cells" / "r4-s0.failure.json").read_text())
    assert failure["reason"] == "ValueError: no luck"
    assert failure["attempt"] == 1
    assert failure["traceback"][0] == "ValueError: no"
    assert failure["time"].endswith("+00:00")
    assert list(outcome.table["status"]) == ["done", "failed", "done"]
    assert outcome.table["reason"][1] == "ValueError: no luck"
    assert executor.closed == 1
    assert [event.kind for event in events] == ["started", "done", "started", "failed", "started", "done"]


def test_failed_cells_are_tried_again_unless_not(tmp_path: Path) -> None:
    run_sweep(grid(2, 4), tmp_path / "s", executor=Inline(r4="failed"))
    still = Inline()
    assert run_sweep(grid(2, 4), tmp_path / "s", executor=still, retry=False).failed == {"r4-s0": "ValueError: no luck"}
    assert still.asked == []
    again = Inline(r4="failed")
    run_sweep(grid(2, 4), tmp_path / "s", executor=again)
    assert again.asked == [("r4-s0", 1)]
    failure = SweepFolder(tmp_path / "s").failure("r4-s0")
    assert failure is not None
    assert failure.attempt == 2
    assert run_sweep(grid(2, 4), tmp_path / "s", executor=Inline()).failed == {}


def test_a_lost_worker_is_a_failure(tmp_path: Path) -> None:
    assert run_sweep(grid(2), tmp_path / "s", executor=Inline(r2="lost")).failed == {"r2-s0": "gone"}


def test_a_stopped_cell_ends_the_sweep(tmp_path: Path) -> None:
    executor = Inline(r2="stopped")
    with pytest.raises(KeyboardInterrupt):
        run_sweep(grid(2, 4), tmp_path / "s", executor=executor)
    assert executor.closed == 1
    assert list(sweep_table(tmp_path / "s")["status"]) == ["pending", "pending"]


def test_a_cell_that_ends_beside_a_stopped_one_is_kept(tmp_path: Path) -> None:
    class Both(Inline):
        slots = 2

        def wait(self, timeout: float) -> list[Finished]:
            stopped, done = (name for name, _ in self.asked)
            self.place.store.finish(record(done, 4))
            return [Finished(stopped, "stopped"), Finished(done, "done")]

    with pytest.raises(KeyboardInterrupt):
        run_sweep(grid(2, 4), tmp_path / "s", executor=Both())
    assert list(pd.read_csv(tmp_path / "s" / "table.csv")["status"]) == ["pending", "done"]


def test_a_done_cell_with_leftovers_is_tidied(tmp_path: Path) -> None:
    """Killed between the record and the clearing away."""
    run_sweep(grid(2), tmp_path / "s", executor=Inline())
    (tmp_path / "s" / "runs" / "r2-s0" / "checkpoints").mkdir()
    executor = Inline()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor, "wait", lambda timeout: [Finished("r2-s0", "done")])
        run_sweep(grid(2), tmp_path / "s", executor=executor)
    assert executor.asked == [("r2-s0", 0)]


HOLD = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[tuple[SweepFolder, subprocess.Popen[str]]]:
    """A sweep of which another process holds a cell, until it is told to let go, or killed."""
    place = SweepFolder(tmp_path / "s")
    place.claim(grid(2))
    lock = place.root / "cells" / "r2-s0.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield place, process
        process.kill()


def test_a_held_cell_is_left_to_its_process(holder: tuple[SweepFolder, subprocess.Popen[str]]) -> None:
    """This sweep does other cells first, waits, and takes the other's result."""
    place, process = holder
    assert place.is_held("r2-s0")
    events: list[Event] = []

    def watch(event: Event) -> None:
        events.append(event)
        if event.kind == "done" and event.name == "r4-s0":
            place.store.finish(record("r2-s0", 2))
            process.communicate("let go\n")

    executor = Inline()
    outcome = run_sweep(grid(2, 4), place.root, executor=executor, on_event=watch)
    assert outcome.done == ("r2-s0", "r4-s0")
    assert executor.asked == [("r4-s0", 0)]
    assert ("waiting", "r2-s0") in [(event.kind, event.name) for event in events]


def test_a_lock_ends_with_its_process(holder: tuple[SweepFolder, subprocess.Popen[str]]) -> None:
    place, process = holder
    assert place.is_held("r2-s0")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not place.is_held("r2-s0")
    assert run_sweep(grid(2), place.root, executor=Inline()).done == ("r2-s0",)


def test_a_failure_elsewhere_is_not_tried_again(tmp_path: Path) -> None:
    """What another sweep has just tried and failed is not tried by this one at once."""
    place = SweepFolder(tmp_path / "s")
    place.claim(grid(2, 4))
    executor = Inline()

    def watch(event: Event) -> None:
        if event.kind == "started" and event.name == "r2-s0":
            place.fail("r4-s0", "elsewhere")

    outcome = run_sweep(grid(2, 4), place.root, executor=executor, on_event=watch)
    assert outcome.failed == {"r4-s0": "elsewhere"}
    assert executor.asked == [("r2-s0", 0)]


def test_the_columns_of_the_table(tmp_path: Path) -> None:
    spec = SweepSpec(
        base={"batch_size": 4},
        grid={"rank": [0, 2], "learning_rate": [0.1, 0.2], "length": [[1, 9]]},
        cells=[{"rank": 8}],
    )
    place = SweepFolder(tmp_path / "s")
    cells = place.claim(spec)
    costs = {"seconds_training": 2.5, "train_steps": 3, "train_tokens_seen": 70, "peak_memory_bytes": 2**31}
    counts = {"model_parameters": 1000, "adapter_parameters": 12, "train_samples": 40, "train_tokens": 400}
    for cell in cells[:2]:
        place.store.finish(record(cell.name, cell.spec.rank, counts=counts, settings={"costs": costs}))
    place.fail(cells[2].name, "why")
    table = write_table(place)
    assert tuple(table.columns) == (*HEAD, "learning_rate", "ce", "accuracy", *COSTS)
    rows = table.set_index("name")
    base, trained, failed = (rows.loc[cell.name] for cell in cells[:3])
    assert (base["R"], base["D"], base["D_tokens"], base["N"]) == (0, 0, 0, 1000)
    # Three steps of four rows are twelve of forty: the tokens are those of these twelve.
    assert (trained["R"], trained["D"], trained["D_tokens"], trained["N"]) == (2, 12, 70, 1000)
    assert (trained["length"], trained["learning_rate"], trained["adapter_parameters"]) == ("1-9", 0.1, 12)
    assert (trained["seconds_training"], trained["peak_memory_bytes"]) == (2.5, 2**31)
    assert (failed["status"], failed["reason"]) == ("failed", "why")
    assert pd.isna(failed["N"])
    assert pd.isna(trained["ce"])
    assert list(table["status"]) == ["done", "done", "failed", "pending"]
    read = pd.read_csv(tmp_path / "s" / "table.csv")
    assert list(read.columns) == list(table.columns)
    assert read["train_steps"].dropna().tolist() == [3, 3]
    parquet = pd.read_parquet(tmp_path / "s" / "table.parquet")
    pd.testing.assert_frame_equal(parquet, sweep_table(place), check_dtype=False)


def test_all_rows_count_after_a_whole_pass(tmp_path: Path) -> None:
    place = SweepFolder(tmp_path / "s")
    (cell,) = place.claim(SweepSpec(cells=[{"rank": 2, "batch_size": 16}]))
    counts = {"train_samples": 40, "train_tokens": 400}
    place.store.finish(
        record(cell.name, 2, counts=counts, settings={"costs": {"train_steps": 3, "train_tokens_seen": 480}})
    )
    row = sweep_table(place).loc[0]
    assert (row["D"], row["D_tokens"]) == (40, 400)


def test_costs_that_are_not_known_are_missing(tmp_path: Path) -> None:
    place = SweepFolder(tmp_path / "s")
    (cell,) = place.claim(grid(2))
    place.store.finish(record(cell.name, 2))
    row = sweep_table(place).loc[0]
    assert all(pd.isna(row[name]) for name in ("N", "D", "D_tokens", *COSTS))


def test_a_damaged_record_is_a_failed_row(tmp_path: Path) -> None:
    place = SweepFolder(tmp_path / "s")
    (cell,) = place.claim(grid(2))
    path = place.store.path(cell.name) / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    row = sweep_table(place).loc[0]
    assert row["status"] == "failed"
    assert "not valid JSON" in row["reason"]


def test_the_inline_executor_is_one() -> None:
    assert isinstance(Inline(), Executor)
