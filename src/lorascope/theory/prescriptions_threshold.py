"""How many fine-tuning sequences are needed: the Bayes threshold of weak recovery, and what an alignment costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.core.errors import InputError
from lorascope.theory._prox import sobol_normals, symmetric
from lorascope.theory._record import JUMP_LIMIT, Record, above_zero, at_least_zero, check_samples, check_tokens
from lorascope.theory._rows import SECOND, Row, best_ridge, flags, logarithmic, lost
from lorascope.theory.finetuned import FineTuned
from lorascope.theory.finetuning import finetune

Array = NDArray[np.float64]
TARGETS = (0.8, 0.9, 0.95, 0.98)
SLOPE = 0.8
"""Of the contour's arms, below 1."""
DEEP = 40.0
"""The integrand is followed until it has fallen by exp(-40)."""


@dataclass(frozen=True, kw_only=True)
class Thresholds(Record):
    """Sample sizes of stage 2, as N' / d.

    Attributes:
        tokens: T.
        noise: Dn, the variance of the residual.
        ridge: lambda'; None where each point has its best.
        weak: Bayes threshold of weak recovery: below it no method that is local around ignorance finds the direction.
        weak_error: Standard error of ``weak`` from the quasi-random average.
        trusted: Smallest N' / d of the curve from which on every larger one is free of warnings; None if there is none.
        reached: One row a target alignment: ``alignment``, ``alpha_finetune`` (None where the curve does not reach it) and
            ``warnings``.
        rows: Stage 2 along N' / d.
        warnings: Why a number is not to be trusted.
        schema_version: Version of this layout.
    """

    tokens: int
    noise: float
    ridge: float | None
    weak: float
    weak_error: float
    trusted: float | None
    reached: list[Row]
    rows: list[Row]
    warnings: list[str] = field(default_factory=list)
    schema_version: int = 1

    kind: ClassVar[str] = "thresholds"


