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

_BLOCK_ELEMENTS = 1 << 18
"""Numbers in one block of rows: a block and its four buffers fit the caches of a current processor."""

_SERIES = (1 / 2, 1 / 12, 1 / 30, 1 / 56, 1 / 90, 1 / 132)
"""Coefficients 1 / (2k (2k-1)) of h(t) = sum_k c_k t^(2k)."""
_CONSTANTS = [torch.tensor(c, dtype=torch.float32) for c in _SERIES]


def _series_terms(largest_square: float) -> int:
    """How many terms keep the truncation below float32 rounding, or 0 where logarithms are better."""
    if largest_square < 1e-3:
        return 3
    return 6 if largest_square < 0.05 else 0  # also for NaN (0/0 where both underflow)


def probability_jensen_shannon(p: Float[Tensor, "rows d"], q: Float[Tensor, "rows d"]) -> Float[Tensor, " rows"]:
    """Jensen-Shannon divergence of two batches of distributions, without cancellation.

    With s = p + q and t = (p - q) / s, the divergence is JS = 1/2 sum s h(t), where
    h(t) = 1/2 [(1+t) ln(1+t) + (1-t) ln(1-t)] = sum_k t^(2k) / (2k (2k-1)). Every term is non-negative, so nothing
    cancels however close p and q are. Blocks in which some t is large use 1/2 sum [p ln(1+t) + q ln(1-t)], the same
    sum in another form.

    Args:
        p: Probabilities, rows summing to one, float32 or float64.
        q: Probabilities of the same shape and type.

    Returns:
        JS in nats, one per row, in [0, ln 2]; NaN for rows that hold a NaN.

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

    Example:
        >>> softmax_jensen_shannon(torch.zeros(1, 4), torch.zeros(1, 4))
        tensor([0.])

    References:
        arXiv 2501.03152, Eq. 9.
    """
    return _blockwise(o, l, softmax=True)


def _blockwise(a: Tensor, b: Tensor, *, softmax: bool) -> Tensor:
    dtype = torch.float64 if a.dtype == torch.float64 else torch.float32
    rows, d = a.shape
    out = torch.empty(rows, dtype=dtype, device=a.device)
    if rows == 0 or d == 0:
        return out.zero_()
    step = min(rows, max(1, _BLOCK_ELEMENTS // d)) if a.device.type == "cpu" else rows
    buffers = torch.empty(4 if softmax else 2, step, d, dtype=dtype, device=a.device)
    for start in range(0, rows, step):
        block = slice(start, start + step)
        s, x, *pq = buffers[:, : min(step, rows - start)]
        if softmax:
            p = torch.softmax(a[block].to(dtype), dim=-1, out=pq[0])
            q = torch.softmax(b[block].to(dtype), dim=-1, out=pq[1])
        else:
            p, q = a[block].to(dtype), b[block].to(dtype)
        out[block] = _block(p, q, s, x)
    return out


def _block(p: Tensor, q: Tensor, s: Tensor, x: Tensor) -> Tensor:
    """JS of one block; ``s`` and ``x`` are buffers."""
    torch.add(p, q, out=s)
    torch.sub(p, q, out=x).div_(s).square_()
    # A GPU would have to wait for this number, so it always takes the logarithms, which hold everywhere.
    largest = float(x.amax()) if x.device.type == "cpu" and x.dtype == torch.float32 else math.nan
    terms = _series_terms(largest)
    if terms:
        h = torch.add(_CONSTANTS[terms - 2], x, alpha=_SERIES[terms - 1])
        for k in range(terms - 3, -1, -1):
            torch.addcmul(_CONSTANTS[k], h, x, out=h)
        near: Tensor = torch.linalg.vecdot(s.mul_(x), h)
        return near.mul_(0.5)
    # Features that underflow in both have s = 0 and no weight; t = +-1 would give 0 times infinity.
    torch.sub(p, q, out=x).div_(s.clamp_min_(torch.finfo(s.dtype).tiny))
    edge = 1 - torch.finfo(x.dtype).eps
    x.clamp_(-edge, edge)
    js: Tensor = torch.linalg.vecdot(p, torch.log1p(x, out=s))
    js += torch.linalg.vecdot(q, torch.log1p(x.neg_(), out=s))
    return js.mul_(0.5).clamp_(0.0, math.log(2.0))
