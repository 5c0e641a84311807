"""Joint distributions and samples whose mutual information is known in closed form, to hold estimators against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lorascope.core.errors import InputError
from lorascope.information.divergences import LN2


@dataclass(frozen=True)
class DiscreteTruth:
    """A discrete joint with its known measures.

    Attributes:
        name: What it is, with its parameters.
        joint: Probabilities, float64, rows are values of the first variable.
        mi: Mutual information, nats.
        js: JS(P_OL || P_O P_L), nats.
        max_ratio: Largest P_OL / (P_O P_L).
    """

    name: str
    joint: Tensor
    mi: float
    js: float
    max_ratio: float


def _js_term(r: float) -> float:
    """f_JS(r) by the textbook formula, from the standard library (independent of the estimators)."""
    if r == 0.0:
        return 0.5 * LN2
    return 0.5 * (r * math.log(2.0 * r / (1.0 + r)) + math.log(2.0 / (1.0 + r)))


def independent(p: Float[Tensor, " n"], q: Float[Tensor, " m"]) -> DiscreteTruth:
    """Independent variables with the given probabilities: I = 0, JS = 0, R = 1."""
    p, q = p.double() / p.double().sum(), q.double() / q.double().sum()
    return DiscreteTruth(f"independent {len(p)} x {len(q)}", torch.outer(p, q), 0.0, 0.0, 1.0)


def diagonal(p: Float[Tensor, " n"]) -> DiscreteTruth:
    """Two copies of one variable: I = H(p), R = 1 / min p."""
    p = p.double() / p.double().sum()
    weights = p.tolist()
    off = 1.0 - math.fsum(x * x for x in weights)
    return DiscreteTruth(
        f"diagonal, {len(p)} values",
        torch.diag(p),
        -math.fsum(x * math.log(x) for x in weights),
        math.fsum(x * x * _js_term(1.0 / x) for x in weights) + off * _js_term(0.0),
        1.0 / min(weights),
    )


def binary_symmetric_channel(flip: float) -> DiscreteTruth:
    """A fair bit through a channel that flips it with probability ``flip``: I = ln 2 - H(flip).

    Raises:
        InputError: ``flip`` is outside [0, 1].
    """
    if not 0.0 <= flip <= 1.0:
        raise InputError(f"flip probability {flip:g}: it must be in [0, 1]")
    keep = 1.0 - flip
    joint = 0.5 * torch.tensor([[keep, flip], [flip, keep]], dtype=torch.float64)
    entropy = -math.fsum(x * math.log(x) for x in (keep, flip) if x > 0)
    js = 0.5 * (_js_term(2.0 * keep) + _js_term(2.0 * flip))
    return DiscreteTruth(f"binary symmetric channel, flip {flip:g}", joint, LN2 - entropy, js, 2.0 * max(keep, flip))


def erasure_channel(erasure: float, p: Float[Tensor, " n"]) -> DiscreteTruth:
    """A value that is lost with probability ``erasure`` (last column): I = (1 - erasure) H(p).

    Raises:
        InputError: ``erasure`` is outside [0, 1).
    """
    if not 0.0 <= erasure < 1.0:
        raise InputError(f"erasure probability {erasure:g}: it must be in [0, 1)")
    p = p.double() / p.double().sum()
    kept = diagonal(p)
    joint = torch.cat([(1.0 - erasure) * kept.joint, erasure * p[:, None]], dim=1)
    # The erased column has ratio 1 and adds nothing; the others have the ratios of the noiseless channel.
    name = f"erasure channel, {len(p)} values, loss {erasure:g}"
    return DiscreteTruth(name, joint, (1.0 - erasure) * kept.mi, (1.0 - erasure) * kept.js, kept.max_ratio)


def random_blocks(blocks: int, size: int, generator: torch.Generator) -> DiscreteTruth:
    """Random joint of ``blocks`` independent blocks of up to ``size`` values a side, rows and columns shuffled.

    A hidden block number, which both variables reveal, is all that they share: I is the entropy of the block weights.

    Raises:
        InputError: A size is below 1.
    """
    if blocks < 1 or size < 1:
        raise InputError(f"{blocks} blocks of size {size}: both must be at least 1")

    def simplex(n: int) -> Tensor:
        x = torch.rand(n, generator=generator, dtype=torch.float64) + 0.05
        return x / x.sum()

    def side() -> int:
        return int(torch.randint(1, size + 1, (1,), generator=generator))

    weights = simplex(blocks)
    truth = diagonal(weights)
    parts = [w * torch.outer(simplex(side()), simplex(side())) for w in weights]
    joint: Tensor = torch.block_diag(*parts)  # type: ignore[no-untyped-call]
    joint = joint[torch.randperm(joint.shape[0], generator=generator)]
    joint = joint[:, torch.randperm(joint.shape[1], generator=generator)]
    name = f"{blocks} random blocks, {joint.shape[0]} x {joint.shape[1]}"
    return DiscreteTruth(name, joint, truth.mi, truth.js, truth.max_ratio)


def correlated_gaussians(
    n: int, correlations: Sequence[float], generator: torch.Generator
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"], float]:
    """Draw pairs of standard Gaussian vectors whose features are correlated one by one.

    Args:
        n: Number of samples.
        correlations: Correlation of feature i of both, each in (-1, 1).
        generator: Source of the randomness.

    Returns:
        x and y, float64, and their mutual information -1/2 sum_i ln(1 - rho_i^2) in nats.

    Raises:
        InputError: A correlation is outside (-1, 1).

    Example:
        >>> x, y, mi = correlated_gaussians(10, [0.6], torch.Generator().manual_seed(0))
        >>> round(mi, 6)
        0.223144
    """
    if not all(-1.0 < rho < 1.0 for rho in correlations):
        raise InputError(f"correlations {list(correlations)}: each must be in (-1, 1)")
    rho = torch.tensor(list(correlations), dtype=torch.float64)
    x, noise = (torch.randn(n, len(rho), generator=generator, dtype=torch.float64) for _ in range(2))
    mi = 0.5 * math.fsum(-math.log1p(-r * r) for r in correlations)
    return x, rho * x + (1.0 - rho.square()).sqrt() * noise, mi
