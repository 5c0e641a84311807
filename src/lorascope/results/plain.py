"""Values that JSON can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lorascope.core.errors import InputError


def plain(value: Any) -> Any:
    """Turn a value into what strict JSON can hold.

    NaN and infinities become None, since JSON has neither; NumPy scalars and arrays become numbers and lists; paths
    become text; keys become text.

    Args:
        value: Any nest of mappings, sequences and scalars.

    Returns:
        The same nest in dict, list, str, int, float, bool and None.

    Raises:
        InputError: A value of another type is inside.

    Example:
        >>> plain({"ce": float("nan"), "ranks": (4, 16)})
        {'ce': None, 'ranks': [4, 16]}
    """
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    raise InputError(
        f"a result cannot hold {value!r} of type {type(value).__name__}: give numbers, text, lists or mappings"
    )
