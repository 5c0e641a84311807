"""The folder of a sweep: who may write what, so that nothing is lost and two sweeps can share it.

::

    DIR/sweep.yaml                what was asked last
    DIR/cells/NAME.json           one cell: its run, every setting filled in
    DIR/cells/NAME.lock           held by the process that works on the cell; the system frees it when that process dies
    DIR/cells/NAME.failure.json   why the last attempt failed
    DIR/cells/NAME.log            what the cell's processes printed
    DIR/runs/NAME/                the run, as `lorascope.training.run` writes it; result.json means done
    DIR/table.csv                 one row a cell
"""

from __future__ import annotations

import contextlib
import datetime
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from lorascope.core.errors import DataError, LorascopeError, OutputError
from lorascope.core.files import atomic_write_text, explain_write_errors, read_json, write_json
from lorascope.core.spec import dump_yaml, from_mapping, load_yaml
from lorascope.results import RunStore
from lorascope.sweeps.cells import Cell
from lorascope.sweeps.spec import SweepSpec

Status = Literal["done", "failed", "pending"]

_FAILURE = ".failure.json"
_TAIL = 12


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a cell failed.

    Attributes:
        name: The cell.
        reason: One line.
        attempt: How often the cell has failed, this time included.
        time: When, in ISO 8601 with the time zone.
        traceback: The last lines of the traceback; empty if the process died without one.
        schema_version: Version of this layout.
    """

    name: str
    reason: str
    attempt: int
    time: str
    traceback: tuple[str, ...] = ()
    schema_version: int = 1


def reason_of(error: BaseException) -> str:
    """One line that says what went wrong.

    Example:
        >>> reason_of(KeyError("loss"))
        "KeyError: 'loss'"
    """
    text = " ".join(str(error).split())
    if isinstance(error, LorascopeError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class SweepFolder:
    """A sweep on disk.

    Args:
        root: Its folder.

    Example:
        >>> SweepFolder("out").store.path("r16-s0").as_posix()
        'out/runs/r16-s0'
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.store = RunStore(self.root / "runs")
        self._cells: dict[str, Cell] = {}

    @classmethod
    def open(cls, root: str | Path) -> SweepFolder:
        """Open a sweep that is there.

        Raises:
            DataError: The folder holds no sweep.
        """
        folder = cls(root)
        if not (folder.root / "sweep.yaml").is_file():
            raise DataError(f"no sweep in '{root}': give a folder that  lorascope sweep  wrote (it has sweep.yaml)")
        return folder

    def claim(self, spec: SweepSpec) -> tuple[Cell, ...]:
        """Make the folder this sweep's, or add this sweep's cells to the ones that are there.

        Args:
            spec: The sweep.

        Returns:
            Its cells.

        Raises:
            InputError: A cell is refused.
            OutputError: The folder holds something else, or a sweep with another base.
        """
        cells = spec.expand()
        path = self.root / "sweep.yaml"
        with self.guard():
            if path.is_file():
                earlier = SweepSpec.from_mapping(load_yaml(path), source=str(path))
                if (changed := spec.base_difference(earlier)) is not None:
                    key, there, here = changed
                    raise OutputError(
                        f"'{self.root}' holds a sweep whose base has {key} {there!r}, not {here!r}: choose another "
                        f"--out, or put '{key}' into the grid"
                    )
            else:
                self._require_own()
            for cell in cells:
                if not self._cell_path(cell.name).is_file():
                    write_json(self._cell_path(cell.name), cell.to_dict())
            atomic_write_text(path, dump_yaml(spec.to_dict()))
        return cells

    def cell(self, name: str) -> Cell:
        """Read a cell.

        Raises:
            DataError: There is no such cell, or its file is damaged.
        """
        if name not in self._cells:
            path = self._cell_path(name)
            self._cells[name] = Cell.from_dict(_mapping(path), source=str(path))
        return self._cells[name]  # a cell never changes once it is written

    def cells(self) -> list[Cell]:
        """All cells that were ever asked for, in the order of rank, training rows, seed and name."""
        paths = (self.root / "cells").glob("*.json")
        names = [path.name.removesuffix(".json") for path in paths if not path.name.startswith(".")]
        found = [self.cell(name) for name in names if not name.endswith(_FAILURE.removesuffix(".json"))]
        return sorted(found, key=_order)

    def status(self, name: str) -> Status:
        """Whether a cell is done, has failed, or is neither."""
        if self.store.is_done(name):
            return "done"
        return "failed" if self._failure_path(name).is_file() else "pending"

    def is_settled(self, name: str) -> bool:
        """Whether a cell is done and nothing of an interrupted run is left to clear away."""
        folder = self.store.path(name)
        left = any((folder / part).exists() for part in ("checkpoints", "stages", ".adapter.tmp"))
        return self.store.is_done(name) and not left

    def failure(self, name: str) -> Failure | None:
        """Why the last attempt at a cell failed; None if it did not.

        Raises:
            DataError: The record is damaged.
        """
        path = self._failure_path(name)
        return from_mapping(Failure, _mapping(path), source=str(path)) if path.is_file() else None

    def attempts(self, name: str) -> int:
        """How often a cell has failed."""
        failure = self.failure(name)
        return 0 if failure is None else failure.attempt

    def fail(self, name: str, error: BaseException | str) -> Failure:
        """Record that a cell failed, whole or not at all.

        Args:
            name: The cell.
            error: What was raised, or the reason in words.

        Returns:
            The record.

        Raises:
            OutputError: The disk is full, or the place cannot be written.
        """
        if isinstance(error, str):
            reason, lines = " ".join(error.split()), []
        else:
            reason, lines = reason_of(error), "".join(traceback.format_exception(error)).splitlines()
        failure = Failure(
            name=name,
            reason=reason,
            attempt=self.attempts(name) + 1,
            time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            traceback=tuple(lines[-_TAIL:]),
        )
        write_json(self._failure_path(name), asdict(failure))
        return failure

    def forgive(self, name: str) -> None:
        """Drop the record of a failure, once the cell is done."""
        path = self._failure_path(name)
        with explain_write_errors(path):
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def working(self, name: str) -> Iterator[bool]:
        """Hold a cell, so that no other process works on it; False if another one does.

        The lock is the operating system's: it ends with the process, however that ends.
        """
        lock = self._lock(self.root / "cells" / f"{name}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def is_held(self, name: str) -> bool:
        """Whether a process works on a cell right now."""
        with self.working(name) as free:
            return not free

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Hold the files that all processes share: ``sweep.yaml`` and the table."""
        with self._lock(self.root / ".sweep.lock"):
            yield

    def log_path(self, name: str) -> Path:
        """Where a cell's processes print to."""
        return self.root / "cells" / f"{name}.log"

    def _lock(self, path: Path) -> FileLock:
        with explain_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path)

    def _cell_path(self, name: str) -> Path:
        self.store.path(name)  # refuses names that are not those of one folder
        return self.root / "cells" / f"{name}.json"

    def _failure_path(self, name: str) -> Path:
        return self.root / "cells" / f"{name}{_FAILURE}"

    def _require_own(self) -> None:
        """Refuse a folder with foreign files in it; what a killed sweep left before its first file is ours."""
        with explain_write_errors(self.root):
            for item in self.root.iterdir():
                if item.name != "cells" and not item.name.startswith((".sweep.lock", ".sweep.yaml.")):
                    raise OutputError(
                        f"output folder '{self.root}' is not empty and holds no sweep: choose another --out, or empty it"
                    )


def _mapping(path: Path) -> dict[str, Any]:
    values = read_json(path)
    if not isinstance(values, dict):
        raise DataError(f"'{path}' is not a record of lorascope: delete it")
    return values


def _order(cell: Cell) -> tuple[Any, ...]:
    limit = cell.spec.train_limit
    return cell.spec.rank, limit is None, limit or 0, cell.spec.seed, cell.name
