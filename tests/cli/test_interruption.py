"""Ctrl-C and kill -9 of the real command: the same command goes on, and ends with the same numbers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.test_commands import ROWS, train_options, write_rows


def start(options: list[object]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lorascope", *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def stop(process: subprocess.Popen[str], out: Path, sign: signal.Signals) -> str:
    """Send the signal when a checkpoint is there; gives what the command said on its error stream."""
    for _ in range(3000):
        if list(out.glob("checkpoints/checkpoint-*/trainer_state.json")) or process.poll() is not None:
            break
        time.sleep(0.02)
    assert process.poll() is None, "the run ended before it could be stopped"
    process.send_signal(sign)
    _, said = process.communicate(timeout=60)
    assert not (out / "result.json").exists()
    if sign == signal.SIGINT:
        assert process.returncode == 130
        assert said.strip().splitlines()[-1] == "lorascope: stopped; run the same command again to go on from here"
    return said


def finish(options: list[object]) -> dict[str, float]:
    process = start(options)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    out = Path(str(options[options.index("--out") + 1]))
    totals: dict[str, float] = json.loads((out / "result.json").read_text())["totals"]
    return totals


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_stopped_in_training_and_started_again(tmp_path: Path, tiny_model_dir: Path, sign: signal.Signals) -> None:
    task = write_rows(tmp_path / "rows", ROWS)
    config = tmp_path / "config.yaml"
    config.write_text("save_steps: 5\nlogging_steps: 1\n")

    def options(name: str) -> list[object]:
        return train_options(tiny_model_dir, task, tmp_path / name, "--config", config, "--steps", 150)

    undisturbed = finish(options("undisturbed"))
    out = tmp_path / "stopped"
    stop(start(options("stopped")), out, sign)
    assert finish(options("stopped")) == pytest.approx(undisturbed, rel=1e-5)
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[-1] == 150


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_quickstart_stopped_and_started_again(tmp_path: Path, tiny_model_dir: Path, sign: signal.Signals) -> None:
    task = write_rows(tmp_path / "rows", ROWS)

    def options(name: str) -> list[object]:
        sizes = ("--ranks", "2,4", "--steps", 160, "--questions", 6)
        return ["quickstart", "--model", tiny_model_dir, "--task", task, *sizes, "--out", tmp_path / name]

    def totals(name: str) -> dict[str, dict[str, float]]:
        found = (tmp_path / name).glob("*/result.json")
        return {path.parent.name: json.loads(path.read_text())["totals"] for path in found}

    _, said = (first := start(options("undisturbed"))).communicate(timeout=300)
    assert first.returncode == 0, said
    stop(start(options("stopped")), tmp_path / "stopped" / "rank-4", sign)
    assert sorted(totals("stopped")) == ["base", "rank-2"]
    heard, said = (again := start(options("stopped"))).communicate(timeout=300)
    assert again.returncode == 0, said
    assert "base: done before" in heard
    assert "rank-2: done before" in heard
    undisturbed = totals("undisturbed")
    assert sorted(undisturbed) == ["base", "rank-2", "rank-4"]
    for name, found in totals("stopped").items():
        assert found == pytest.approx(undisturbed[name], rel=1e-5)
