"""Runs on disk, one folder each, safe against interruption."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lorascope.core.errors import DataError, InputError
from lorascope.core.files import atomic_write_text, explain_write_errors
from lorascope.core.spec import dump_yaml
from lorascope.results.plain import plain
from lorascope.results.record import RunRecord

_RESULT = "result.json"
_METRICS = "metrics.jsonl"


class RunStore:
    """A folder of runs: ``ROOT/NAME/{spec.yaml, metrics.jsonl, result.json, adapter/}``.

    ``result.json`` is written last and by renaming, so that its presence means that the run is done. Runs share no
    file, so several processes can work on different runs of one store.

    Args:
        root: The folder; made when the first file is written.

    Example:
        >>> store = RunStore("out")
        >>> store.path("rank-4").as_posix()
        'out/rank-4'
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def path(self, name: str) -> Path:
        """The folder of a run (not made).

        Raises:
            InputError: The name cannot be that of one folder.
        """
        bad = name.strip() != name or name.startswith(".") or not 0 < len(name.encode()) <= 200
        if bad or any(char in '/\\:*?"<>|' or not char.isprintable() for char in name):
            raise InputError(f"bad run name {name!r}: use letters, digits, '-', '_' and '.', not starting with '.'")
        return self.root / name

    def is_done(self, name: str) -> bool:
        """Whether the run has its result."""
        return (self.path(name) / _RESULT).is_file()

    def write_spec(self, name: str, spec: Mapping[str, Any]) -> Path:
        """Write what was asked as ``spec.yaml``, whole or not at all.

        Raises:
            OutputError: The disk is full, or the place cannot be written.
        """
        path = self.path(name) / "spec.yaml"
        atomic_write_text(path, dump_yaml(plain(spec)))
        return path

    def append_metrics(self, name: str, values: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl`` and push it to the disk; a torn last line is cut off first.

        Raises:
            OutputError: The disk is full, or the place cannot be written.
        """
        path = self.path(name) / _METRICS
        line = json.dumps(plain(values), allow_nan=False, ensure_ascii=False).encode() + b"\n"
        with explain_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a+b") as file:
                file.seek(0)
                content = file.read()
                file.truncate(content.rfind(b"\n") + 1)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())

    def metrics(self, name: str) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``; none if there is no file. A torn last line is left out.

        Raises:
            DataError: A whole line is not a JSON mapping.
        """
        path = self.path(name) / _METRICS
        if not path.is_file():
            return []
        rows = []
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise DataError(f"'{path}' line {number} is not JSON ({error}): remove that line") from error
            if not isinstance(row, dict):
                raise DataError(f"'{path}' line {number} is not a mapping: remove that line")
            rows.append(row)
        return rows

    def finish(self, record: RunRecord) -> Path:
        """Write the result of a run, which makes it done.

        Raises:
            OutputError: The disk is full, or the place cannot be written.
        """
        return record.save(self.path(record.name) / _RESULT)

    def load(self, name: str) -> RunRecord:
        """Read the result of a run.

        Raises:
            DataError: It is missing, interrupted, foreign, or of another version.
        """
        return RunRecord.load(self.path(name) / _RESULT)

    def names(self) -> list[str]:
        """Names of the runs that are done, sorted.

        Raises:
            DataError: The store's folder does not exist.
        """
        if not self.root.is_dir():
            raise DataError(f"no results folder '{self.root}': give a folder that lorascope wrote")
        return sorted(
            path.parent.name for path in self.root.glob(f"*/{_RESULT}") if not path.parent.name.startswith(".")
        )

    def records(self) -> list[RunRecord]:
        """The results of all runs that are done: base first, then by rank, then by name.

        Raises:
            DataError: The folder does not exist, or a result is interrupted or foreign.
        """
        found = [self.load(name) for name in self.names()]
        return sorted(found, key=lambda record: (record.rank is None, record.rank or 0, record.name))

    def table(self) -> pd.DataFrame:
        """All runs as a table, one row each: name, model, task, rank and the totals."""
        return pd.DataFrame.from_records([_row(record) for record in self.records()])


def _row(record: RunRecord) -> dict[str, Any]:
    head = {
        "name": record.name,
        "model": record.spec.get("model"),
        "task": record.spec.get("task"),
        "rank": record.rank,
    }
    return {**head, **record.totals}
