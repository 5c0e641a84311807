"""Nothing is ever lost: killed, stopped and started twice, a sweep ends with the table of an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from lorascope.sweeps import SweepFolder, SweepSpec
from lorascope.testing.executors import tiny_sweep

from .command import ColdCommand, WarmServer, kill_group, read_table, until, write_yaml

KILLS = 20
COLD = (2, 12)
"""Which of the kills hit a command that imports torch itself."""


@pytest.fixture(scope="module")
def server() -> Iterator[WarmServer]:
    server = WarmServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> SweepSpec:
    return tiny_sweep(tmp_path_factory.mktemp("inputs"), steps=20, save_steps=2, rank=[0, 2, 4], seed=[0, 1])


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, server: WarmServer, spec: SweepSpec
) -> tuple[pd.DataFrame, float]:
    """The table of a sweep that nobody disturbed, and how long it took."""
    root = tmp_path_factory.mktemp("undisturbed")
    start = time.monotonic()
    command = server.start(options(spec, root), root / "log")
    assert command.wait() == 0, (root / "log").read_text()
    table = read_table(root / "out")
    assert list(table["status"]) == ["done"] * 5
    assert list(table["D"]) == ["0", "6", "6", "6", "6"]
    return table, time.monotonic() - start


def options(spec: SweepSpec, root: Path, *more: object) -> list[object]:
    path = write_yaml(spec, root / "sweep.yaml")
    return ["sweep", path, "--out", root / "out", "--workers", 2, "--no-progress", *more]


def check_records(folder: Path) -> None:
    """Whatever is there under its final name is whole."""
    for path in folder.rglob("*.json"):
        if not path.name.startswith(".") and "checkpoint" not in str(path):
            json.loads(path.read_text())
    for path in folder.rglob("metrics.jsonl"):
        for line in path.read_bytes().split(b"\n")[:-1]:
            json.loads(line)
    if (folder / "table.csv").is_file():
        assert len(read_table(folder)) == 5
    assert not list(folder.rglob("*.failure.json"))


def check_end(out: Path, expected: pd.DataFrame) -> None:
    """The table is that of an undisturbed sweep, every step was logged once, and nothing is left over."""
    pd.testing.assert_frame_equal(read_table(out), expected)
    for path in (out / "runs").iterdir():
        assert not (path / "checkpoints").exists()
        lines = (path / "metrics.jsonl").read_text().splitlines() if path.name[:2] != "r0" else []
        assert [json.loads(line)["step"] for line in lines] == list(range(1, 21) if lines else [])


def test_killed_at_random_moments(
    tmp_path: Path, server: WarmServer, spec: SweepSpec, undisturbed: tuple[pd.DataFrame, float]
) -> None:
    expected, seconds = undisturbed
    moments = random.Random(3)
    kills = ends = 0
    root = tmp_path / "0"
    root.mkdir()
    while kills < KILLS:
        cold = kills in COLD
        command = (ColdCommand if cold else server.start)(options(spec, root), root / "log")
        time.sleep(moments.uniform(3, 10) if cold else moments.uniform(0, seconds / 2))
        if command.poll() is None:
            kill_group(command)
            kills += 1
            check_records(root / "out")
            continue
        assert command.wait() == 0, (root / "log").read_text()
        check_end(root / "out", expected)
        ends += 1
        root = tmp_path / str(ends)
        root.mkdir()
    command = server.start(options(spec, root), root / "log")
    assert command.wait() == 0, (root / "log").read_text()
    check_end(root / "out", expected)


@pytest.mark.parametrize("whom", ["the sweep", "all its processes"])
def test_ctrl_c_saves_and_goes_on(
    tmp_path: Path, server: WarmServer, spec: SweepSpec, undisturbed: tuple[pd.DataFrame, float], whom: str
) -> None:
    """A terminal sends it to every process; a person with ``kill`` to one."""
    command = server.start(options(spec, tmp_path), tmp_path / "log")
    runs = tmp_path / "out" / "runs"
    until(lambda: list(runs.glob("*/checkpoints/checkpoint-*/trainer_state.json")))
    (os.kill if whom == "the sweep" else os.killpg)(command.pid, signal.SIGINT)
    assert command.wait() == 130, (tmp_path / "log").read_text()
    assert "stopped; run the same command again" in (tmp_path / "log").read_text()
    assert list(runs.glob("*/checkpoints/checkpoint-*/trainer_state.json"))
    again = server.start(options(spec, tmp_path), tmp_path / "log")
    assert again.wait() == 0, (tmp_path / "log").read_text()
    check_end(tmp_path / "out", undisturbed[0])


def test_ctrl_c_while_torch_is_imported(tmp_path: Path, spec: SweepSpec) -> None:
    """Nothing has started yet: no traceback of the processes that are still importing."""
    log = tmp_path / "log"
    command = ColdCommand(options(spec, tmp_path), log)
    until(lambda: (tmp_path / "out" / "table.csv").exists())
    time.sleep(0.3)
    os.killpg(command.pid, signal.SIGINT)
    assert command.wait() == 130, log.read_text()
    assert "Traceback" not in log.read_text()
    assert "stopped; run the same command again" in log.read_text()


def test_cells_end_when_their_sweep_is_gone(
    tmp_path: Path, server: WarmServer, spec: SweepSpec, undisturbed: tuple[pd.DataFrame, float]
) -> None:
    """kill -9 of the sweep alone: its cells save, stop, and leave their locks."""
    command = server.start(options(spec, tmp_path), tmp_path / "log")
    place = SweepFolder(tmp_path / "out")
    until(lambda: list(place.root.glob("runs/*/checkpoints/checkpoint-*/trainer_state.json")))
    os.kill(command.pid, signal.SIGKILL)
    command.wait()
    names = [cell.name for cell in spec.expand()]
    until(lambda: not any(place.is_held(name) for name in names), 60)
    assert not all(place.store.is_done(name) for name in names)
    again = server.start(options(spec, tmp_path), tmp_path / "log")
    assert again.wait() == 0, (tmp_path / "log").read_text()
    check_end(tmp_path / "out", undisturbed[0])


def test_two_sweeps_on_one_folder(
    tmp_path: Path, server: WarmServer, spec: SweepSpec, undisturbed: tuple[pd.DataFrame, float]
) -> None:
    """Each cell is run by one of them, both see all of them through, and the table is whole."""
    logs = [tmp_path / "log-0", tmp_path / "log-1"]
    commands = [server.start(options(spec, tmp_path, "--workers", 1), log) for log in logs]
    assert [command.wait() for command in commands] == [0, 0], [log.read_text() for log in logs]
    said = "".join(log.read_text() for log in logs)
    for cell in spec.expand():
        assert said.count(f"done {cell.name} in ") == 1, said
        assert said.count(f"done {cell.name}") <= 2
    check_end(tmp_path / "out", undisturbed[0])
