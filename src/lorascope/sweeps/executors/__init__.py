"""Where cells run: processes of this machine, a Ray cluster, or Slurm. All behind one protocol."""

from __future__ import annotations

from lorascope.sweeps.executors.local import LocalExecutor
from lorascope.sweeps.executors.make import EXECUTORS, make_executor
from lorascope.sweeps.executors.protocol import Executor, Finished
from lorascope.sweeps.executors.ray_cluster import RayExecutor
from lorascope.sweeps.executors.slurm import SlurmExecutor

__all__ = [
    "EXECUTORS",
    "Executor",
    "Finished",
    "LocalExecutor",
    "RayExecutor",
    "SlurmExecutor",
    "make_executor",
]
