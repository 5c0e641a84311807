"""What a worker does with one cell. Workers on any machine get two texts and a number, and find the rest in the folder."""

from __future__ import annotations

from typing import Literal

from lorascope.sweeps.folder import SweepFolder
from lorascope.training import run

Result = Literal["done", "failed", "held", "stopped"]


def work(folder: str, name: str, seen: int) -> Result:
    """Run a cell, or go on where an earlier attempt stopped, and leave its record behind.

    Whatever goes wrong inside the run is recorded and does not leave this function, so that the other cells go on.

    Args:
        folder: Folder of the sweep.
        name: The cell.
        seen: How many failures of this cell the sweep knew of when it sent it here.

    Returns:
        ``done``; ``failed`` (here, or meanwhile elsewhere; the reason is recorded); ``held`` if another process works
        on it; ``stopped`` after Ctrl-C, when the same call goes on from the last checkpoint.

    Raises:
        OutputError: Not even the failure could be recorded.
    """
    place = SweepFolder(folder)
    with place.working(name) as free:
        if not free:
            return "held"
        if place.attempts(name) > seen and not place.store.is_done(name):
            return "failed"
        try:
            run(place.cell(name).spec, place.store.path(name), progress=False)
        except KeyboardInterrupt:
            return "stopped"
        except Exception as error:
            place.fail(name, error)
            return "failed"
        place.forgive(name)
        return "done"
