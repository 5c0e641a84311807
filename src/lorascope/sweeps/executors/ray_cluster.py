"""Cells as tasks of a Ray cluster: placed by what they need, and started again when their worker dies."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from lorascope.core.errors import InputError
from lorascope.core.optional import require
from lorascope.sweeps.executors.local import threads_for, usable_cores
from lorascope.sweeps.executors.protocol import Finished

_KNOCK_SECONDS = 10.0


def work_in_ray(folder: str, name: str, seen: int, threads: int) -> str:
    """`lorascope.sweeps.worker.work` with as many threads as the task has processors."""
    import torch

    from lorascope.sweeps.worker import work

    torch.set_num_threads(threads)
    return work(folder, name, seen)


class RayExecutor:
    """Cells as Ray tasks.

    Every machine of the cluster needs lorascope installed and the sweep's folder on a shared file system. A worker that
    dies (too little memory, a machine that goes away) is replaced, and the cell goes on from its last checkpoint.

    Args:
        address: Of a cluster (``auto``, ``ray://HOST:PORT``); None starts Ray on this machine until `close`.
        workers: Cells at a time on this machine, without an address; None means one a core. With an address Ray starts
            as many as fit into the cluster.
        cpus: Processors a cell; None means the cores of this machine over ``workers``, or 1 with an address.
        gpus: GPUs a cell; parts of one are allowed.
        memory: GiB of memory a cell, for placing it; None means that memory does not matter.
        max_retries: How often a cell is started again after its worker died.

    Raises:
        InputError: A number is out of range.
        MissingDependencyError: Ray is not installed.

    Example:
        >>> RayExecutor(workers=2)  # doctest: +SKIP
    """

    def __init__(
        self,
        address: str | None = None,
        workers: int | None = None,
        cpus: int | None = None,
        gpus: float | int | None = None,
        memory: float | int | None = None,
        max_retries: int = 3,
    ) -> None:
        for label, value, least in (("workers", workers, 1), ("cpus", cpus, 1), ("max_retries", max_retries, 0)):
            if value is not None and value < least:
                raise InputError(f"{label} {value} must be at least {least}")
        for label, amount in (("gpus", gpus), ("memory", memory)):
            if amount is not None and not amount >= 0:
                raise InputError(f"{label} {amount} must be a number of at least 0")
        self._ray: Any = require("ray", install='"lorascope[ray]"', purpose="the executor 'ray'")
        cores = usable_cores()
        self._address = address
        self._workers = workers or (cores // cpus if cpus else cores)
        self._cpus = cpus or (1 if address is not None else threads_for(self._workers, cores))
        self._options: dict[str, Any] = {"num_cpus": self._cpus, "max_retries": max_retries}
        if gpus:
            self._options["num_gpus"] = gpus
        if memory:
            self._options["memory"] = int(memory * 2**30)
        self._tasks: dict[Any, str] = {}
        self._stops = 0
        self._own = False

    @property
    def slots(self) -> int:
        """Cells at a time: those of this machine, or twice what the cluster holds, so that none of it waits."""
        if self._address is None or not self._ray.is_initialized():
            return self._workers
        fit = [
            self._ray.cluster_resources().get(kind, 0.0) / amount
            for kind, amount in (("CPU", self._cpus), ("GPU", self._options.get("num_gpus", 0)))
            if amount
        ]
        return max(1, 2 * int(min(fit)))

    def start(self) -> None:
        """Connect to the cluster, or start Ray here.

        Raises:
            InputError: There is no cluster at the address.
        """
        if self._ray.is_initialized():
            return
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
        if self._address is None:
            options |= {"num_cpus": self._workers * self._cpus, "include_dashboard": False}
        else:
            options["address"] = self._address
        try:
            _knock(self._address)
            self._ray.init(**options)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"no Ray cluster at '{self._address}' ({reason}): start one with  ray start --head"
            ) from error
        self._own = True

    def submit(self, folder: str, name: str, seen: int) -> None:
        """Queue the cell's task."""
        task = self._ray.remote(**self._options)(work_in_ray)
        self._tasks[task.options(name=name).remote(str(Path(folder).resolve()), name, seen, self._cpus)] = name

    def wait(self, timeout: float) -> list[Finished]:
        """Cells whose task has ended."""
        if not self._tasks:
            return []
        ready, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=timeout)
        return [self._ended(task, self._tasks.pop(task)) for task in ready]

    def stop(self) -> None:
        """Cancel the tasks: Ray raises Ctrl-C in running ones, which then save; asked again, it kills them."""
        self._stops += 1
        for task in self._tasks:
            self._ray.cancel(task, force=self._stops > 1)

    def close(self) -> None:
        """Cancel what is left, and shut Ray down if it was started here."""
        for task in self._tasks:
            self._ray.cancel(task, force=True)
        self._tasks.clear()
        if self._own:
            self._ray.shutdown()
            self._own = False

    def _ended(self, task: Any, name: str) -> Finished:
        errors = self._ray.exceptions
        try:
            return Finished(name, self._ray.get(task))
        except (errors.TaskCancelledError, KeyboardInterrupt):
            return Finished(name, "stopped")
        except errors.RayError as error:
            if self._stops:
                return Finished(name, "stopped")
            reason = " ".join(str(error).split())
            return Finished(name, "lost", f"its Ray worker was lost: {reason[:300]}")


def _knock(address: str | None) -> None:
    """Find out in seconds whether anything listens at ``HOST:PORT``; Ray itself tries for minutes.

    Raises:
        OSError: Nothing does.
    """
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS).close()
