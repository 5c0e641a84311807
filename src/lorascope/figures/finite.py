"""Numbers for figures: only finite ones are shown."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def number(value: Any) -> float | None:
    """The value as a float if it is a finite number, else None (for text, booleans, None, NaN and infinities)."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return None
    return float(value) if math.isfinite(value) else None
