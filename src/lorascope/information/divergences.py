"""Entropies and divergences of discrete distributions, and the ratio that ties KL to Jensen-Shannon."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lorascope.core.errors import InputError
from lorascope.information._inputs import real_tensor, require_same_shape

LN2 = math.log(2.0)
_SMALL = 0.1  # below this |u|, g(u) = (1 + u) ln(1 + u) - u is summed as a series
_LARGE = 1e8  # above this r, kappa(r) is computed from ln r, which cannot overflow

RatioLike = TypeVar("RatioLike", Tensor, npt.NDArray[Any], float)


def kl_generator_into(u: Tensor, out: Tensor, work: Tensor, *, near_one: bool) -> Tensor:
    """`kl_generator` without any allocation: for inner loops, where fresh memory costs more than the logarithm.

    Args:
        u: r - 1 >= -1, float64 (float32 keeps 1e-7 of the larger of u and u ln u); not changed.
        out: Buffer for the result, shape of ``u``.
        work: Three buffers of the shape of ``u``.
        near_one: Whether to sum a series where |u| < 0.1. The plain formula alone is off by 1e-16 |u|, which is much
            of u^2 / 2 for tiny u.

    Returns:
        ``out``.
    """
    log, s, t = work
    lowest = -1.0 + torch.finfo(u.dtype).eps / 2  # at u = -1 the factor 1 + u = 0 makes any finite log right
    torch.clamp(u, min=lowest, out=log).log1p_()
    torch.add(u, 1.0, out=out).mul_(log).sub_(u)
    if near_one:
        # ln(1 + u) = 2 artanh(s) with s = u / (2 + u); its leading term cancels against u analytically, which leaves
        # g = 2 s^2 / (1 - s) [1 + (1 + s) (s / 3 + s^3 / 5 + s^5 / 7 + ...)].
        torch.add(u, 2.0, out=s)
        torch.div(u, s, out=s)
        torch.mul(s, s, out=t)
        series = log.fill_(1.0 / 13.0)
        for k in (11, 9, 7, 5, 3):
            series.mul_(t).add_(1.0 / k)
        series.mul_(s).mul_(s.add_(1.0)).add_(1.0).mul_(t).mul_(2.0).div_(s.neg_().add_(2.0))
        torch.where(u.abs() < _SMALL, series, out, out=out)
    return out


def kl_generator(u: Tensor) -> Tensor:
    r"""f_KL(r) = r ln r - r + 1 at r = 1 + u, to a relative accuracy of about 1e-14 for every u >= -1.

    The generator of the Kullback-Leibler divergence in its non-negative form: sum_i q_i f_KL(p_i / q_i) = KL(p || q),
    and no term of the sum is negative, so that nothing cancels. The generator of Jensen-Shannon follows from it:
    f_JS(1 + u) = f_KL(1 + u) / 2 - f_KL(1 + u / 2).

    Args:
        u: r - 1, float64.

    Returns:
        f_KL(1 + u), same shape, never negative.
    """
    return kl_generator_into(u, torch.empty_like(u), u.new_empty(3, *u.shape), near_one=True)


def js_generator(u: Tensor) -> Tensor:
    """f_JS(r) = [r ln(2r / (1 + r)) + ln(2 / (1 + r))] / 2 at r = 1 + u; see `kl_generator`."""
    return 0.5 * kl_generator(u) - kl_generator(0.5 * u)


def kappa(r: RatioLike) -> RatioLike:
    r"""Ratio of the generators of Kullback-Leibler and Jensen-Shannon, both in nats.

    kappa(r) = f_KL(r) / f_JS(r), with f_KL(r) = r ln r - r + 1 and
    f_JS(r) = [r ln(2r / (1 + r)) + ln(2 / (1 + r))] / 2.

    It increases from 2 / ln 2 at r = 0 through 4 at r = 1 (the limit, computed by series) and grows like
    (2 / ln 2) ln r. Whence (2 / ln 2) JS <= KL <= kappa(R) JS when the ratio of the two distributions is at most R.

    Args:
        r: Probability ratio(s) in [0, inf], dimensionless: a float, an array or a tensor.

    Returns:
        kappa(r), of the same kind as ``r``; tensors and arrays as float64; ``inf`` at infinity.

    Raises:
        InputError: A ratio is negative or NaN.

    Example:
        >>> round(kappa(0.0), 6), kappa(1.0)
        (2.88539, 4.0)

    References:
        Sason and Verdu, f-Divergence Inequalities, arXiv:1508.00335.
    """
    x = torch.as_tensor(np.array(r) if isinstance(r, np.ndarray) else r, dtype=torch.float64)
    if not bool((x >= 0).all()):
        raise InputError("kappa needs ratios in [0, inf], got a negative one or NaN: pass p / q of two distributions")
    u = x.clamp(max=_LARGE) - 1.0
    middle = torch.where(u == 0, 4.0, kl_generator(u) / js_generator(u))
    big = x.clamp(min=_LARGE)
    far = (big.log() - 1.0 + 1.0 / big) / (0.5 * (LN2 - torch.log1p(1.0 / big) + (LN2 - torch.log1p(big)) / big))
    far = torch.where(big.isinf(), math.inf, far)
    value = torch.where(x > _LARGE, far, middle)
    if isinstance(r, Tensor):
        return value
    return value.numpy() if isinstance(r, np.ndarray) else value.item()


def _normalised(p: Tensor, name: str) -> Tensor:
    p = real_tensor(p, name).to(torch.float64)
    if p.ndim == 0:
        raise InputError(f"{name} is a single number: pass weights along the last axis")
    if p.shape[-1:] == (0,) or not bool(torch.isfinite(p).all()) or bool((p < 0).any()):
        raise InputError(f"{name} must hold finite weights >= 0: got an empty, negative, infinite or NaN one")
    peak = p.amax(-1, keepdim=True)
    if bool((peak == 0).any()):
        raise InputError(f"{name} has a row without any weight: drop rows that sum to 0")
    p = p / peak
    return p / p.sum(-1, keepdim=True)


def entropy(p: Tensor) -> Tensor:
    """Shannon entropy of discrete distributions, -sum_i p_i ln p_i.

    Args:
        p: Weights >= 0 along the last axis, (..., d), any scale (normalised inside) and real type.

    Returns:
        Entropy in nats, (...), float64, in [0, ln d].

    Raises:
        InputError: A weight is negative or not finite, or a row has none.

    Example:
        >>> round(float(entropy(torch.tensor([1.0, 1.0]))), 6)
        0.693147
    """
    p = _normalised(p, "p")
    nats: Tensor = torch.special.entr(p).sum(-1)
    return nats.clamp(0.0, math.log(p.shape[-1]))


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Kullback-Leibler divergence of discrete distributions, KL(p || q) = sum_i p_i ln(p_i / q_i).

    Summed as q_i f_KL(p_i / q_i), whose terms are never negative, so that close distributions lose no digits.

    Args:
        p: Weights >= 0 along the last axis, (..., d), any scale (normalised inside) and real type.
        q: The same, same shape.

    Returns:
        Divergence in nats, (...), float64, >= 0; ``inf`` where p has weight and q has none.

    Raises:
        InputError: The shapes differ, a weight is negative or not finite, or a row has none.

    Example:
        >>> round(float(kl_divergence(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0]))), 6)
        0.693147
    """
    p, q = _normalised(p, "p"), _normalised(q, "q")
    require_same_shape(p, q, ("p", "q"))
    held = q > 0
    u = ((p - q) / torch.where(held, q, 1.0)).clamp(-1.0, 1e300)
    far = torch.xlogy(p, p) - torch.xlogy(p, q) - p + q  # where p / q is huge: q * f_KL without the product's underflow
    terms = torch.where(u < _LARGE, q * kl_generator(u), far)
    return torch.where(held, terms, torch.where(p > 0, math.inf, 0.0)).sum(-1)


def jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    r"""Jensen-Shannon divergence of two distributions given by their log-probabilities.

    JS(p || q) = KL(p || m) / 2 + KL(q || m) / 2 with m = (p + q) / 2. With h = (ln p - ln q) / 2 each feature adds
    m [h tanh h - ln cosh h], which is never negative and is computed without cancellation for any h; rows are
    normalised in float64 first, so that the rounding of bfloat16 log-probabilities cannot leave [0, ln 2].

    Args:
        log_p: Log-probabilities in nats, (..., d), distributions along the last axis; ``-inf`` stands for zero.
        log_q: The same, same shape.

    Returns:
        Divergence in nats, (...), float64, in [0, ln 2]; symmetric in its arguments, 0 for equal ones, never NaN.

    Raises:
        InputError: The shapes differ, the last axis is empty, or a row holds NaN or ``+inf`` or no probability at all.

    Example:
        >>> p = torch.tensor([[0.0, -torch.inf]])
        >>> round(float(jensen_shannon(p, p.flip(-1))), 6)
        0.693147

    References:
        Lin, Divergence measures based on the Shannon entropy, IEEE Trans. Inf. Theory 37 (1991).
    """
    lp, lq = _log_normalised(log_p, "log_p"), _log_normalised(log_q, "log_q")
    require_same_shape(lp, lq, ("log_p", "log_q"))
    h = (0.5 * (lp - lq)).nan_to_num(0.0, 400.0, -400.0).abs_().clamp_(max=400.0)  # nan: neither has weight
    e = torch.exp(-2.0 * h)
    near = h * torch.tanh(h) - torch.log1p(torch.sinh(0.5 * h.clamp(max=1.0)).square_().mul_(2.0))
    far = LN2 - torch.log1p(e) - 2.0 * h * e / (1.0 + e)
    terms = torch.where(h < 0.5, near, far)
    divergence: Tensor = (0.5 * (lp.exp() + lq.exp()) * terms).sum(-1)
    return divergence.clamp(0.0, LN2)


def _log_normalised(log_p: Tensor, name: str) -> Tensor:
    log_p = real_tensor(log_p, name).to(torch.float64)
    if log_p.ndim == 0:
        raise InputError(f"{name} is a single number: pass log-probabilities along the last axis")
    total = torch.logsumexp(log_p, -1, keepdim=True)
    if log_p.shape[-1] == 0 or not bool(torch.isfinite(total).all()):
        raise InputError(f"{name} has a row with NaN, +inf or no finite entry: pass log-probabilities (log_softmax)")
    return log_p - total
