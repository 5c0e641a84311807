"""`lorascope sweep` as real processes: cold, and from a server that has paid for the imports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import yaml

from lorascope.sweeps import SweepSpec

CLOCK = ("seconds_", "cpu_seconds_", "peak_memory")
"""Columns of the table that differ from run to run."""


def typed(options: list[object]) -> list[str]:
    return [str(option) for option in options]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def write_yaml(spec: SweepSpec, path: Path) -> Path:
    path.write_text(yaml.safe_dump(spec.to_dict(), sort_keys=False))
    return path


def read_table(folder: Path) -> pd.DataFrame:
    """Every column that must be the same however often a sweep was interrupted, as text."""
    table = pd.read_csv(folder / "table.csv", dtype=str, keep_default_na=False)
    return table[[name for name in table if not name.startswith(CLOCK)]]


def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"nothing happened for {seconds:g} seconds"
        time.sleep(0.01)


class ColdCommand:
    """The command in an interpreter of its own, leader of its own process group."""

    def __init__(self, options: list[object], log: Path) -> None:
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lorascope", *typed(options)],
                env=environment(),
                cwd=Path(__file__).parents[2],
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.poll()

    def wait(self) -> int:
        return self.process.wait(timeout=300)


class WarmServer:
    """Starts the command from a process that has imported everything, so that a start costs milliseconds."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.sweeps.warm"],
            env=environment(),
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.ask() == "ready"

    def ask(self, **question: object) -> object:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if question:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, options: list[object], log: Path) -> WarmCommand:
        pid = self.ask(start=typed(options), log=str(log))
        assert isinstance(pid, int)
        return WarmCommand(self, pid)

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


class WarmCommand:
    """One command that a `WarmServer` started."""

    def __init__(self, server: WarmServer, pid: int) -> None:
        self.server = server
        self.pid = pid
        self.code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            found = self.server.ask(poll=self.pid)
            assert found is None or isinstance(found, int)
            self.code = found
        return self.code

    def wait(self) -> int:
        until(lambda: self.poll() is not None, 300)
        assert self.code is not None
        return self.code


def kill_group(command: ColdCommand | WarmCommand) -> None:
    """kill -9 of the command and everything it started."""
    os.killpg(command.pid, signal.SIGKILL)
    command.wait()
