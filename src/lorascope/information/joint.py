"""Mutual information of a discrete joint distribution, with bounds from the Jensen-Shannon divergence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from lorascope.core.errors import InputError
from lorascope.information._extreme import integrate_extreme
from lorascope.information._inputs import real_tensor
from lorascope.information.divergences import LN2, kappa, kl_generator_into

_CPU_BLOCK = 1 << 20  # bytes of one buffer: the working set stays in the cache
_GPU_BLOCK = 1 << 25
_LARGE = 1 << 16  # entries from which float32 logarithms pay
_FAR_ENOUGH = 2e-2  # mean of f_KL over a block from which sums of r ln r in float32 keep six digits
_FAST_ENOUGH = 1e-3  # mean of f_KL over a block from which the plain formula keeps 12 digits


@dataclass(frozen=True)
class MutualInformationBounds:
    """Mutual information of a joint distribution and what the Jensen-Shannon divergence says about it.

    Attributes:
        mi: I(O; L) = KL(P_OL || P_O P_L), nats, plug-in.
        js: JS(P_OL || P_O P_L), nats, in [0, ln 2].
        lower: (2 / ln 2) js, nats: never above ``mi``.
        upper: kappa(max_ratio) js, nats: never below ``mi``; finite even where the ratio is too large for a float.
        paper: ln(2) js, nats: the bound printed as Theorem 3 of arXiv:2501.03152, which is none.
        max_ratio: R, the largest P_OL / (P_O P_L) over all cells with P_O P_L > 0; dimensionless, at least 1, ``inf``
            above the largest float (1.8e308).
    """

    mi: float
    js: float
    lower: float
    upper: float
    paper: float
    max_ratio: float


JointLike = Tensor | npt.NDArray[Any] | Sequence[Any]


def mutual_information_bounds(joint: JointLike) -> MutualInformationBounds:
    r"""Mutual information of a joint distribution with its two valid Jensen-Shannon bounds.

    With r = P_OL / (P_O P_L) and w = P_O P_L, cell by cell: I = sum w f_KL(r) and JS = sum w f_JS(r), both sums of
    non-negative terms, and for R = max r

        (2 / ln 2) JS <= I <= kappa(R) JS     (nats).

    One pass in float64 over blocks of rows; no temporary as large as the joint. The order lower <= mi <= upper is
    kept to the last bit by moving a bound that rounding (relative size 1e-13) put on the wrong side onto ``mi``.

    Args:
        joint: Weights >= 0, two axes: a probability matrix or counts, any scale (normalised inside).

    Returns:
        The bounds, in nats.

    Raises:
        InputError: Not two-dimensional, empty, negative, infinite, NaN, or without any weight.

    Example:
        >>> bounds = mutual_information_bounds([[1, 0], [0, 1]])
        >>> round(bounds.mi, 6), bounds.max_ratio
        (0.693147, 2.0)

    References:
        The proof is in docs/science/information.md; the claim it corrects is Theorem 3 of arXiv:2501.03152.
    """
    return _bounds(*_integrate(*_checked(joint)))


def quick_mutual_information_bounds(joint: Tensor) -> MutualInformationBounds:
    """As `mutual_information_bounds`, with logarithms in float32 where the joint is large, float32 and far from independent.

    For the many large matrices of a measurement, whose own rounding is 6e-8: several times as fast, and equal to about
    1e-6 relative. Sums over rows stay in float64.

    Args:
        joint: As `mutual_information_bounds`.

    Returns:
        The bounds, in nats.

    Raises:
        InputError: As `mutual_information_bounds`.
    """
    matrix, peak = _checked(joint)
    quick = matrix.dtype == torch.float32 and matrix.numel() >= _LARGE and _scaled(matrix, peak) is matrix
    found = _integrate_blocks(matrix, torch.float32) if quick else None
    return _bounds(*(found or _integrate(matrix, peak)))


def _bounds(mi: float, js: float, ratio: float, log_ratio: float) -> MutualInformationBounds:
    ratio, js = max(ratio, 1.0), min(js, LN2)
    # Beyond the floats kappa(r) = (ln r - 1) / (ln 2 / 2) to the last digit.
    upper = (kappa(ratio) if ratio < math.inf else (log_ratio - 1.0) / (0.5 * LN2)) * js
    return MutualInformationBounds(mi, js, min(2.0 / LN2 * js, mi), max(upper, mi), LN2 * js, ratio)


def mutual_information(joint: JointLike) -> float:
    """Mutual information of a joint distribution; see `mutual_information_bounds`.

    Args:
        joint: Weights >= 0, two axes, any scale.

    Returns:
        I in nats, >= 0.

    Raises:
        InputError: Not two-dimensional, empty, negative, infinite, NaN, or without any weight.

    Example:
        >>> mutual_information([[1, 1], [1, 1]])
        0.0
    """
    return mutual_information_bounds(joint).mi


def _checked(joint: JointLike) -> tuple[Tensor, float]:
    """The joint as a float matrix, and its largest entry."""
    matrix = real_tensor(joint, "joint").detach()
    if matrix.ndim != 2 or matrix.numel() == 0:
        raise InputError(f"joint has shape {tuple(matrix.shape)}: pass a non-empty matrix, one row a value of O")
    if matrix.dtype not in (torch.float32, torch.float64):
        matrix = matrix.to(torch.float64)
    low, high = (float(x) for x in torch.aminmax(matrix))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError("joint has a NaN or infinite entry: pass finite probabilities or counts")
    if low < 0:
        raise InputError(f"joint has a negative entry ({low:g}): pass probabilities or counts >= 0")
    if high == 0:
        raise InputError("joint is all zero: pass at least one positive probability or count")
    return matrix, high


def _scaled(matrix: Tensor, peak: float) -> Tensor:
    """The matrix, times a power of two where its sums might leave the floats."""
    exponent = math.frexp(peak)[1]
    if abs(exponent) <= 60:
        return matrix
    half = -exponent // 2  # in two steps, because 2**1074 is not a float
    return matrix.to(torch.float64) * 2.0**half * 2.0 ** (-exponent - half)


def _blocks(matrix: Tensor, dtype: torch.dtype) -> list[slice]:
    size = _CPU_BLOCK if matrix.device.type == "cpu" else _GPU_BLOCK
    rows = max(1, size // (dtype.itemsize * matrix.shape[1]))
    return [slice(start, start + rows) for start in range(0, matrix.shape[0], rows)]


def _integrate(matrix: Tensor, peak: float) -> tuple[float, float, float, float]:
    """I, JS, max r and ln max r of a checked matrix, before any clamping."""
    scaled = _scaled(matrix, peak)
    whole = scaled is matrix or int(torch.count_nonzero(scaled)) == int(torch.count_nonzero(matrix))
    found = _integrate_blocks(scaled, torch.float64) if whole else None
    return found or integrate_extreme(matrix.to("cpu", torch.float64).numpy())


def _integrate_blocks(matrix: Tensor, dtype: torch.dtype) -> tuple[float, float, float, float] | None:
    """I, JS, max r and ln max r with the logarithms of that type; None where the type is too coarse.

    That is where a marginal is so small that ratios leave its range, and for float32 where a block is near independence.
    """
    blocks = _blocks(matrix, dtype)
    p_o = torch.cat([matrix[rows].sum(1, dtype=dtype) for rows in blocks]).double()
    p_l = torch.stack([matrix[rows].sum(0, dtype=dtype) for rows in blocks]).double().sum(0)
    total = float(p_o.sum())
    floor = total * (2.0**-900 if dtype == torch.float64 else 2.0**-60)
    if any(bool(((p > 0) & (p < floor)).any()) for p in (p_o, p_l)):
        return None
    # The floor now only stands for empty rows and columns, which get r = 0 and weight 0.
    weight_o, weight_l = p_o / total, p_l / total
    divide_o, divide_l = p_o.clamp(min=floor)[:, None], (p_l.clamp(min=floor) / total)[None, :]
    mi, js, ratio = 0.0, 0.0, 0.0
    divide_o, divide_l, mass_l = divide_o.to(dtype), divide_l.to(dtype), weight_l.to(dtype)
    buffers = torch.empty(5, len(matrix[blocks[0]]), matrix.shape[1], dtype=dtype, device=matrix.device)
    for rows in blocks:
        w, source = weight_o[rows], matrix[rows]
        u, g, *_ = work = buffers[:, : len(source)]
        torch.div(source.to(dtype), divide_o[rows], out=u).div_(divide_l)
        ratio, mass = max(ratio, float(u.amax())), float(w.sum())
        block_mi = _entropic(w, u, g, mass_l) if dtype == torch.float32 else 0.0
        if block_mi >= _FAR_ENOUGH * mass:
            half = _entropic(w, u.add_(1.0).mul_(0.5), g, mass_l)
        else:
            u.sub_(1.0)
            block_mi = _weighted(w, kl_generator_into(u, g, work[2:], near_one=False), mass_l)
            near_one = block_mi < _FAST_ENOUGH * mass
            if near_one and dtype == torch.float32:
                return None
            if near_one:
                block_mi = _weighted(w, kl_generator_into(u, g, work[2:], near_one=True), mass_l)
            u.mul_(0.5)
            half = _weighted(w, kl_generator_into(u, g, work[2:], near_one=near_one), mass_l)
        mi += block_mi
        js += 0.5 * block_mi - half
    return max(mi, 0.0), max(js, 0.0), ratio, math.log(ratio)


def _entropic(rows: Tensor, r: Tensor, out: Tensor, columns: Tensor) -> float:
    """sum_ij rows_i f_KL(r_ij) columns_j by the plain formula, in few passes; the error is that of r and of ln r."""
    torch.clamp(r, min=torch.finfo(r.dtype).tiny, out=out).log_().mul_(r)
    linear = (r.mv(columns) - columns.sum()).double()  # sum of r - 1, from the same roundings as those of r ln r
    return float(torch.dot(rows, out.mv(columns).double() - linear))


def _weighted(rows: Tensor, values: Tensor, columns: Tensor) -> float:
    """sum_ij rows_i values_ij columns_j, the sum over rows in float64."""
    return float(torch.dot(rows, values.mv(columns).double()))
