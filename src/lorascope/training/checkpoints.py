"""Which checkpoint can training go on from?

A checkpoint is several files that transformers writes one after the other, so a crash or a full disk can leave half of
one. Only whole ones are used. The files are inspected without unpickling anything; the Trainer then loads its own
``optimizer.pt``, ``scheduler.pt`` and ``rng_state.pth`` with ``torch.load(..., weights_only=True)``.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

_ARCHIVES = ("optimizer.pt", "scheduler.pt", "rng_state.pth")


@dataclass(frozen=True)
class Resume:
    """Where to go on from.

    Attributes:
        checkpoint: Newest whole checkpoint; None means start from the beginning.
        step: Optimiser steps that it has done.
        skipped: One sentence for each newer checkpoint that is not whole.
    """

    checkpoint: Path | None
    step: int
    skipped: tuple[str, ...]


def safetensors_fault(path: Path) -> str | None:
    """Why a safetensors file cannot be used, or None if its header and size agree.

    Example:
        >>> safetensors_fault(Path("missing.safetensors"))
        'missing.safetensors is missing'
    """
    if not path.is_file():
        return f"{path.name} is missing"
    try:
        with safe_open(str(path), framework="numpy"):
            return None
    except (SafetensorError, OSError) as error:
        return f"{path.name} is cut short or damaged ({' '.join(str(error).split())})"


def checkpoint_fault(folder: Path) -> str | None:
    """Why a checkpoint cannot be used, or None if it is whole.

    The state file is the last one that the Trainer writes; the weights' header must agree with the file's size; and the
    optimiser, the schedule and the random state must be whole archives (a cut archive has lost its directory, which is
    at the end).
    """
    fault = safetensors_fault(folder / "adapter_model.safetensors")
    if fault is not None:
        return fault
    for name in _ARCHIVES:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        try:
            with zipfile.ZipFile(path):
                pass
        except (zipfile.BadZipFile, OSError):
            return f"{name} is cut short or damaged"
    try:
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "trainer_state.json is missing"
    except (OSError, ValueError):
        return "trainer_state.json is cut short or damaged"
    if not isinstance(state, dict) or state.get("global_step") != _step(folder):
        return "trainer_state.json is of another step"
    return None


def find_resume(folder: Path, *, discard: bool = False) -> Resume:
    """Find the newest whole checkpoint in a folder.

    Args:
        folder: Where ``checkpoint-STEP`` folders are; it need not exist.
        discard: Whether to delete the broken ones, so that rotation never prefers them to a whole one.

    Returns:
        The checkpoint, its step, and what was skipped and why.
    """
    found = sorted(
        (path for path in folder.glob("checkpoint-*") if path.is_dir() and _step(path) is not None),
        key=lambda path: _step(path) or 0,
        reverse=True,
    )
    skipped: list[str] = []
    for path in found:
        fault = checkpoint_fault(path)
        if fault is None:
            return Resume(path, _step(path) or 0, tuple(skipped))
        skipped.append(f"skipping interrupted checkpoint '{path}': {fault}")
        if discard:
            shutil.rmtree(path, ignore_errors=True)
    return Resume(None, 0, tuple(skipped))


def _step(folder: Path) -> int | None:
    digits = folder.name.removeprefix("checkpoint-")
    return int(digits) if digits.isdecimal() else None
