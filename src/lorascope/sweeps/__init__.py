"""Grids of runs: resumable, on this machine, a Ray cluster or Slurm, with one table in the end."""

from __future__ import annotations

from lorascope.sweeps.cells import Cell, cell_name
from lorascope.sweeps.executors import EXECUTORS, Executor, Finished, LocalExecutor, RayExecutor, SlurmExecutor
from lorascope.sweeps.folder import Failure, SweepFolder
from lorascope.sweeps.loop import Event, SweepOutcome, run_sweep
from lorascope.sweeps.spec import SweepSpec
from lorascope.sweeps.table import COSTS, HEAD, sweep_table, write_table

__all__ = [
    "COSTS",
    "EXECUTORS",
    "HEAD",
    "Cell",
    "Event",
    "Executor",
    "Failure",
    "Finished",
    "LocalExecutor",
    "RayExecutor",
    "SlurmExecutor",
    "SweepFolder",
    "SweepOutcome",
    "SweepSpec",
    "cell_name",
    "run_sweep",
    "sweep_table",
    "write_table",
]
