"""L-BFGS for many small problems at once: each has its own history, step and end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Points of (m, p) -> values of (m) and gradients of (m, p)."""


@dataclass(frozen=True)
class Minimum:
    """Where the descents ended.

    Attributes:
        point: Of each problem.
        value: There.
        converged: Whether the gradient fell below the tolerance, or no step could lower the value any more.
        iterations: Of the slowest.
    """

    point: Float[Tensor, "m p"]
    value: Float[Tensor, " m"]
    converged: Bool[Tensor, " m"]
    iterations: int


def minimise(
    objective: Objective,
    start: Float[Tensor, "m p"],
    *,
    tolerance: float = 1e-7,
    most: int = 500,
    history: int = 12,
) -> Minimum:
    """Minimise m smooth functions of p numbers each.

    Two-loop recursion with a backtracking line search (Armijo); pairs without positive curvature are left out.

    Args:
        objective: Values and gradients of all problems.
        start: Where to begin.
        tolerance: Largest norm of the gradient as a share of its norm at the start.
        most: Iterations.
        history: Pairs that are kept.

    Returns:
        The points that were reached.

    Example:
        >>> found = minimise(lambda w: (w.square().sum(1), 2 * w), torch.ones(2, 3, dtype=torch.float64))
        >>> float(found.value.max()) < 1e-12
        True

    References:
        Nocedal and Wright, Numerical Optimization, algorithm 7.4.
    """
    x = start
    value, gradient = objective(x)
    first = gradient.norm(dim=1).clamp_min(1e-300)
    done = gradient.norm(dim=1) <= tolerance * first
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    iterations = 0
    while iterations < most and not bool(done.all()):
        direction = _direction(gradient, pairs)
        slope = (direction * gradient).sum(1)
        direction = torch.where((slope < 0)[:, None], direction, -gradient)
        slope = (direction * gradient).sum(1)
        if not pairs:
            direction, slope = direction / first[:, None], slope / first
        x_new, value_new, gradient_new, moved = _backtrack(objective, x, value, gradient, direction, slope, ~done)
        s, y = x_new - x, gradient_new - gradient
        curvature = (s * y).sum(1)
        good = curvature > 1e-12 * s.norm(dim=1) * y.norm(dim=1)
        pairs = [*pairs, (s, y, torch.where(good, 1 / curvature.clamp_min(1e-300), torch.zeros_like(curvature)))]
        pairs = pairs[-history:]
        x, value, gradient = x_new, value_new, gradient_new
        iterations += 1
        done = done | ~moved | (gradient.norm(dim=1) <= tolerance * first)
    return Minimum(x, value, done, iterations)


def _direction(gradient: Tensor, pairs: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Minus the approximate inverse Hessian times the gradient; a pair of weight 0 has no effect."""
    q = gradient
    shares = []
    for s, y, rho in reversed(pairs):
        share = rho * (s * q).sum(1)
        q = q - share[:, None] * y
        shares.append(share)
    if pairs:
        s, y, rho = pairs[-1]
        scale = (s * y).sum(1) / y.square().sum(1).clamp_min(1e-300)
        q = q * torch.where(rho > 0, scale, torch.ones_like(scale))[:, None]
    for (s, y, rho), share in zip(pairs, reversed(shares), strict=True):
        q = q + (share - rho * (y * q).sum(1))[:, None] * s
    return -q


def _backtrack(
    objective: Objective,
    x: Tensor,
    value: Tensor,
    gradient: Tensor,
    direction: Tensor,
    slope: Tensor,
    active: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A step of each active problem that lowers its value enough; ``moved`` says which found one."""
    step = torch.where(active, torch.ones_like(value), torch.zeros_like(value))
    epsilon = torch.finfo(value.dtype).eps
    moved = torch.zeros_like(active)
    for _ in range(30):
        tried = x + step[:, None] * direction
        value_new, gradient_new = objective(tried)
        enough = value_new <= value + 1e-4 * step * slope + 4 * epsilon * value.abs()
        moved = active & enough & (step > 0)
        if bool((enough | ~active).all()):
            break
        step = torch.where(enough, step, step / 2)
    keep = moved | ~active
    if not bool(keep.all()):
        tried = torch.where(keep[:, None], tried, x)
        value_new = torch.where(keep, value_new, value)
        gradient_new = torch.where(keep[:, None], gradient_new, gradient)
    return tried, value_new, gradient_new, moved
