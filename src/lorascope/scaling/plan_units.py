"""Budgets as people write them: '2e15 FLOPs', '30min', '4GB', '20MB adapter'."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from lorascope.core.errors import InputError

_PREFIX = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18}
_SECONDS = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
}
_LABELS = {"flops": "FLOPs", "seconds": "s of training", "memory": "bytes of memory", "adapter": "bytes of adapter"}


@dataclass(frozen=True)
class Budget:
    """A limit on one kind of cost.

    Attributes:
        kind: ``flops``, ``seconds``, ``memory`` or ``adapter`` (bytes both).
        amount: The limit, in FLOPs, seconds or bytes.
        text: As it was written.
    """

    kind: str
    amount: float
    text: str

    @property
    def label(self) -> str:
        """The limit's unit in words."""
        return _LABELS[self.kind]


def parse_budget(text: str | float | int | Budget) -> Budget:
    """Read a budget.

    Args:
        text: A number with a unit: FLOPs with k, M, G, T, P or E before them (``2e15 FLOPs``, ``3 PFLOPs``), time (``90s``,
            ``30min``, ``2h``, ``1d``), or bytes of peak memory (``4GB``, ``512MiB``); bytes followed by ``adapter`` limit
            the adapter's file. A bare number is FLOPs.

    Returns:
        The budget.

    Raises:
        InputError: The number is not above 0, or the unit is unknown.

    Example:
        >>> parse_budget("30min").amount, parse_budget("20MB adapter").kind
        (1800.0, 'adapter')
    """
    if isinstance(text, Budget):
        return text
    found = re.fullmatch(
        r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*(memory|adapter|)\s*",
        str(text).replace(",", "").replace("_", ""),
        re.IGNORECASE,
    )
    if found is None or isinstance(text, bool):
        raise InputError(
            f"budget '{text}' is not a number with a unit: write '2e15 FLOPs', '30min', '4GB' or '20MB adapter'"
        )
    number, unit, what = float(found[1]), found[2].lower(), found[3].lower()
    if unit in ("memory", "adapter"):
        unit, what = "", unit
    if not (math.isfinite(number) and number > 0):
        raise InputError(f"budget '{text}' must be above 0")
    size = re.fullmatch(r"(k|m|g|t|)(i?)b(?:ytes?)?", unit)
    operations = re.fullmatch(r"(k|m|g|t|p|e|)flops?", unit)
    if size is not None:
        factor = 1024.0 ** ("kmgt".index(size[1]) + 1) if size[2] and size[1] else _PREFIX[size[1]]
        return Budget(what or "memory", number * factor, str(text))
    if what:
        raise InputError(f"budget '{text}' needs bytes for '{what}': write '4GB {what}'")
    if operations is not None:
        return Budget("flops", number * _PREFIX[operations[1]], str(text))
    if unit in _SECONDS:
        return Budget("seconds", number * _SECONDS[unit], str(text))
    if not unit:
        return Budget("flops", number, str(text))
    raise InputError(f"budget '{text}' has the unknown unit '{found[2]}': use FLOPs (TFLOPs ...), s, min, h, MB or GB")