def weak_threshold(
    *, tokens: int, noise: float | int, samples: int = 2**13, seed: int = 0, nodes: int = 100
) -> tuple[float, float]:
    r"""The Bayes threshold of weak recovery of stage 2, and its standard error.

    .. math:: \alpha'_c = 1 / E_y \left| E[\chi\chi^T - I \mid y] \right|_F^2, \qquad y = \chi\chi^T - I + \nu,

    with standard normal fields and :math:`\nu` of variance (1 + delta_ab) Dn. In the eigenbasis of A = I + y the posterior
    :math:`\exp(-|\chi|^2/2 + \chi^T A \chi / (2 D_n) - |\chi|^4/(4 D_n))` is even in each component, so that only
    :math:`E[\chi_i^2 | y]` is needed. With a shift c and
    :math:`e^{-(|\chi|^2-c)^2/(4D_n)} = E_g\, e^{i g (|\chi|^2 - c)/\sqrt{2 D_n}}` the components come apart:

    .. math:: E[\chi_i^2|y] = \frac{E_g\, e^{-igc/\sqrt{2D_n}} \prod_j k_j^{-1/2} / k_i}
              {E_g\, e^{-igc/\sqrt{2D_n}} \prod_j k_j^{-1/2}}, \qquad k_j = 1 + (c - a_j)/D_n - i g \sqrt{2/D_n},

    where c solves :math:`c = \sum_j 1/(1 + (c - a_j)/D_n)`, which makes g = 0 the saddle point. This holds for any T;
    `lorascope.theory.weak_recovery` sums the same posterior on a grid for T up to 3, and is an independent check.

    Args:
        tokens: T.
        noise: Dn, above 0.
        samples: Quasi-random draws of y, a power of two; eight scramblings share them.
        seed: Of the scrambling.
        nodes: Of the integral over g.

    Returns:
        The threshold N' / d and its standard error.

    Raises:
        InputError: A value is out of range.

    Example:
        >>> round(weak_threshold(tokens=2, noise=0.7, samples=2048)[0], 2)
        0.22
    """
    check_tokens(tokens)
    above_zero(noise=noise)
    check_samples(samples)
    parts = []
    count = max(samples // 8, 16)
    for index in range(8):
        z = sobol_normals(tokens + tokens * (tokens + 1) // 2, count, seed + index)
        chi = z[:, :tokens]
        a = chi[:, :, None] * chi[:, None, :] + math.sqrt(noise) * symmetric(z[:, tokens:], tokens)
        second = posterior_squares(np.linalg.eigvalsh(a).astype(np.float64), float(noise), nodes)
        parts.append(float(((second - 1) ** 2).sum(1).mean()))
    mean = float(np.mean(parts))
    return 1 / mean, float(np.std(parts, ddof=1) / math.sqrt(8)) / mean**2


def posterior_squares(a: Array, noise: float, nodes: int = 100) -> Array:
    """E[chi_i^2 | y] in the eigenbasis of I + y with eigenvalues ``a`` of (n, T); see `weak_threshold`."""
    tokens = a.shape[1]
    low = a.max(1) - noise
    below, above = np.maximum(low, 0.0) + 1e-14, np.maximum(low, 0.0) + tokens * (1 + noise) + 1.0
    for _ in range(80):  # c minus the sum rises, from minus infinity at the lower end
        middle = (below + above) / 2
        gap = 1 + (middle[:, None] - a) / noise
        high = middle - (1 / np.maximum(gap, 1e-300)).sum(1) > 0
        above, below = np.where(high, middle, above), np.where(high, below, middle)
    c = (above + below) / 2
    real = np.maximum(1 + (c[:, None] - a) / noise, 1e-12)
    # The branch points lie on the negative imaginary axis, where exp(-i g c / sqrt(2 D)) falls: a hyperbola that opens
    # downwards from 0 neither oscillates nor crosses the cut. Its other half is the complex conjugate.
    width = 1 / np.sqrt(1 + (1 / (noise * real**2)).sum(1))
    pull = SLOPE * c / math.sqrt(2 * noise)
    reach = 2 * DEEP / (pull + np.sqrt(pull**2 + 2 * DEEP * (1 - SLOPE**2)))
    t = np.arcsinh(reach / width)[:, None] * (np.arange(nodes) + 0.5)[None, :] / nodes
    g = width[:, None] * (np.sinh(t) - 1j * SLOPE * (np.cosh(t) - 1))
    k = real[:, :, None] - 1j * math.sqrt(2 / noise) * g[:, None, :]
    logs = -0.5 * (np.log(k) - np.log(real)[:, :, None]).sum(1) - g * g / 2 - 1j * g * c[:, None] / math.sqrt(2 * noise)
    weight = np.exp(logs) * (np.cosh(t) - 1j * SLOPE * np.sinh(t))
    found: Array = (weight[:, None, :] / k).sum(2).real / weight.sum(1).real[:, None]
    return found


def thresholds(
    *,
    tokens: int,
    noise: float | int,
    ridge: float | int | None = 0.5,
    targets: Sequence[float | int] = TARGETS,
    lowest: float | int | None = None,
    highest: float | int = 10.0,
    points: int = 25,
    samples: int | None = None,
    progress: bool = False,
) -> Thresholds:
    """The sample-complexity curve of stage 2 at a residual noise, with its thresholds.

    Args:
        tokens: T.
        noise: Dn, the residual's variance: `Pretrained.delta_eff` for fresh data, ``delta_reuse`` for reused data.
        ridge: lambda'; None for the best at each point.
        targets: Alignments whose sample sizes are wanted.
        lowest: Smallest N' / d of the curve; by default the threshold of weak recovery.
        highest: Largest.
        points: Of the curve, from the largest down.
        samples: Quasi-random points.
        progress: Show a progress bar.

    Returns:
        Thresholds and the curve. Points with warnings count for no target.

    Raises:
        InputError: A value is out of range.
    """
    from tqdm.auto import tqdm

    check_tokens(tokens)
    above_zero(noise=noise)
    for target in targets:
        if not 0 < target < 1:
            raise InputError(f"target {target} must be an alignment between 0 and 1")
    weak, weak_error = weak_threshold(tokens=tokens, noise=noise)
    at_least_zero(highest=highest)
    start = weak if lowest is None else float(lowest)
    places = logarithmic(start, highest, points)
    rows: list[Row] = []
    near: FineTuned | None = None
    for alpha in tqdm(places[::-1], desc="sample sizes", unit="point", disable=not progress):
        found = _solve(float(alpha), tokens, float(noise), ridge, samples, near)
        near = found if found.converged and found.q > 1e-3 else None
        rows.append(_row(found))
    rows.reverse()
    trusted = None
    for row in reversed(rows):
        if row["warnings"]:
            break
        trusted = row["alpha_finetune"]
    reached = [_reached(float(target), rows) for target in sorted(targets)]
    return Thresholds(
        tokens=tokens,
        noise=float(noise),
        ridge=None if ridge is None else float(ridge),
        weak=weak,
        weak_error=weak_error,
        trusted=trusted,
        reached=reached,
        rows=rows,
        warnings=flags(rows),
    )


def _solve(
    alpha: float, tokens: int, noise: float, ridge: float | int | None, samples: int | None, near: FineTuned | None
) -> FineTuned:
    def solve(value: float, start: FineTuned | None, size: int | None) -> FineTuned:
        return finetune(alpha=alpha, tokens=tokens, noise=noise, ridge=value, samples=size, start=start)

    if ridge is None:
        ridge, near = best_ridge(lambda value, start: solve(value, start, 2**11), near)
    found = solve(float(ridge), near, samples)
    return found if found.converged or near is None else solve(float(ridge), None, samples)


def _row(found: FineTuned) -> Row:
    row: dict[str, Any] = {"alpha_finetune": found.alpha, "ridge_finetune": found.ridge}
    row |= {name: getattr(found, name) for name in SECOND}
    return {**row, "converged": found.converged, "warnings": [*found.warnings, *lost(found)]}


def _reached(target: float, rows: Sequence[Row]) -> Row:
    """Where the curve crosses an alignment for the last time, between neighbours on a logarithmic axis."""
    place, words = None, [f"alignment {target:g} is not reached up to alpha' = {rows[-1]['alpha_finetune']:g}"]
    if rows[-1]["alignment"] >= target:
        index = len(rows) - 1
        while index > 0 and rows[index - 1]["alignment"] >= target:
            index -= 1
        high = rows[index]
        words = list(high["warnings"])
        if index == 0:
            place = high["alpha_finetune"]
            words.append(f"already reached at the smallest alpha' of the curve, {place:g}")
        else:
            low = rows[index - 1]
            share = (target - low["alignment"]) / (high["alignment"] - low["alignment"])
            place = low["alpha_finetune"] * (high["alpha_finetune"] / low["alpha_finetune"]) ** share
            words += [word for word in low["warnings"] if low["jump"] <= JUMP_LIMIT or share < 0.5]
    return {"alignment": target, "alpha_finetune": place, "warnings": list(dict.fromkeys(words))}
