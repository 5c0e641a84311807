"""Accelerated proximal gradient over positive matrices, for many seeds at once: each has its own step, restarts and end."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lorascope.simulation._model import adjoint, factor_logits, logits, loss_and_slope

CALM = 5
"""Steps in a row that must change S by less than the tolerance: the first ones after a restart are always small."""


@dataclass
class Descent:
    """Where the descent of each seed stands.

    Attributes:
        s: Current matrix.
        ahead: Extrapolated one.
        momentum: Weight of the extrapolation.
        curvature: Inverse step.
        change: Last relative change of S; infinite before the first step.
        steps: Steps taken.
    """

    s: Float[Tensor, "b d d"]
    ahead: Float[Tensor, "b d d"]
    momentum: Float[Tensor, " b"]
    curvature: Float[Tensor, " b"]
    change: Float[Tensor, " b"]
    steps: int = 0

    @classmethod
    def at_zero(cls, seeds: int, dim: int, curvature: float, like: Tensor) -> Descent:
        """The start S = 0."""
        one, zero = like.new_ones(seeds), like.new_zeros(seeds, dim, dim)
        return cls(zero, zero, one, curvature * one, float("inf") * one)

    def to(self, dtype: torch.dtype) -> Descent:
        """The same in another precision."""
        s, ahead, momentum, curvature, change = (
            part.to(dtype) for part in (self.s, self.ahead, self.momentum, self.curvature, self.change)
        )
        return Descent(s, ahead, momentum, curvature, change, self.steps)


def descend(
    x: Float[Tensor, "b n t d"],
    y: Float[Tensor, "b n t t"],
    shrink: float,
    activation: str,
    begin: Descent,
    *,
    tolerance: float,
    most: int,
    bar: tqdm,  # type: ignore[type-arg]
) -> tuple[Descent, Float[Tensor, "b n t t"]]:
    r"""Minimise the loss plus ``shrink`` times the trace over S >= 0, from where a descent stands.

    FISTA with restarts by the gradient test and a step that is cut where the quadratic bound fails. Logits are linear in
    S, so the extrapolated point costs no pass over the data, and S = F F^T of low rank makes the forward pass cheap. A
    seed that has converged leaves the batch, so that its result does not depend on the others.

    Args:
        x: Tokens.
        y: Target logits.
        shrink: Weight of the trace.
        activation: ``linear`` or ``softmax``.
        begin: Where to begin.
        tolerance: A seed ends when `CALM` steps in a row changed its S by less than this share of its norm.
        most: Steps at which all end, those of ``begin`` included.
        bar: Moved by one a step.

    Returns:
        Where each seed ended, and the logits of its S.

    References:
        Beck and Teboulle 2009 (FISTA); O'Donoghue and Candes, arXiv 1204.3982 (restarts).
    """
    left = torch.arange(x.shape[0], device=x.device)
    s, ahead, momentum, curvature = begin.s, begin.ahead, begin.momentum, begin.curvature
    z = logits(x, s) if begin.steps else torch.zeros_like(y)
    z_ahead = logits(x, ahead) if begin.steps else z
    end = Descent(s.clone(), ahead.clone(), momentum.clone(), curvature.clone(), begin.change.clone(), begin.steps)
    end_z = z.clone()
    steps, calm = begin.steps, torch.zeros_like(left)
    while steps < most and len(left):
        loss, slope = loss_and_slope(z_ahead, y, activation)
        gradient = adjoint(x, slope)
        while True:
            s_new, factor = _threshold(ahead - gradient / curvature[:, None, None], shrink / curvature)
            z_new = factor_logits(x, factor)
            failed = _rises_too_fast(s_new - ahead, z_new, z_ahead, y, gradient, curvature, loss, activation)
            if not bool(failed.any()):
                break
            curvature = torch.where(failed, 1.5 * curvature, curvature)
        moved = s_new - s
        restart = ((ahead - s_new) * moved).sum((-2, -1)) > 0
        following = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        weight = torch.where(restart, torch.zeros_like(momentum), (momentum - 1) / following)[:, None, None]
        momentum = torch.where(restart, torch.ones_like(momentum), following)
        ahead = s_new + weight * moved
        z_ahead = z_new + weight[..., None] * (z_new - z)
        change = moved.square().sum((-2, -1)).sqrt() / s_new.square().sum((-2, -1)).sqrt().clamp_min(1e-12)
        s, z = s_new, z_new
        steps += 1
        bar.update()
        calm = torch.where(change < tolerance, calm + 1, torch.zeros_like(calm))
        done = calm >= CALM
        if steps == most:
            done = torch.ones_like(done)
        if bool(done.any()):
            at = left[done]
            end.s[at], end.ahead[at], end_z[at] = s[done], ahead[done], z[done]
            end.momentum[at], end.curvature[at], end.change[at] = momentum[done], curvature[done], change[done]
            kept = ~done
            left, x, y, s, z = left[kept], x[kept], y[kept], s[kept], z[kept]
            ahead, z_ahead, momentum, curvature = ahead[kept], z_ahead[kept], momentum[kept], curvature[kept]
            calm = calm[kept]
    end.steps = steps
    return end, end_z


def _rises_too_fast(
    step: Tensor,
    z_new: Tensor,
    z: Tensor,
    y: Tensor,
    gradient: Tensor,
    curvature: Tensor,
    loss: Tensor,
    activation: str,
) -> Tensor:
    """Whether the loss lies above its quadratic bound; for the linear one a square, free of cancellation."""
    size = curvature / 2 * step.square().sum((-2, -1))
    if activation == "linear":
        above: Tensor = (z_new - z).square().sum((1, 2, 3)) / z.shape[-1] ** 2 > (1 + 1e-6) * size
        return above & (size > 1e-12 * loss.sum(1))
    gain = loss_and_slope(z_new, y, activation)[0].sum(1) - loss.sum(1)
    slack = 1e-5 if z.dtype == torch.float32 else 1e-9
    return gain > (gradient * step).sum((-2, -1)) + size + slack * loss.sum(1)


def _threshold(a: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest positive matrix after all eigenvalues were lowered, and a factor of it."""
    values, vectors = torch.linalg.eigh(a)
    kept = (values - shift[:, None]).clamp_min(0)
    rank = max(1, int((kept > 0).sum(1).max()))
    factor = vectors[..., -rank:] * kept[:, None, -rank:].sqrt()
    return factor @ factor.mT, factor
