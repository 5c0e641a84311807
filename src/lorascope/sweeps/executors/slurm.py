"""Cells as Slurm jobs, through submitit."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

from lorascope.core.errors import InputError
from lorascope.core.optional import require
from lorascope.sweeps.executors.protocol import Finished

CLUSTERS = ("slurm", "local", "debug")
_POLL_SECONDS = 0.2


def work_in_job(folder: str, name: str, seen: int) -> str:
    """`lorascope.sweeps.worker.work` with as many threads as the job has processors."""
    import torch

    from lorascope.sweeps.worker import work

    cores = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if cores.isdecimal():
        torch.set_num_threads(int(cores))
    return work(folder, name, seen)


def again(folder: str, name: str, seen: int) -> Any:
    """What submitit queues in place of a job that Slurm stops early: the same cell, from its last checkpoint."""
    submitit = require("submitit", install='"lorascope[slurm]"', purpose="the executor 'slurm'")
    return submitit.helpers.DelayedSubmission(work_in_job, folder, name, seen)


work_in_job.checkpoint = again  # type: ignore[attr-defined]


class SlurmExecutor:
    """Cells as Slurm jobs, one job a cell.

    The sweep's folder and lorascope's environment must be on a file system that the nodes share. Jobs that Slurm stops at
    the time limit or for another job are queued again, and go on from their last checkpoint.

    Args:
        folder: For the jobs' scripts and logs; None means ``jobs`` in the sweep's folder.
        cluster: ``slurm``; or submitit's ``local`` (processes) and ``debug`` (this process), to try things out.
        workers: Jobs in the queue at a time; None means all cells (``debug``: one).
        partition: Slurm's partition.
        minutes: Time limit of a job.
        cpus: Processors a job; None leaves it to Slurm.
        gpus: GPUs a job.
        memory: GiB of memory a job; None leaves it to Slurm.

    Raises:
        InputError: A number is out of range, the cluster is unknown, or Slurm is not here.
        MissingDependencyError: submitit is not installed.

    Example:
        >>> SlurmExecutor(cluster="local", workers=2).slots
        2
    """

    def __init__(
        self,
        folder: str | None = None,
        cluster: str = "slurm",
        workers: int | None = None,
        partition: str | None = None,
        minutes: int = 240,
        cpus: int | None = None,
        gpus: int | None = None,
        memory: float | int | None = None,
    ) -> None:
        for label, value in (("workers", workers), ("minutes", minutes), ("cpus", cpus)):
            if value is not None and value < 1:
                raise InputError(f"{label} {value} must be at least 1")
        for label, amount in (("gpus", gpus), ("memory", memory)):
            if amount is not None and not amount >= 0:
                raise InputError(f"{label} {amount} must be a number of at least 0")
        if cluster not in CLUSTERS:
            raise InputError(f"cluster '{cluster}' must be one of {', '.join(CLUSTERS)}")
        self._submitit: Any = require("submitit", install='"lorascope[slurm]"', purpose="the executor 'slurm'")
        self._folder = folder
        self._cluster = cluster
        self._workers = 1 if cluster == "debug" else workers or 1_000_000
        self._settings: dict[str, Any] = {
            "name": "lorascope",
            "timeout_min": minutes,
            "cpus_per_task": cpus,
            "gpus_per_node": gpus,
            "mem_gb": memory,
            "slurm_partition": partition,
        }
        self._executor: Any = None
        self._jobs: dict[str, Any] = {}
        self._stops = 0

    @property
    def slots(self) -> int:
        """Jobs in the queue at a time."""
        return self._workers

    def start(self) -> None:
        """Nothing: jobs need the folder, which the first one brings."""

    def submit(self, folder: str, name: str, seen: int) -> None:
        """Queue the cell's job.

        Raises:
            InputError: Slurm is not here, or refuses the job.
        """
        root = str(Path(folder).resolve())
        if self._executor is None:
            self._executor = self._make(self._folder or str(Path(root) / "jobs"))
        try:
            self._jobs[name] = self._executor.submit(work_in_job, root, name, seen)
        except self._submitit.core.utils.FailedJobError as error:
            raise InputError(f"Slurm refused the job: {' '.join(str(error).split())}") from error

    def wait(self, timeout: float) -> list[Finished]:
        """Cells whose job has ended."""
        end = time.monotonic() + timeout
        while True:
            done = [name for name, job in self._jobs.items() if job.done()]
            if done or time.monotonic() >= end or not self._jobs:
                return [self._ended(name, self._jobs.pop(name)) for name in done]
            time.sleep(min(_POLL_SECONDS, timeout))

    def stop(self) -> None:
        """Take waiting jobs from the queue and send Ctrl-C to running ones, which then save; asked again, cancel them."""
        self._stops += 1
        for job in self._jobs.values():
            if self._cluster == "slurm" and self._stops == 1:
                for how in ("--state=PENDING", "--signal=INT"):
                    subprocess.run(["scancel", how, str(job.job_id)], check=False, capture_output=True)
            else:
                job.cancel(check=False)

    def close(self) -> None:
        """Cancel what is left."""
        for job in self._jobs.values():
            job.cancel(check=False)
        self._jobs.clear()

    def _make(self, folder: str) -> Any:
        try:
            executor = self._submitit.AutoExecutor(folder=folder, cluster=self._cluster)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise InputError(f"no Slurm on this machine ({reason}): run this on a login node") from error
        executor.update_parameters(**{key: value for key, value in self._settings.items() if value is not None})
        return executor

    def _ended(self, name: str, job: Any) -> Finished:
        try:
            return Finished(name, job.result())
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = lines[-1] if lines else type(error).__name__
            return Finished(
                name, "lost", f"job {job.job_id} ended without a result ({reason[:300]}); see '{job.paths.stderr}'"
            )
