"""What the results of the theory have in common: files, checks of arguments, words of warning."""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from typing import Any, ClassVar, TypeVar

from lorascope.core.errors import DataError, InputError, unknown_name

PENALTIES = ("nuclear", "frobenius")
ACTIVATIONS = ("linear", "softmax")
DATA = ("fresh", "reused", "recalibrated", "active")
Q0_UPDATE = 1.0
"""Squared norm of the target's update over d."""
JUMP_LIMIT = 0.2
"""Share of discontinuous proximal maps above which replica symmetry is not trusted."""
JUMP_LIMIT_SOFTMAX = 0.05
"""The same for softmax, where the share counts the sequences that have a second minimum."""
REUSE_LIMIT = 0.05
"""Share of the stage-1 sequences above which reusing them is not described."""
LARGEST_TOKENS = 16


R = TypeVar("R", bound="Record")


class Record:
    """A frozen dataclass of numbers that survives JSON."""

    kind: ClassVar[str]
    version: ClassVar[int] = 1

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls: type[R], values: dict[str, Any]) -> R:
        """Build a result from what `to_dict` made.

        Raises:
            DataError: It is something else, of another version, or has other fields.
        """
        if values.get("kind") != cls.kind or values.get("schema_version") != cls.version:
            raise DataError(f"no {cls.kind} of schema_version {cls.version}: make it again")
        given = {name: value for name, value in values.items() if name != "kind"}
        known = {item.name for item in fields(cls)}  # type: ignore[arg-type]
        if set(given) != known:
            odd = sorted(set(given) ^ known)
            raise DataError(f"{cls.kind} with missing or unknown fields {', '.join(odd)}: make it again")
        return cls(**given)


def above_zero(**values: float | int) -> None:
    """Refuse what is not a finite number above 0."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} {value} must be a number above 0")


def at_least_zero(**values: float | int) -> None:
    """Refuse what is not a finite number of at least 0."""
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"{name} {value} must be a number of at least 0")


def check_tokens(tokens: int, activation: str = "linear") -> None:
    """Refuse numbers of tokens that the theory has no equations for."""
    if activation not in ACTIVATIONS:
        raise unknown_name("activation", activation, ACTIVATIONS)
    if not 1 <= tokens <= LARGEST_TOKENS:
        raise InputError(f"tokens {tokens} must be from 1 to {LARGEST_TOKENS}")
    if activation == "softmax" and tokens != 2:
        raise InputError(f"tokens {tokens} with activation 'softmax': the equations are for tokens 2 only")


def check_samples(samples: int) -> None:
    """Refuse numbers of quasi-random points that are not a power of two."""
    if not 16 <= samples <= 2**20 or samples & (samples - 1):
        raise InputError(f"samples {samples} must be a power of two from 16 to 2**20")
