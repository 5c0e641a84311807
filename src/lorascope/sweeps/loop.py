"""The sweep itself: which cell is next, what came of it, and a table that is always up to date."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from lorascope.core.errors import LorascopeError
from lorascope.results import RunRecord
from lorascope.sweeps.executors import Executor, Finished, make_executor
from lorascope.sweeps.folder import SweepFolder
from lorascope.sweeps.spec import SweepSpec
from lorascope.sweeps.table import write_table

_WAIT_SECONDS = 1.0


@dataclass(frozen=True)
class Event:
    """Something that a person who watches a sweep wants to know.

    Attributes:
        kind: ``before`` (done or failed before this call), ``started``, ``done``, ``failed``, ``waiting`` (another
            process works on the cell) or ``stopping`` (Ctrl-C; no cell).
        name: The cell.
        reason: Why it failed.
        seconds: From hand-over to end, by the clock.
        settled: Cells that need no more work.
        total: All cells of the sweep.
    """

    kind: Literal["before", "started", "done", "failed", "waiting", "stopping"]
    name: str
    reason: str = ""
    seconds: float | None = None
    settled: int = 0
    total: int = 0


@dataclass(frozen=True)
class SweepOutcome:
    """What came of a sweep.

    Attributes:
        folder: Where it is.
        table: One row a cell; see `lorascope.sweeps.sweep_table`.
        done: Names of this sweep's cells that are done.
        failed: Name -> reason of those that failed.
    """

    folder: Path
    table: pd.DataFrame
    done: tuple[str, ...]
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def table_path(self) -> Path:
        """The table as CSV."""
        return self.folder / "table.csv"


def run_sweep(
    sweep: SweepSpec | str | Path,
    out_dir: str | Path,
    *,
    executor: str | Executor = "local",
    retry: bool = True,
    on_event: Callable[[Event], None] | None = None,
    **options: Any,
) -> SweepOutcome:
    """Run every cell of a sweep, or go on where an earlier call was interrupted.

    Cells that are done are kept; one that was interrupted goes on from its last checkpoint; one that fails is recorded
    with its reason, and the rest goes on. Several calls may work on one folder at the same time: a cell belongs to the
    process that holds its lock, and the others take other cells, then wait. ``table.csv`` is rewritten after every cell.

    Args:
        sweep: The sweep, or its YAML file.
        out_dir: Folder of the sweep; one with an earlier, smaller grid over the same base is added to.
        executor: ``local``, ``ray`` or ``slurm``, or an `Executor` of your own.
        retry: Whether cells that failed in an earlier call are tried again.
        on_event: Called with what happens.
        **options: For the executor by that name, for example ``workers=2``.

    Returns:
        The table, and which cells are done and failed.

    Raises:
        InputError: The sweep or an option is refused; nothing has run then.
        OutputError: The folder holds something else, or the disk is full.
        KeyboardInterrupt: Ctrl-C was pressed and the cells have saved; the same call goes on from there.

    Example:
        >>> outcome = run_sweep("sweep.yaml", "out", workers=2)  # doctest: +SKIP
        >>> outcome.table[["R", "D", "accuracy"]]  # doctest: +SKIP
    """
    spec = sweep if isinstance(sweep, SweepSpec) else SweepSpec.load(sweep)
    machines = make_executor(executor, **options) if isinstance(executor, str) else executor
    place = SweepFolder(Path(out_dir).resolve())
    names = [cell.name for cell in place.claim(spec)]
    return _Loop(place, names, machines, retry, on_event or (lambda event: None)).finish()


class _Loop:
    """One call of `run_sweep`: the cells that wait, and what is known of the others."""

    def __init__(
        self, place: SweepFolder, names: list[str], machines: Executor, retry: bool, tell: Callable[[Event], None]
    ) -> None:
        self.place = place
        self.names = names
        self.machines = machines
        self.tell = tell
        self.records: dict[str, RunRecord] = {}
        self.seen = {name: place.attempts(name) for name in names}
        self.queue: deque[str] = deque()
        self.elsewhere: dict[str, float] = {}
        self.started: dict[str, float] = {}
        self.settled: set[str] = set()
        for name in names:
            if place.is_settled(name) or (not retry and place.status(name) == "failed"):
                self.settled.add(name)
            else:
                self.queue.append(name)

    def finish(self) -> SweepOutcome:
        """Run what is left."""
        for name in self.names:
            if name in self.settled:
                self.say("before", name, self.reason(name))
        write_table(self.place, cache=self.records)
        if self.queue:
            with self.ended():
                self.machines.start()
                while self.queue or self.started or self.elsewhere:
                    self.hand_over()
                    self.collect()
        table = write_table(self.place, cache=self.records)
        failed = {name: self.reason(name) for name in self.names if self.place.status(name) == "failed"}
        done = tuple(name for name in self.names if self.place.status(name) == "done")
        return SweepOutcome(self.place.root, table, done, failed)

    def hand_over(self) -> None:
        """Give the executor as many cells as it takes."""
        now = time.monotonic()
        for name in [name for name, after in self.elsewhere.items() if after <= now]:
            del self.elsewhere[name]
            self.queue.append(name)
        while self.queue and len(self.started) < self.machines.slots:
            name = self.queue.popleft()
            if self.place.is_settled(name):
                self.close(name, "done")
            elif self.place.attempts(name) > self.seen[name]:
                self.close(name, "failed")
            elif self.place.is_held(name):
                self.postpone(name)
            else:
                self.started[name] = time.monotonic()
                self.say("started", name)
                self.machines.submit(str(self.place.root), name, self.seen[name])

    def collect(self) -> None:
        """Take what the executor is done with."""
        if not self.started:
            if self.elsewhere and not self.queue:
                time.sleep(_WAIT_SECONDS)
            return
        for cell in self.machines.wait(_WAIT_SECONDS):
            self.take(cell)

    def take(self, cell: Finished) -> None:
        """Act on how a cell ended."""
        seconds = time.monotonic() - self.started.pop(cell.name)
        if cell.status == "stopped":
            self.queue.append(cell.name)
            raise KeyboardInterrupt
        if cell.status == "held":
            self.postpone(cell.name)
            return
        if cell.status == "lost" and not self.place.store.is_done(cell.name):
            self.place.fail(cell.name, cell.reason)
        self.close(cell.name, "failed" if self.place.status(cell.name) == "failed" else "done", seconds)

    def close(self, name: str, kind: Literal["done", "failed"], seconds: float | None = None) -> None:
        """A cell needs no more work."""
        self.settled.add(name)
        write_table(self.place, cache=self.records)
        self.say(kind, name, self.reason(name), seconds)

    def postpone(self, name: str) -> None:
        """Look at a cell again later, which another process works on."""
        self.elsewhere[name] = time.monotonic() + _WAIT_SECONDS
        self.say("waiting", name)

    @contextlib.contextmanager
    def ended(self) -> Iterator[None]:
        """Stop the cells on Ctrl-C, and the executor in any case."""
        try:
            yield
        except KeyboardInterrupt:
            self.say("stopping", "")
            self.halt()
            raise
        finally:
            self.machines.close()
            with contextlib.suppress(LorascopeError):  # what ended the sweep is said instead; the next call writes it
                write_table(self.place, cache=self.records)

    def halt(self) -> None:
        """Let running cells save; a second Ctrl-C makes them stop at once."""
        running = set(self.started)
        for _ in range(2):
            try:
                self.machines.stop()
                while any(self.place.is_held(name) for name in running):
                    running -= {cell.name for cell in self.machines.wait(_WAIT_SECONDS)}
                return
            except KeyboardInterrupt:
                continue

    def reason(self, name: str) -> str:
        """Why a cell failed; empty if it did not."""
        failure = self.place.failure(name) if self.place.status(name) == "failed" else None
        return "" if failure is None else failure.reason

    def say(
        self,
        kind: Literal["before", "started", "done", "failed", "waiting", "stopping"],
        name: str,
        reason: str = "",
        seconds: float | None = None,
    ) -> None:
        """Tell who watches."""
        self.tell(Event(kind, name, reason, seconds, len(self.settled), len(self.names)))
