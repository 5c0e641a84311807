"""Which settings a simulation refuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorascope.core.errors import InputError, unknown_name
from lorascope.simulation._model import (
    check,
)
from lorascope.simulation.adam import ADAM_STARTS, Adam
from lorascope.simulation.finetune import STARTS
from lorascope.theory._record import whole

PENALTIES = ("nuclear", "frobenius")


def seeds_of(seeds: int | Sequence[int]) -> list[int]:
    if isinstance(seeds, int):
        if seeds < 1:
            raise InputError(f"seeds {seeds} must be at least 1")
        return list(range(seeds))
    return list(seeds)


def check_pretrain(
    settings: dict[str, Any], dim: int, seeds: list[int], dtype: str, optimiser: Adam | None = None
) -> None:
    if whole("dim", dim) < 1:
        raise InputError(f"dim {dim} must be at least 1")
    lowest: dict[str, tuple[float | int, float | int]] = {"alpha": (settings["alpha"], 1 / dim**2)}
    lowest |= {
        "kappa0": (settings["kappa0"], 0.0),
        "noise": (settings["noise"], 0.0),
        "ridge": (settings["ridge"], 0.0),
    }
    check(
        dim=dim,
        tokens=settings["tokens"],
        seeds=seeds,
        activation=settings["activation"],
        dtype=dtype,
        at_least=lowest,
    )
    if settings["kappa0"] == 0:
        raise InputError("kappa0 0 leaves no target: give a number above 0")
    if settings["penalty"] not in PENALTIES:
        raise unknown_name("penalty", settings["penalty"], PENALTIES)
    if settings["penalty"] == "frobenius":
        if optimiser is not None:
            raise InputError(
                "Adam trains factors, whose decay is penalty 'nuclear': use that, or leave the optimiser out"
            )
        if settings["activation"] != "linear":
            raise InputError("penalty 'frobenius' is solved with activation 'linear' only: use penalty 'nuclear'")
        if settings["ridge"] == 0:
            raise InputError("ridge 0 with penalty 'frobenius' has no unique solution: give a number above 0")


def check_update(rank: int, start: str, starts: int, dim: int, optimiser: Adam | None = None) -> None:
    known = STARTS if optimiser is None else ADAM_STARTS
    if start not in known:
        raise unknown_name("start", start, known)
    if not 1 <= rank <= dim:
        raise InputError(f"rank {rank} must be from 1 to dim {dim}")
    if starts < 1:
        raise InputError(f"starts {starts} must be at least 1")
