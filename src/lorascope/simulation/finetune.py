"""Stage 2: the low-rank update W on top of a frozen S, by L-BFGS from informed, random and spectral starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lorascope.core.errors import unknown_name
from lorascope.simulation._lbfgs import minimise
from lorascope.simulation._model import adjoint, loss_and_slope, normal

STARTS = ("informed", "random", "spectral", "best")


@dataclass(frozen=True)
class FinetuneData:
    """What stage 2 is trained on; the first axis is the seed.

    Attributes:
        x: Tokens.
        z: Logits of the frozen matrix.
        y: Target logits: of S0 with noise, and of the target's update.
    """

    x: Float[Tensor, "b n t d"]
    z: Float[Tensor, "b n t t"]
    y: Float[Tensor, "b n t t"]


@dataclass(frozen=True)
class Update:
    """What stage 2 found.

    Attributes:
        w: W of each seed, the best start's.
        loss: Training loss of each seed divided by d, penalty included.
        agreement: Share of the starts that came within 1 % of the best training loss.
        converged: Share of the seeds whose descent ended at a minimum.
        a: The right factor where the update is W A^T; None where it is W W^T.
    """

    w: Float[Tensor, "b d r"]
    loss: Float[Tensor, " b"]
    agreement: float
    converged: float
    a: Float[Tensor, "b d r"] | None = None


def update_logits(x: Float[Tensor, "b n t d"], w: Float[Tensor, "b d r"]) -> Float[Tensor, "b n t t"]:
    r""":math:`\sum_k \chi_k \chi_k^T - |W|^2/d\, I` with the fields :math:`\chi_{ka} = w_k \cdot x_a / \sqrt d`."""
    batch, count, tokens, dim = x.shape
    chi = (x.reshape(batch, -1, dim) @ w).view(batch, count, tokens, -1) / math.sqrt(dim)
    out = chi @ chi.mT
    torch.diagonal(out, dim1=-2, dim2=-1).sub_((w.square().sum((-2, -1)) / dim)[:, None, None])
    return out


def fine_tune(
    data: FinetuneData,
    ridge: float | int,
    *,
    rank: int,
    start: str,
    informed: Float[Tensor, "b d r"],
    sources: Sequence[torch.Generator],
    starts: int = 4,
    activation: str = "linear",
    tolerance: float = 1e-7,
    most: int = 600,
) -> Update:
    r"""Minimise :math:`\sum_n \ell(z + \chi\chi^T - q I,\, y) + \lambda' |W|^2` over W.

    Args:
        data: Sequences with frozen and target logits.
        ridge: :math:`\lambda'`.
        rank: Columns of W.
        start: ``informed`` (at the target), ``random`` (normal numbers, ``starts`` of them), ``spectral`` (leading
            eigenvectors of the residual's adjoint image) or ``best`` (spectral and random); the lowest loss counts.
        informed: The target W*.
        sources: A generator a seed, for random starts.
        starts: Number of random starts.
        activation: ``linear`` or ``softmax``.
        tolerance: Of the gradient's norm.
        most: Iterations.

    Returns:
        The best W of each seed.

    Raises:
        InputError: The start is unknown.
    """
    if start not in STARTS:
        raise unknown_name("start", start, STARTS)
    batch, count, tokens, dim = data.x.shape
    begin: list[Tensor] = []
    if start == "informed":
        begin.append(informed[:, None])
    if start in ("spectral", "best"):
        _, vectors = torch.linalg.eigh(adjoint(data.x, data.y - data.z))
        begin.append((vectors[..., -rank:] * math.sqrt(dim))[:, None])
    if start in ("random", "best"):
        begin.append(normal(list(sources), (starts, dim, rank), data.x.device, data.x.dtype))
    points = torch.cat(begin, 1)
    kinds = points.shape[1]
    flat = data.x.reshape(batch, count * tokens, dim)
    root = math.sqrt(dim)
    eye = torch.eye(tokens, device=flat.device, dtype=flat.dtype)

    def objective(point: Tensor) -> tuple[Tensor, Tensor]:
        w = point.view(batch, kinds, dim, rank)
        chi = (flat @ w.transpose(1, 2).reshape(batch, dim, kinds * rank)) / root
        chi = chi.view(batch, count, tokens, kinds, rank).permute(0, 3, 1, 2, 4)
        size = w.square().sum((-2, -1))
        z = data.z[:, None] + chi @ chi.mT - (size / dim)[:, :, None, None, None] * eye
        loss, slope = loss_and_slope(z, data.y[:, None], activation)
        pulled = ((slope + slope.mT) @ chi).permute(0, 2, 3, 1, 4).reshape(batch, count * tokens, kinds * rank)
        gradient = (flat.mT @ pulled).view(batch, dim, kinds, rank).transpose(1, 2) / root
        trace = torch.diagonal(slope, dim1=-2, dim2=-1).sum((-2, -1))
        gradient = gradient + (2 * ridge - 2 * trace / dim)[:, :, None, None] * w
        return (loss.sum(-1) + ridge * size).view(-1), gradient.reshape(batch * kinds, -1)

    found = minimise(objective, points.reshape(batch * kinds, dim * rank), tolerance=tolerance, most=most)
    losses = found.value.view(batch, kinds)
    best = losses.argmin(1)
    rows = torch.arange(batch, device=best.device)
    near = losses <= losses.min(1, keepdim=True).values * 1.01
    return Update(
        found.point.view(batch, kinds, dim, rank)[rows, best],
        losses[rows, best] / dim,
        float(near.double().mean()),
        float(found.converged.view(batch, kinds)[rows, best].double().mean()),
    )
