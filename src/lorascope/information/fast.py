"""Jensen-Shannon divergence between softmaxes of raw outputs: the inner loop of a measurement.

Both accuracy and cost matter here. A trained adapter often moves a layer by 1e-6 nats, far below what the difference
of two float32 entropies can show, and the sum runs over every feature of every token of every layer. So the formula
has no cancellation, and on a CPU it works through blocks that stay in cache, in buffers that are used again.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lorascope.core.errors import InputError

_BLOCK_ELEMENTS = 1 << 18
"""Numbers in one block of rows: a block and its two buffers fit the caches of a current processor."""

_POLYNOMIALS = (
    (0.01, (0.49999958052480037, 0.08366835055860358)),
    (0.2, (0.4999998067657293, 0.08336362640925561, 0.03260106006091237, 0.023336409222690722)),
)
"""Chebyshev fits of h(t) / t^2 in y = t^2, each up to the y it is good for; relative error below 9e-7."""


def probability_jensen_shannon(p: Float[Tensor, "rows d"], q: Float[Tensor, "rows d"]) -> Float[Tensor, " rows"]:
    """Jensen-Shannon divergence of two batches of distributions, without cancellation.

    With s = p + q and t = (p - q) / s, the divergence is JS = 1/2 sum s h(t), where
    h(t) = 1/2 [(1+t) ln(1+t) + (1-t) ln(1-t)] = sum_k t^(2k) / (2k (2k-1)). Every term is non-negative, so nothing
    cancels however close p and q are. While all t are small, h(t) / t^2 is a short polynomial; other blocks use
    1/2 sum [p ln(1+t) + q ln(1-t)], the same sum in another form.

    Args:
        p: Probabilities, rows summing to one, float32 or float64.
        q: Probabilities of the same shape and type.

    Returns:
        JS in nats, one per row, in [0, ln 2]; NaN for rows that hold a NaN.

    Raises:
        InputError: The shapes differ, or are not those of matrices.

    Example:
        >>> probability_jensen_shannon(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
        tensor([0.6931])
    """
    return _blockwise(p, q, softmax=False)


def softmax_jensen_shannon(o: Float[Tensor, "rows d"], l: Float[Tensor, "rows d"]) -> Float[Tensor, " rows"]:  # noqa: E741
    """JS(softmax(o) || softmax(l)) over the features of each row (Eq. 9 of arXiv 2501.03152 for one component).

    See `probability_jensen_shannon` for the formula.

    Args:
        o: Frozen outputs of a layer, any float type; half precision is widened to float32.
        l: Adapted outputs, same shape and type.

    Returns:
        JS in nats, one per row, in [0, ln 2]; float32, or float64 for float64 input. Rows that hold a NaN or a positive
        infinity give NaN: the model that made them is broken.

    Raises:
        InputError: The shapes differ, or are not those of matrices.

    Example:
        >>> softmax_jensen_shannon(torch.zeros(1, 4), torch.zeros(1, 4))
        tensor([0.])

    References:
        arXiv 2501.03152, Eq. 9.
    """
    return _blockwise(o, l, softmax=True)


def _blockwise(a: Tensor, b: Tensor, *, softmax: bool) -> Tensor:
    if a.shape != b.shape or a.dim() != 2:
        raise InputError(
            f"shapes {tuple(a.shape)} and {tuple(b.shape)}: give two matrices (rows, features) of one shape"
        )
    dtype = torch.float64 if a.dtype == torch.float64 else torch.float32
    rows, d = a.shape
    out = torch.empty(rows, dtype=dtype, device=a.device)
    if rows == 0 or d == 0:
        return out.zero_()
    near = a.device.type == "cpu" and dtype == torch.float32  # a GPU would have to wait for the largest t
    step = min(rows, max(1, _BLOCK_ELEMENTS // d)) if a.device.type == "cpu" else rows
    buffers = torch.empty(2, step, d, dtype=dtype, device=a.device)
    for start in range(0, rows, step):
        block = slice(start, start + step)
        s, x = buffers[:, : min(step, rows - start)]
        p, q = a[block].to(dtype), b[block].to(dtype)
        js = None
        if near:
            if softmax:
                js = _near(torch.softmax(p, dim=-1, out=s), torch.softmax(q, dim=-1, out=x), s, x)
            else:
                js = _near(p, q, s, x)
        if js is None:
            if softmax:
                p, q = torch.softmax(p, dim=-1), torch.softmax(q, dim=-1)
            js = _far(p, q, s, x)
        out[block] = js
    return out


def _near(p: Tensor, q: Tensor, m: Tensor, x: Tensor) -> Tensor | None:
    """JS of a block by a polynomial, or None where some t is too large; ``m`` and ``x`` may be ``p`` and ``q``."""
    torch.sub(p, q, out=x)
    torch.sub(p, x, alpha=0.5, out=m)  # the mean of p and q
    y = x.div_(m).square_()  # (2t)^2
    largest = float(y.amax()) / 4
    if math.isnan(largest):  # features that underflow in both give 0/0, and have no weight
        largest = float(y.nan_to_num_(nan=0.0).amax()) / 4
    fits = [coefficients for limit, coefficients in _POLYNOMIALS if largest <= limit]
    if not fits:
        return None
    first, *others = fits[0]
    js: Tensor = torch.linalg.vecdot(m, y).mul_(first / 4)
    for power, coefficient in enumerate(others, start=2):
        js.add_(torch.linalg.vecdot(m.mul_(y), y), alpha=coefficient / 4**power)
    return js


def _far(p: Tensor, q: Tensor, s: Tensor, x: Tensor) -> Tensor:
    """JS of a block by logarithms, which holds everywhere; ``s`` and ``x`` are buffers."""
    # Features that underflow in both have s = 0 and no weight; t = +-1 would give 0 times infinity.
    torch.add(p, q, out=s).clamp_min_(torch.finfo(s.dtype).tiny)
    edge = 1 - torch.finfo(x.dtype).eps
    torch.sub(p, q, out=x).div_(s).clamp_(-edge, edge)
    js: Tensor = torch.linalg.vecdot(p, torch.log1p(x, out=s))
    js += torch.linalg.vecdot(q, torch.log1p(x.neg_(), out=s))
    return js.mul_(0.5).clamp_(0.0, math.log(2.0))
