"""What a run costs: seconds by stage, steps, tokens and memory, kept on disk so that an interruption loses little."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorascope.core.files import read_json, write_json

STAGES = ("training", "measuring", "evaluating")


class Costs:
    """Costs of a run so far, those of interrupted calls included as far as they were written.

    They are written whenever a checkpoint is, and after each stage; what a killed process did after that is not known.

    Args:
        path: File that keeps them while the run is under way; read if it is there.
        device: Where the model is.
        started: `time.perf_counter` when this call began.

    Attributes:
        values: ``seconds_training``, ``seconds_measuring``, ``seconds_evaluating`` and ``seconds_total`` (of all calls, with
            loading and saving), ``cpu_seconds_training`` (of all threads of this process; what the clock shows beyond that
            over ``threads``, on a machine without an accelerator, went to other programs), ``train_steps``,
            ``train_tokens_seen`` (without padding, a row counts once a pass) and ``peak_memory_bytes``: of the process in
            main memory, or of the tensors on a CUDA device.
    """

    def __init__(self, path: Path, device: torch.device, started: float) -> None:
        self.path = path
        self.device = device
        self.values: dict[str, float | int] = {f"seconds_{name}": 0.0 for name in (*STAGES, "total")}
        self.values.update(cpu_seconds_training=0.0, train_steps=0, train_tokens_seen=0, peak_memory_bytes=0)
        if path.is_file():
            self.values.update(read_json(path))
        if device.type == "cpu":
            self.values["threads"] = torch.get_num_threads()
        self._begun = started
        self._stage: str | None = None
        self._since = self._worked = 0.0
        reset_peak_memory(device)

    @contextlib.contextmanager
    def timing(self, stage: str) -> Iterator[None]:
        """Count the time in here as that of a stage, and write it down if the stage ends well."""
        self._stage, self._since, self._worked = stage, time.perf_counter(), time.process_time()
        try:
            yield
            self.save()
        finally:
            self._stage = None

    def trained(self, state: TrainerState) -> None:
        """Note how far training is."""
        self.values["train_steps"] = int(state.global_step)
        self.values["train_tokens_seen"] = int(state.num_input_tokens_seen)

    def to_dict(self) -> dict[str, float | int]:
        """The costs up to now."""
        now = time.perf_counter()
        if self._stage is not None:
            self.values[f"seconds_{self._stage}"] += now - self._since
            self._since = now
        if self._stage == "training":
            worked = time.process_time()
            self.values["cpu_seconds_training"] += worked - self._worked
            self._worked = worked
        self.values["seconds_total"] += now - self._begun
        self._begun = now
        self.values["peak_memory_bytes"] = max(int(self.values["peak_memory_bytes"]), peak_memory(self.device))
        return dict(self.values)

    def save(self) -> None:
        """Write the costs up to now."""
        write_json(self.path, self.to_dict())


class CostKeeper(TrainerCallback):
    """Writes the costs down with every checkpoint."""

    def __init__(self, costs: Costs) -> None:
        self.costs = costs

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """A checkpoint was written."""
        self.costs.trained(state)
        self.costs.save()
        return control

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """The last step was done."""
        self.costs.trained(state)
        return control


def reset_peak_memory(device: torch.device) -> None:
    """Forget the highest use of memory so far, where the system can (Linux, CUDA)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory(device: torch.device) -> int:
    """Bytes of memory in use at the highest, since `reset_peak_memory` or else since the process began.

    Args:
        device: CUDA counts the tensors on that device; any other the whole process in main memory.

    Returns:
        Bytes.

    Example:
        >>> peak_memory(torch.device("cpu")) > 10**6
        True
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(largest) if sys.platform == "darwin" else int(largest) * 1024
