"""The processes that share a measurement, as ``accelerate launch`` or ``torchrun`` started them."""

from __future__ import annotations

import os

import torch
from accelerate import PartialState


def processes() -> PartialState | None:
    """The group of processes, set up on first use; None if there is just this one.

    On a machine without an accelerator accelerate joins the processes only when told that it is on a CPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    return PartialState(cpu=not torch.accelerator.is_available())


def is_main_process() -> bool:
    """Whether this process is the one that prints and writes."""
    group = processes()
    return group is None or bool(group.is_main_process)


def device() -> torch.device:
    """Where this process should put its model: the accelerator if there is one that computes in float64, as sums need."""
    group = processes()
    if group is not None:
        return torch.device(group.device)
    # A CUDA build names its accelerator also where there is no driver.
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if found is None or found.type == "mps" else found
