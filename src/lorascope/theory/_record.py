"""What the results of the theory have in common: files, checks of arguments, words of warning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from numbers import Integral, Real
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
LONGEST_VALUE = 60
"""Characters of a wrong value that an error shows."""


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


def number(name: str, value: Any) -> float:
    """A finite number; text, None, True, arrays and the like are refused by name.

    Raises:
        InputError: It is something else, or not finite.

    Example:
        >>> number("alpha", 3)
        3.0
    """
    if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise InputError(f"{name} {shown(value)} must be a finite number")


def whole(name: str, value: Any) -> int:
    """A whole number.

    Raises:
        InputError: It is something else.
    """
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    raise InputError(f"{name} {shown(value)} must be a whole number")


def one_of(name: str, value: Any, known: Sequence[str]) -> str:
    """One of some words.

    Raises:
        InputError: It is not; the message lists them.
    """
    if isinstance(value, str) and value in known:
        return value
    raise unknown_name(name, value if isinstance(value, str) else shown(value), known)


def shown(value: Any) -> str:
    """A wrong value in one short line."""
    text = " ".join(str(value).split()) if isinstance(value, Real) else " ".join(repr(value).split())
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def above_zero(**values: Any) -> None:
    """Refuse what is not a finite number above 0."""
    for name, value in values.items():
        if not number(name, value) > 0:
            raise InputError(f"{name} {value} must be a number above 0")


def at_least_zero(**values: Any) -> None:
    """Refuse what is not a finite number of at least 0."""
    for name, value in values.items():
        if not number(name, value) >= 0:
            raise InputError(f"{name} {value} must be a number of at least 0")


def check_tokens(tokens: Any, activation: Any = "linear") -> None:
    """Refuse numbers of tokens that the theory has no equations for."""
    one_of("activation", activation, ACTIVATIONS)
    if not 1 <= whole("tokens", tokens) <= LARGEST_TOKENS:
        raise InputError(f"tokens {tokens} must be from 1 to {LARGEST_TOKENS}")
    if activation == "softmax" and tokens != 2:
        raise InputError(f"tokens {tokens} with activation 'softmax': the equations are for tokens 2 only")


def check_samples(samples: Any) -> None:
    """Refuse numbers of quasi-random points that are not a power of two."""
    if not 16 <= whole("samples", samples) <= 2**20 or samples & (samples - 1):
        raise InputError(f"samples {samples} must be a power of two from 16 to 2**20")
