"""Mutual information of joints whose marginals span more than float64 can divide, cell by cell from exponents."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from lorascope.information.divergences import LN2, js_generator, kl_generator

Array = npt.NDArray[np.float64]
Exponents = npt.NDArray[np.integer]

_FAR = 1e8  # from here on P (ln r - 1) + W keeps all digits of W f_KL(r), and W may be 0
_CELLS = 1 << 18  # in one block of rows


def integrate_extreme(joint: Array) -> tuple[float, float, float, float]:
    """I, JS, max r and ln max r of a matrix of any finite weights >= 0, such as diag(1e300, 1e-300).

    With mantissas m and exponents e of cells, marginals and total, r = m m_t / (m_o m_l) 2^(e + e_t - e_o - e_l) is
    formed without a product that over- or underflows; its logarithm is finite where r itself is not. Slower than
    `joint._integrate`, so only for joints with a marginal below 2^-900 of the total.

    Args:
        joint: Weights, two axes, float64, at least one of them positive.

    Returns:
        I and JS in nats; the largest ratio (``inf`` above 1.8e308) and its logarithm.
    """
    (m_o, e_o), (m_l, e_l) = _marginal(joint, 1), _marginal(joint, 0)
    m_t, e_t = _total(m_o, e_o)
    mi = js = ratio = 0.0
    log_ratio = -math.inf
    rows = max(1, _CELLS // joint.shape[1])
    # Overflow is the answer where r is too large, and underflow where a weight is too small; log(0) marks empty cells.
    with np.errstate(all="ignore"):
        for start in range(0, len(joint), rows):
            part = slice(start, start + rows)
            m, e = np.frexp(joint[part])
            o, eo = m_o[part, None], e_o[part, None]
            quotient = m / np.where(o > 0, o, 1.0) / np.where(m_l > 0, m_l, 1.0) * m_t
            exponent = e + e_t - eo - e_l
            r = np.ldexp(quotient, exponent)
            log_r = np.log(quotient) + exponent * LN2
            p, w = np.ldexp(m / m_t, e - e_t), np.ldexp(o * m_l / m_t**2, eo + e_l - 2 * e_t)
            u = torch.from_numpy(np.minimum(r, _FAR) - 1.0)
            far = r > _FAR
            mi += float(np.where(far, p * (log_r - 1.0) + w, w * kl_generator(u).numpy()).sum())
            last = w * (LN2 - np.log1p(np.minimum(r, 1e300)))
            far_js = 0.5 * (p * (LN2 - np.log1p(1.0 / r)) + last)
            js += float(np.where(far, far_js, w * js_generator(u).numpy()).sum())
            ratio, log_ratio = max(ratio, float(r.max())), max(log_ratio, float(log_r.max()))
    return max(mi, 0.0), max(js, 0.0), ratio, log_ratio


def _marginal(joint: Array, axis: int) -> tuple[Array, Exponents]:
    """Mantissas and exponents of the sums along an axis; what underflows beside the largest cell is lost to rounding."""
    scale = np.frexp(joint.max(axis, keepdims=True))[1]
    m, e = np.frexp(np.ldexp(joint, -scale).sum(axis))
    return m, e + scale.squeeze(axis)


def _total(m: Array, e: Exponents) -> tuple[float, int]:
    scale = int(e[m > 0].max())
    total, exponent = math.frexp(float(np.ldexp(m, e - scale).sum()))
    return total, exponent + scale
