"""What a simulation measures of an update B A^T (W W^T if tied): overlaps with its target, and errors."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

Q0_UPDATE = 1.0
"""Squared norm of each column of the target update, divided by d; exact in every seed."""


def overlaps(
    b: Float[Tensor, "b d r"], w0: Float[Tensor, "b d r"], a: Float[Tensor, "b d r"] | None = None
) -> dict[str, Tensor]:
    r"""``m``, ``q`` and ``alignment`` of an update with its target, free of signs and rotations.

    q is the nuclear norm of U over d r, and m the sum of the roots of the positive eigenvalues of the symmetric part of
    :math:`W^{*T} U W^*` over d r: with U = W W^T these are |W|^2 / (d r) and the nuclear norm of W^T W* over d r.

    Args:
        b: W, or the left factor.
        w0: The target's columns.
        a: The right factor where it is not W.
    """
    dim, rank = b.shape[-2:]
    if a is None:
        m = torch.linalg.svdvals(b.mT @ w0).sum(-1) / (dim * rank)
        q = b.square().sum((-2, -1)) / (dim * rank)
    else:
        seen = (w0.mT @ b) @ (a.mT @ w0)
        m = torch.linalg.eigvalsh((seen + seen.mT) / 2).clamp_min(0).sqrt().sum(-1) / (dim * rank)
        inner = torch.linalg.qr(b)[1] @ torch.linalg.qr(a)[1].mT
        q = torch.linalg.svdvals(inner).sum(-1) / (dim * rank)
    return {"m": m, "q": q, "alignment": m / (q * Q0_UPDATE).sqrt().clamp_min(1e-12)}


def matrix_error(gap: Float[Tensor, "b d d"], tokens: int) -> Float[Tensor, " b"]:
    r"""Mean squared error of the logits of a matrix, :math:`((T-1)|G|^2 + 2|\mathrm{sym}\,G|^2) / (T d)`.

    For a symmetric G that is (T+1)/T |G|^2 / d.
    """
    dim = gap.shape[-1]
    symmetric = (gap + gap.mT) / 2
    return ((tokens - 1) * _square(gap) + 2 * _square(symmetric)) / (tokens * dim)


def update_error(b: Tensor, w0: Tensor, tokens: int, a: Tensor | None = None) -> Float[Tensor, " b"]:
    """`matrix_error` of (B A^T - W* W*^T) / sqrt(d); without a matrix of d x d where the update is tied."""
    dim = b.shape[-2]
    if a is not None:
        return matrix_error((b @ a.mT - w0 @ w0.mT) / math.sqrt(dim), tokens)
    own, cross, target = b.mT @ b, b.mT @ w0, w0.mT @ w0
    return (tokens + 1) / tokens * (_square(own) - 2 * _square(cross) + _square(target)) / dim**2


def _square(a: Tensor) -> Tensor:
    total: Tensor = a.square().sum((-2, -1))
    return total
