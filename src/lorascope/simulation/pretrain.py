"""Stage 1: the pre-trained matrix S by proximal gradient (nuclear penalty, S >= 0) or conjugate gradients (ridge)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lorascope.simulation._model import Sequences, adjoint, logits
from lorascope.simulation._proximal import Descent, descend

FIRST_STEP = 0.4
"""Share of the largest curvature to begin with; a step that is too long is cut."""
SINGLE = 1e-5
"""Smallest change of S that steps in single precision can tell from rounding."""
ROUGH = 1e-4
"""Residual at which a round of conjugate gradients in single precision ends."""


@dataclass(frozen=True)
class Solution:
    """A minimiser of stage 1.

    Attributes:
        s: S of each seed.
        z: Its logits on the training sequences.
        iterations: Of the solver.
        change: Last relative change of S (ridge: of the residual), the largest over seeds.
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

    Proximal gradient with momentum (`lorascope.simulation._proximal.descend`), first in single precision, where a product
    costs a fifth to a half, and then from there in the precision of the data, until the steps are small there too.

    Args:
        data: Training sequences.
        ridge: :math:`\tilde\lambda`.
        activation: ``linear`` or ``softmax``.
        tolerance: A seed ends when five steps in a row changed its S by less than this share of its norm.
        most: Iterations.
        progress: Show a progress bar.

    Returns:
        S and its logits.
    """
    batch, count, tokens, dim = data.x.shape
    gamma = count * tokens * (tokens + 1) / dim**2
    # Largest curvature of the linear loss: the Marchenko-Pastur edge of the Gram matrix of the maps S -> z.
    edge = 2 * gamma * dim / tokens**2 * (1 + gamma**-0.5) ** 2
    place = Descent.at_zero(batch, dim, FIRST_STEP * edge * (1.0 if activation == "linear" else tokens**2 / 16), data.x)
    with tqdm(total=most, desc="stage 1", unit="step", disable=not progress) as bar:
        for dtype in dict.fromkeys((torch.float32, data.x.dtype)):
            place, z = descend(
                data.x.to(dtype),
                data.y.to(dtype),
                dim * ridge,
                activation,
                place.to(dtype),
                tolerance=max(tolerance, SINGLE) if dtype == torch.float32 else tolerance,
                most=most if dtype == data.x.dtype else most // 2,
                bar=bar,
            )
    change = float(place.change.max())
    return Solution(
        place.s, z, place.steps, change, change < max(tolerance, SINGLE if z.dtype == torch.float32 else 0.0)
    )


def solve_ridge(
    data: Sequences, ridge: float | int, *, tolerance: float = 1e-8, most: int = 1000, progress: bool = False
) -> Solution:
    r"""Minimise :math:`\sum_n T^{-2} |z(S) - y|_F^2 + (d \lambda_F / 2) |S|_F^2` over symmetric S, by conjugate gradients.

    Roughly in single precision, then again for what is left of the right side in the precision of the data, and so on.

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
    single = data.x.float()
    right = scale * adjoint(data.x, data.y)
    start = _norm(right).clamp_min(1e-30)
    s, z, residual = torch.zeros_like(right), torch.zeros_like(data.y), right
    iterations, change, before = 0, 1.0, float("inf")
    with tqdm(total=most, desc="stage 1 (ridge)", unit="step", disable=not progress) as bar:
        while iterations < most and change > tolerance and change < before:
            size = _norm(residual).clamp_min(1e-30)[:, None, None]
            found, steps = _conjugate_gradients(
                single, (residual / size).float(), scale, dim * ridge, most - iterations, bar
            )
            s = s + size * found.to(s.dtype)
            z = logits(data.x, s)
            residual = right - scale * adjoint(data.x, z) - dim * ridge * s
            iterations += steps
            before, change = change, float((_norm(residual) / start).max())
    return Solution(s, z, iterations, change, change <= max(tolerance, 1e-5 if s.dtype == torch.float32 else 0.0))


def _conjugate_gradients(
    x: Tensor,
    right: Float[Tensor, "b d d"],
    scale: float,
    pull: float,
    most: int,
    bar: tqdm,  # type: ignore[type-arg]
) -> tuple[Float[Tensor, "b d d"], int]:
    """Solve the normal equations roughly, in single precision; the right side has norm 1."""
    s, residual, direction = torch.zeros_like(right), right, right
    square = residual.square().sum((-2, -1))
    steps = 0
    while steps < most and bool((square > ROUGH**2).any()):
        image = scale * adjoint(x, logits(x, direction)) + pull * direction
        length = square / (direction * image).sum((-2, -1)).clamp_min(1e-30)
        s = s + length[:, None, None] * direction
        residual = residual - length[:, None, None] * image
        following = residual.square().sum((-2, -1))
        direction = residual + (following / square.clamp_min(1e-30))[:, None, None] * direction
        square = following
        steps += 1
        bar.update()
    return s, steps


def _norm(matrix: Tensor) -> Tensor:
    found: Tensor = matrix.square().sum((-2, -1)).sqrt()
    return found
