"""Stage 1: the pre-trained matrix S by proximal gradient (nuclear penalty, S >= 0) or conjugate gradients (ridge)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lorascope.simulation._model import Sequences, adjoint, factor_logits, logits, loss_and_slope


@dataclass(frozen=True)
class Solution:
    """A minimiser of stage 1.

    Attributes:
        s: S of each seed.
        z: Its logits on the training sequences.
        iterations: Of the solver.
        change: Last relative change of S, the largest over seeds.
        converged: Whether that is below the tolerance.
    """

    s: Float[Tensor, "b d d"]
    z: Float[Tensor, "b n t t"]
    iterations: int
    change: float
    converged: bool


def solve_nuclear(
    data: Sequences,
    ridge: float | int,
    *,
    activation: str = "linear",
    tolerance: float = 1e-5,
    most: int = 1000,
    progress: bool = False,
) -> Solution:
    r"""Minimise :math:`\sum_n \ell(z(S), y) + d \tilde\lambda \mathrm{Tr} S` over S >= 0.

    FISTA with restarts by the gradient test and a step that is halved where the quadratic bound fails. Logits are linear
    in S, so the extrapolated point costs no pass over the data, and S = F F^T of low rank makes the forward pass cheap.

    Args:
        data: Training sequences.
        ridge: :math:`\tilde\lambda`.
        activation: ``linear`` or ``softmax``.
        tolerance: Stop when no seed's S changes by more than this share of its norm in an iteration.
        most: Iterations.
        progress: Show a progress bar.

    Returns:
        S and its logits.
    """
    batch, count, tokens, dim = data.x.shape
    gamma = count * tokens * (tokens + 1) / dim**2
    # Largest curvature of the linear loss: the Marchenko-Pastur edge of the Gram matrix of the maps S -> z.
    curvature = torch.full((batch,), 2 * gamma * dim / tokens**2 * (1 + gamma**-0.5) ** 2, device=data.x.device)
    curvature = curvature.to(data.x.dtype) * (1.0 if activation == "linear" else tokens**2 / 16)
    s = data.x.new_zeros(batch, dim, dim)
    z = torch.zeros_like(data.y)
    s_ahead, z_ahead = s, z
    momentum = data.x.new_ones(batch)
    change, iterations = math.inf, 0
    with tqdm(total=most, desc="stage 1", unit="step", disable=not progress) as bar:
        for iterations in range(1, most + 1):  # noqa: B007 - the count is part of the result
            loss, slope = loss_and_slope(z_ahead, data.y, activation)
            gradient = adjoint(data.x, slope)
            while True:
                s_new, factor = _threshold(s_ahead - gradient / curvature[:, None, None], dim * ridge / curvature)
                z_new = factor_logits(data.x, factor)
                step = s_new - s_ahead
                bound = (gradient * step).sum((-2, -1)) + curvature / 2 * step.square().sum((-2, -1))
                gain = loss_and_slope(z_new, data.y, activation)[0].sum(1) - loss.sum(1)
                slack = 1e-5 if data.x.dtype == torch.float32 else 1e-9
                failed = gain > bound + slack * loss.sum(1)
                if not bool(failed.any()):
                    break
                curvature = torch.where(failed, 1.5 * curvature, curvature)
            moved = s_new - s
            # Restart where the momentum points uphill (O'Donoghue and Candes, arXiv 1204.3982).
            restart = ((s_ahead - s_new) * moved).sum((-2, -1)) > 0
            following = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
            weight = torch.where(restart, torch.zeros_like(momentum), (momentum - 1) / following)[:, None, None]
            momentum = torch.where(restart, torch.ones_like(momentum), following)
            s_ahead = s_new + weight * moved
            z_ahead = z_new + weight[..., None] * (z_new - z)
            size = s_new.square().sum((-2, -1)).sqrt().clamp_min(1e-12)
            change = float((moved.square().sum((-2, -1)).sqrt() / size).max())
            s, z = s_new, z_new
            bar.update()
            if change < tolerance:
                break
    return Solution(s, z, iterations, change, change < tolerance)


def _threshold(a: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest positive matrix after all eigenvalues were lowered, and a factor of it."""
    values, vectors = torch.linalg.eigh(a)
    kept = (values - shift[:, None]).clamp_min(0)
    rank = max(1, int((kept > 0).sum(1).max()))
    factor = vectors[..., -rank:] * kept[:, None, -rank:].sqrt()
    return factor @ factor.mT, factor


def solve_ridge(
    data: Sequences, ridge: float | int, *, tolerance: float = 1e-8, most: int = 1000, progress: bool = False
) -> Solution:
    r"""Minimise :math:`\sum_n T^{-2} |z(S) - y|_F^2 + (d \lambda_F / 2) |S|_F^2` over symmetric S, by conjugate gradients.

    Args:
        data: Training sequences.
        ridge: :math:`\lambda_F`.
        tolerance: Residual of the normal equations relative to their right side.
        most: Iterations.
        progress: Show a progress bar.

    Returns:
        S and its logits.
    """
    tokens, dim = data.x.shape[2:]
    scale = 2.0 / tokens**2

    def apply(matrix: Tensor) -> Tensor:
        return scale * adjoint(data.x, logits(data.x, matrix)) + dim * ridge * matrix

    right = scale * adjoint(data.x, data.y)
    s, residual = torch.zeros_like(right), right
    direction, square = residual, residual.square().sum((-2, -1))
    start = square.clamp_min(1e-300)
    iterations = 0
    with tqdm(total=most, desc="stage 1 (ridge)", unit="step", disable=not progress) as bar:
        while iterations < most and bool((square > tolerance**2 * start).any()):
            image = apply(direction)
            length = square / (direction * image).sum((-2, -1)).clamp_min(1e-300)
            s = s + length[:, None, None] * direction
            residual = residual - length[:, None, None] * image
            following = residual.square().sum((-2, -1))
            direction = residual + (following / square.clamp_min(1e-300))[:, None, None] * direction
            square = following
            iterations += 1
            bar.update()
    change = float((square / start).sqrt().max())
    return Solution(s, logits(data.x, s), iterations, change, change <= tolerance)
