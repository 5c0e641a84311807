"""``lorascope sweep`` as a person types it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from lorascope.cli import main
from lorascope.cli._sweep import _duration
from lorascope.testing.executors import tiny_sweep

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Type a command; get its exit code, what it printed, and what it said on the error stream."""

    def typed(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lorascope", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return typed


def write_sweep(folder: Path, *, bad: bool = False) -> Path:
    spec = tiny_sweep(folder, steps=4, rank=[0, 2], seed=[0, 1])
    if bad:
        spec.cells.append({"rank": 2, "learning_rate": 1e30})
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(spec.to_dict()))
    return path


def test_a_sweep_with_a_failing_cell_and_what_comes_after(tmp_path: Path, run: Run) -> None:
    sweep, out = write_sweep(tmp_path, bad=True), tmp_path / "out"
    code, printed, said = run("sweep", sweep, "--out", out, "--workers", 2)
    assert code == 1
    assert said.strip().splitlines()[-1].startswith("lorascope: 1 of 4 cells failed")
    assert "failed r2-s0-tiny-rows-" in said
    assert "training diverged" in said
    assert said.count("done r") == 3
    assert str(out / "table.csv") in printed
    assert "MIUB" in printed
    table = pd.read_csv(out / "table.csv")
    assert sorted(table["status"]) == ["done", "done", "done", "failed"]
    assert sorted(table["R"]) == [0, 2, 2, 2]
    good = table[table["status"] == "done"]
    assert (good["N"] > 0).all()
    assert list(good["D"]) == [0, 6, 6]
    assert (good["seconds_total"] > 0).all()
    code, _, said = run("sweep", sweep, "--out", out, "--no-retry", "--no-progress")
    assert code == 1
    assert "failed before r2-s0" in said
    sweep = write_sweep(tmp_path)
    code, printed, said = run("sweep", sweep, "--out", out, "--no-progress")
    assert code == 0, said
    assert said == ""  # nothing left to do
    assert printed.count("done") == 3


def test_a_dry_run_writes_nothing(tmp_path: Path, run: Run) -> None:
    code, printed, said = run("sweep", write_sweep(tmp_path), "--out", tmp_path / "out", "--dry-run")
    assert code == 0, said
    assert not (tmp_path / "out").exists()
    assert "3 cells" in printed
    assert "a guess of" in printed
    names = [line for line in printed.splitlines() if "tiny-rows" in line]
    assert len(names) == 3
    vocabulary, width, inner, layers, kv = 258, 16, 24, 2, 8
    block = 2 * width * width + 2 * width * kv + 3 * width * inner + 2 * width
    assert all(f"{2 * vocabulary * width + layers * block + width:,}" in line for line in names)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("grid: {rank: [4, -1]}", (), "cell (rank=-1): rank -1 must be at least 0"),
        ("grid: {rnak: [4]}", (), "unknown key in grid 'rnak': did you mean 'rank'?"),
        ("base: {rank: 4}", (), "a sweep needs 'grid'"),
        ("grid: {rank: 4}", (), "grid: 'rank' must be a list of values"),
        ("- 1", (), "must hold a mapping"),
        ("grid: {rank: [4]}", ("--executor", "rya"), "unknown executor 'rya': did you mean 'ray'?"),
        ("grid: {rank: [4]}", ("--address", "auto"), "executor 'local' has no option 'address'"),
        ("grid: {rank: [4]}", ("--executor", "slurm"), "no Slurm on this machine"),
        ("grid: {rank: [4]}", ("--executor", "ray", "--address", "127.0.0.1:1"), "no Ray cluster at '127.0.0.1:1'"),
        ("cells: [{model: /nowhere}]", ("--dry-run",), "model '/nowhere'"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, run: Run, text: str, options: tuple[str, ...], message: str) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    code, _, said = run("sweep", path, "--out", tmp_path / "out", *options)
    assert code == 2
    assert message in said
    assert len(said.strip().splitlines()) == 1


def test_help_teaches(run: Run) -> None:
    code, printed, _ = run("sweep", "--help")
    assert code == 0
    for part in ("train_limit: [100, 300]", "cells:", "1 if some failed", "130 after Ctrl-C", "[default: 240]"):
        assert part in printed
    example = printed[printed.index("base:") : printed.index("Each cell")]
    lines = [line.rstrip() for line in example.splitlines()]
    found = yaml.safe_load("\n".join(line[5:] if line.startswith("     ") else line for line in lines))
    assert found["grid"]["rank"] == [0, 4, 16, 64]


def test_durations() -> None:
    found = [_duration(seconds) for seconds in (0.2, 61.0, 600.0, 7200.0)]
    assert found == ["<1 s", "61 s", "10 min", "2.0 h"]
