"""Executors by name."""

from __future__ import annotations

from typing import Any

from lorascope.core.errors import InputError, unknown_name
from lorascope.sweeps.executors.local import LocalExecutor
from lorascope.sweeps.executors.protocol import Executor
from lorascope.sweeps.executors.ray_cluster import RayExecutor
from lorascope.sweeps.executors.slurm import SlurmExecutor

EXECUTORS: dict[str, type[Any]] = {"local": LocalExecutor, "ray": RayExecutor, "slurm": SlurmExecutor}
"""Known executors."""


def make_executor(name: str, **options: Any) -> Executor:
    """Make an executor.

    Args:
        name: A name of `EXECUTORS`.
        options: What it takes; those that are None are left to its defaults.

    Returns:
        The executor, not started.

    Raises:
        InputError: The name is unknown, or an option is not one of this executor's.
        MissingDependencyError: The package that it needs is not installed.

    Example:
        >>> make_executor("local", workers=2).slots
        2
    """
    if name not in EXECUTORS:
        raise unknown_name("executor", name, EXECUTORS)
    given = {key: value for key, value in options.items() if value is not None}
    kind = EXECUTORS[name]
    taken = kind.__init__.__annotations__.keys() - {"return"}
    for key in given:
        if key not in taken:
            raise InputError(f"executor '{name}' has no option '{key}': it takes {', '.join(sorted(taken))}")
    executor: Executor = kind(**given)
    return executor
