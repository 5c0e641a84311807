"""How many directions a matrix uses: effective and stable rank, the spectrum of B A, matrix entropy."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lorascope.core.errors import InputError


def effective_rank(singular_values: Float[Tensor, " r"]) -> float:
    """Effective rank: exp of the entropy of the singular values taken as a distribution.

    exp(-sum_i p_i ln p_i) with p_i = s_i / sum_j s_j.

    Args:
        singular_values: Singular values >= 0, any scale and order.

    Returns:
        A number between 1 and the number of non-zero values, dimensionless; 0 for the zero matrix.

    Raises:
        InputError: A value is negative or not finite.

    Example:
        >>> round(effective_rank(torch.tensor([2.0, 2.0, 0.0])), 6)
        2.0

    References:
        Roy and Vetterli, The effective rank, EUSIPCO 2007.
    """
    s = _scaled(singular_values)
    if s is None:
        return 0.0
    return float(torch.special.entr(s / s.sum()).sum().exp())


def stable_rank(singular_values: Float[Tensor, " r"]) -> float:
    """Stable rank: squared Frobenius norm over squared largest singular value, sum_i s_i^2 / max_i s_i^2.

    Args:
        singular_values: Singular values >= 0, any scale and order.

    Returns:
        A number between 1 and the number of non-zero values, dimensionless; 0 for the zero matrix.

    Raises:
        InputError: A value is negative or not finite.

    Example:
        >>> stable_rank(torch.tensor([2.0, 2.0, 0.0]))
        2.0
    """
    s = _scaled(singular_values)
    return 0.0 if s is None else float(s.square().sum())


def _scaled(singular_values: Tensor) -> Tensor | None:
    s = singular_values.detach().to(torch.float64)
    if not bool(torch.isfinite(s).all()) or bool((s < 0).any()):
        raise InputError("singular values must be finite and >= 0: check the adapter's weights for NaN")
    peak = s.amax() if s.numel() else s.sum()
    return s / peak if bool(peak > 0) else None


def low_rank_singular_values(
    a: Float[Tensor, "r d_in"], b: Float[Tensor, "d_out r"], scaling: float
) -> Float[Tensor, " r"]:
    """Singular values of scaling * B A without forming the d_out x d_in product.

    With B = Q_B R_B and A^T = Q_A R_A the values are those of the r x r matrix R_B R_A^T.

    Args:
        a: The adapter's A.
        b: The adapter's B.
        scaling: Factor of the update (alpha / r, or alpha / sqrt(r)).

    Returns:
        The r values in falling order, float64 (those beyond the sizes of the product are 0).

    Raises:
        InputError: A weight is NaN or infinite.
    """
    a, b = a.detach().to(torch.float64), b.detach().to(torch.float64)
    if not (bool(torch.isfinite(a).all()) and bool(torch.isfinite(b).all())):
        raise InputError("adapter weights hold NaN or infinity: the training diverged; lower the learning rate")
    left = torch.linalg.qr(b, mode="r").R
    right = torch.linalg.qr(a.T, mode="r").R
    values = torch.linalg.svdvals(abs(scaling) * (left @ right.T))
    return torch.nn.functional.pad(values, (0, a.shape[0] - len(values)))


def matrix_entropy(x: Float[Tensor, "*batch t d"], mask: Bool[Tensor, "*batch t"] | None = None) -> Tensor:
    r"""Matrix entropy of one sequence's states: how many directions its tokens spread over.

    States are centred over the sequence and each is scaled to length 1; with z_1..z_n the result is the entropy of
    the eigenvalues of (1/n) sum_t z_t z_t^T, which sum to 1: -sum_i e_i ln e_i. exp of it is an effective rank. The
    eigenvalues are taken from the smaller of the d x d matrix and the t x t Gram matrix, which share the non-zero ones.

    Args:
        x: States, one row a token; leading axes are separate sequences.
        mask: True for the tokens that count (padding False); all when not given.

    Returns:
        Entropy in nats, float64, shape ``batch``, in [0, ln min(t - 1, d)]; 0 for one token or for equal tokens.
        The reference divides by ln d; divide to compare.

    Raises:
        InputError: A state that counts is NaN or infinite.

    Example:
        >>> round(float(matrix_entropy(torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]))), 6)
        0.693147

    References:
        Wei et al., Large Language Model Evaluation via Matrix Entropy, arXiv:2401.17139.
    """
    z = x.detach().to(torch.float64)
    keep = torch.ones(z.shape[:-1], dtype=torch.bool, device=z.device) if mask is None else mask.to(z.device)
    z = torch.where(keep[..., None], z, 0.0)
    if not bool(torch.isfinite(z).all()):
        raise InputError("states hold NaN or infinity: check the model's outputs (try float32)")
    peak = z.abs().amax((-2, -1), keepdim=True)
    z = z / torch.where(peak > 0, peak, 1.0)
    mean = z.sum(-2, keepdim=True) / keep.sum(-1).clamp(min=1)[..., None, None]
    z = torch.where(keep[..., None], z - mean, 0.0)
    norm = z.norm(dim=-1, keepdim=True)
    used = norm > 1e-13  # of the largest entry: what is left by rounding when all tokens are equal
    z = torch.where(used, z / torch.where(used, norm, 1.0), 0.0)
    n = used.sum((-2, -1)).clamp(min=1)[..., None, None]
    gram = (z.mT @ z if z.shape[-1] < z.shape[-2] else z @ z.mT) / n
    nats: Tensor = torch.special.entr(torch.linalg.eigvalsh(gram).clamp(0.0, 1.0)).sum(-1)
    return nats
