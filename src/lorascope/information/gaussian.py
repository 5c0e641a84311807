"""Information through a Gaussian channel: closed forms, a bound for any distribution, and covariance shrinkage."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lorascope.core.errors import InputError


def gaussian_channel_information(cov: Float[Tensor, "d d"], noise_var: float) -> float:
    r"""Information that Y = X + N carries about X, for Gaussian X and white Gaussian noise N.

    I(X; X + N) = 1/2 ln det(I + cov / noise_var), in nats. For X of any law with this covariance it is the upper
    bound, because the Gaussian has the largest entropy.

    Args:
        cov: Covariance of X, symmetric and positive semi-definite.
        noise_var: Variance of the noise in each direction, in the unit of ``cov``, > 0.

    Returns:
        Information in nats, >= 0.

    Raises:
        InputError: The noise variance is not positive, or the covariance is not finite.

    Example:
        >>> round(gaussian_channel_information(torch.eye(2), 1.0), 6)
        0.693147

    References:
        Cover and Thomas, Elements of Information Theory, 2nd ed., section 9.4.
    """
    _check(noise_var, cov)
    return 0.5 * float(torch.log1p(_eigenvalues(cov) / noise_var).sum())


def gaussian_mutual_information(
    cov_oo: Float[Tensor, "d d"], cov_ll: Float[Tensor, "k k"], cov_ol: Float[Tensor, "d k"], noise_var: float
) -> float:
    r"""Mutual information I(O; L + N) of jointly Gaussian O and L, read through white Gaussian noise N.

    I = 1/2 ln det(cov_ll + noise_var I) - 1/2 ln det(cov_ll - cov_lo cov_oo^+ cov_ol + noise_var I), in nats. Without
    the noise it would be infinite, since L is a function of O wherever the adapter does nothing; with L = O it is
    `gaussian_channel_information`.

    Args:
        cov_oo: Covariance of O; may be singular.
        cov_ll: Covariance of L.
        cov_ol: Cross-covariance, rows of O and columns of L.
        noise_var: Variance of the noise in each direction, > 0.

    Returns:
        Information in nats, >= 0.

    Raises:
        InputError: The noise variance is not positive, or a covariance is not finite.

    Example:
        >>> one = torch.eye(1)
        >>> round(gaussian_mutual_information(one, one, 0.0 * one, 1.0), 6)
        0.0
    """
    _check(noise_var, cov_oo, cov_ll, cov_ol)
    values, vectors = torch.linalg.eigh(_symmetric(cov_oo))
    keep = values > values.amax().clamp(min=0.0) * len(values) * torch.finfo(torch.float64).eps
    half = (vectors[:, keep].T @ cov_ol.to(torch.float64)) / values[keep].sqrt()[:, None]
    total = torch.log1p(_eigenvalues(cov_ll) / noise_var).sum()
    rest = torch.log1p(_eigenvalues(_symmetric(cov_ll) - half.T @ half) / noise_var).sum()
    return max(0.0, 0.5 * float(total - rest))


def gaussian_information_upper(trace: float, dim: int, noise_var: float) -> float:
    r"""Most information that any L of a given total variance can carry through white Gaussian noise.

    I(O; L + N) <= I(L; L + N) = h(L + N) - h(N) <= dim / 2 ln(1 + trace / (dim noise_var)), in nats, for every joint
    law of (O, L): the Gaussian has the largest entropy for its covariance, and equal variances the largest
    determinant for their sum.

    Args:
        trace: Total variance of L, the trace of its covariance.
        dim: Number of features of L.
        noise_var: Variance of the noise in each direction, > 0.

    Returns:
        The bound in nats.

    Raises:
        InputError: The noise variance or the dimension is not positive, or the trace is negative or not finite.

    Example:
        >>> round(gaussian_information_upper(2.0, 2, 1.0), 6)
        0.693147
    """
    _check(noise_var)
    if dim < 1 or not (math.isfinite(trace) and trace >= 0):
        raise InputError(f"trace {trace:g} in {dim} dimensions: need a total variance >= 0 and at least one dimension")
    return 0.5 * dim * math.log1p(trace / dim / noise_var)


def oas_shrinkage(cov: Float[Tensor, "d d"], n: int) -> float:
    """Intensity in [0, 1] of oracle-approximating shrinkage towards a multiple of the identity.

    Args:
        cov: Sample covariance, divided by n.
        n: Number of samples behind it.

    Returns:
        The weight of the target, dimensionless.

    Raises:
        InputError: ``n`` is below 1, or the covariance is not finite.

    References:
        Chen, Wiesel, Eldar and Hero, Shrinkage Algorithms for MMSE Covariance Estimation, arXiv:0907.4698.
    """
    _check(1.0, cov)
    if n < 1:
        raise InputError(f"covariance of n = {n} samples: need at least 1")
    cov = _symmetric(cov)
    scale = float(cov.abs().amax()) or 1.0
    cov = cov / scale
    d = cov.shape[0]
    mean_square = float(cov.square().mean())
    mu_square = float(cov.diagonal().mean()) ** 2
    spread = (n + 1.0) * (mean_square - mu_square / d)
    return 1.0 if spread <= 0 else min((mean_square + mu_square) / spread, 1.0)


def shrink_covariance(cov: Float[Tensor, "d d"], n: int) -> Float[Tensor, "d d"]:
    """Shrink a sample covariance towards mu I, mu = trace / d, by the intensity of `oas_shrinkage`; the trace stays.

    Args:
        cov: Sample covariance, divided by n.
        n: Number of samples behind it.

    Returns:
        (1 - s) cov + s mu I, float64.

    Raises:
        InputError: ``n`` is below 1, or the covariance is not finite.
    """
    s = oas_shrinkage(cov, n)
    cov = _symmetric(cov)
    return (1.0 - s) * cov + s * cov.diagonal().mean() * torch.eye(len(cov), dtype=cov.dtype, device=cov.device)


def shrink_joint_covariance(
    cov_oo: Float[Tensor, "d d"], cov_ll: Float[Tensor, "d d"], cov_ol: Float[Tensor, "d d"], n: int
) -> tuple[Tensor, Tensor, Tensor, float]:
    r"""Shrink the covariance of (O, L) block by block, so that L = O stays L = O.

    The target is M (x) I with M the 2 x 2 covariance of one frozen and one adapted feature averaged over features:
    positive semi-definite, and so is every mixture with it. Shrinking the 2d x 2d matrix towards the identity instead
    would make an adapter that does nothing look noisy.

    Args:
        cov_oo: Sample covariance of O, divided by n.
        cov_ll: The same of L.
        cov_ol: Cross-covariance.
        n: Number of samples.

    Returns:
        The three blocks, float64, and the intensity, that of `oas_shrinkage` for ``cov_oo``.

    Raises:
        InputError: ``n`` is below 1, or a covariance is not finite.
    """
    _check(1.0, cov_oo, cov_ll, cov_ol)
    s = oas_shrinkage(cov_oo, n)
    identity = torch.eye(len(cov_oo), dtype=torch.float64, device=cov_oo.device)
    blocks = (_symmetric(cov_oo), _symmetric(cov_ll), cov_ol.to(torch.float64))
    oo, ll, ol = ((1.0 - s) * block + s * block.diagonal().mean() * identity for block in blocks)
    return oo, ll, ol, s


def _check(noise_var: float, *covariances: Tensor) -> None:
    if not (math.isfinite(noise_var) and noise_var > 0):
        raise InputError(f"noise variance {noise_var:g}: it must be positive and finite")
    for cov in covariances:
        if cov.numel() == 0 or not bool(torch.isfinite(cov).all()):
            raise InputError("covariance is empty or holds NaN or infinity: check the features it was made from")


def _symmetric(cov: Tensor) -> Tensor:
    cov = cov.to(torch.float64)
    return 0.5 * (cov + cov.T)


def _eigenvalues(cov: Tensor) -> Tensor:
    values: Tensor = torch.linalg.eigvalsh(_symmetric(cov))
    return values.clamp(min=0.0)
