"""What an executor is: something that runs `lorascope.sweeps.worker.work` elsewhere and says how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable


@dataclass(frozen=True)
class Finished:
    """A cell that an executor is done with.

    Attributes:
        name: The cell.
        status: What `lorascope.sweeps.worker.work` returned, or ``lost`` if its process died first.
        reason: For ``lost``: how it died, and what to do about it.
    """

    name: str
    status: Literal["done", "failed", "held", "stopped", "lost"]
    reason: str = ""


@runtime_checkable
class Executor(Protocol):
    """Runs cells. One thread calls it; a subclass of `lorascope.testing.executors.ExecutorConformance` tests it."""

    @property
    def slots(self) -> int:
        """How many cells to hand over at a time."""

    def start(self) -> None:
        """Get ready, as far as that can go on in the background; called once before the first cell."""

    def submit(self, folder: str, name: str, seen: int) -> None:
        """Run ``work(folder, name, seen)`` somewhere, now or as soon as there is room."""

    def wait(self, timeout: float) -> list[Finished]:
        """Cells that have ended since the last call; waits at most that many seconds for the first."""

    def stop(self) -> None:
        """Ask all running cells to save a checkpoint and stop; `wait` then says ``stopped``. Again: stop at once."""

    def close(self) -> None:
        """End what is still running, and let go of the machines."""
