"""Linear centred kernel alignment."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lorascope.core.errors import InputError


def linear_cka_from_moments(
    cov_oo: Float[Tensor, "d d"], cov_ll: Float[Tensor, "k k"], cov_ol: Float[Tensor, "d k"]
) -> float:
    """Linear CKA from covariances: |cov_ol|^2 / (|cov_oo| |cov_ll|), Frobenius norms.

    Args:
        cov_oo: Covariance of the first features (any common factor cancels).
        cov_ll: Covariance of the second features.
        cov_ol: Cross-covariance.

    Returns:
        A number in [0, 1], dimensionless: 1 for features that are equal up to rotation, scale and shift, 0 for
        uncorrelated ones, and by convention 0 when a side does not vary at all.

    Raises:
        InputError: A covariance holds NaN or infinity.

    References:
        Kornblith et al., Similarity of Neural Network Representations Revisited, arXiv:1905.00414.
    """
    oo, ll, ol = (c.to(torch.float64) for c in (cov_oo, cov_ll, cov_ol))
    if not all(bool(torch.isfinite(c).all()) for c in (oo, ll, ol)):
        raise InputError("covariance holds NaN or infinity: check the features it was made from")
    norm_o, norm_l = float(torch.linalg.norm(oo)), float(torch.linalg.norm(ll))
    if norm_o == 0.0 or norm_l == 0.0:
        return 0.0
    cross = float(torch.linalg.norm(ol))
    return min(cross / norm_o * (cross / norm_l), 1.0)


def linear_cka(x: Float[Tensor, "n d"], y: Float[Tensor, "m k"]) -> float:
    """Linear CKA of two sets of features of the same samples; see `linear_cka_from_moments`.

    Args:
        x: First features, one row a sample.
        y: Second features, same samples in the same order.

    Returns:
        A number in [0, 1], dimensionless.

    Raises:
        InputError: A feature is NaN or infinite, there is no sample, or x and y have different numbers of samples.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 5.0]])
        >>> round(linear_cka(x, 3.0 * x + 1.0), 6)
        1.0
    """
    if x.shape[0] != y.shape[0]:
        raise InputError(f"features of {x.shape[0]} and of {y.shape[0]} samples: CKA compares the same samples")
    if x.shape[0] == 0:
        raise InputError("CKA of no samples: pass at least one row")
    x, y = (z.to(torch.float64) - z.to(torch.float64).mean(0) for z in (x, y))
    if x.shape[0] >= max(x.shape[1], y.shape[1]):
        return linear_cka_from_moments(x.T @ x, y.T @ y, x.T @ y)
    gram_x, gram_y = x @ x.T, y @ y.T  # |x^T y|^2 = <x x^T, y y^T> needs n x n matrices only
    norms = [float(torch.linalg.norm(gram)) for gram in (gram_x, gram_y)]
    if not all(map(torch.isfinite, (gram_x.sum(), gram_y.sum()))):
        raise InputError("features hold NaN or infinity: check the model's outputs (try float32)")
    if 0.0 in norms:
        return 0.0
    return min(max(float((gram_x / norms[0] * (gram_y / norms[1])).sum()), 0.0), 1.0)
