"""How many of the stage-1 sequences stage 2 may reuse: a small part, which depends on d."""

from __future__ import annotations

import math

from lorascope.core.errors import InputError
from lorascope.theory._record import REUSE_LIMIT, whole

REUSE_DIM = 200
"""Smallest d at which the theory of reused data is held against simulation (docs/benchmarks/theory_verification.md). Where
no d is named, a setting that needs a larger one is flagged."""
_ROUNDING = 1e-9


def smallest_dim(alpha: float | int, alpha_finetune: float | int) -> int:
    r"""The d from which on reusing :math:`\alpha' d` of :math:`\alpha d^2` sequences takes 5 % of them or less.

    .. math:: d \ge \alpha' / (0.05\, \alpha).

    Args:
        alpha: N / d^2 of stage 1.
        alpha_finetune: N' / d of stage 2.

    Example:
        >>> smallest_dim(0.3, 3.0), smallest_dim(0.01, 5.0)
        (200, 10000)
    """
    return max(2, math.ceil(alpha_finetune / (REUSE_LIMIT * alpha) * (1 - _ROUNDING)))


def reuse_warnings(alpha: float | int, alpha_finetune: float | int, dim: int | None) -> list[str]:
    """What stands against reusing sequences at a d, or against not saying at which d.

    Args:
        alpha: N / d^2 of stage 1.
        alpha_finetune: N' / d of stage 2.
        dim: d; None if none is meant.

    Raises:
        InputError: Stage 1 has fewer sequences than stage 2 wants.
    """
    needed = smallest_dim(alpha, alpha_finetune)
    if dim is None:
        if needed <= REUSE_DIM:
            return []
        return [
            f"below d = {needed:,} more than {REUSE_LIMIT:.0%} of the stage-1 sequences are reused, which is no small part "
            "(no d is given)"
        ]
    if whole("dim", dim) < 2:
        raise InputError(f"dim {dim} must be at least 2")
    share = alpha_finetune / (alpha * dim)
    if share > 1:
        raise InputError(
            f"data 'reused' needs {alpha_finetune * dim:.0f} sequences and stage 1 has {alpha * dim**2:.0f}: lower alpha"
        )
    if dim >= needed:
        return []
    return [f"{share:.1%} of the stage-1 sequences are reused, above {REUSE_LIMIT:.0%}: they are not a small part"]
