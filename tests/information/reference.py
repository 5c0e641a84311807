"""Slow references with 60 decimal digits, by the textbook formulas, and random joints of many kinds."""

from __future__ import annotations

import decimal
from collections.abc import Iterable
from decimal import Decimal

import numpy as np
import numpy.typing as npt

_CONTEXT = decimal.Context(prec=60, Emin=-99999, Emax=99999)


def _xlogx(x: Decimal) -> Decimal:
    return x * x.ln() if x else Decimal(0)


def exact_kappa(r: Decimal) -> Decimal:
    with decimal.localcontext(_CONTEXT):
        kl = _xlogx(r) - r + 1
        m = (1 + r) / 2
        js = (_xlogx(r) - 2 * m * m.ln()) / 2
        return kl / js


def exact_js(p: Iterable[float], q: Iterable[float]) -> float:
    with decimal.localcontext(_CONTEXT):
        p, q = [Decimal(x) for x in p], [Decimal(x) for x in q]
        total_p, total_q = sum(p), sum(q)
        p, q = [x / total_p for x in p], [x / total_q for x in q]
        m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        return float(sum(map(_xlogx, p)) / 2 + sum(map(_xlogx, q)) / 2 - sum(map(_xlogx, m)))


def exact_measures(joint: npt.NDArray[np.float64], digits: int = 60) -> tuple[float, float, float]:
    """Mutual information, JS(P_OL || P_O P_L) and the largest ratio.

    Scales that differ by 10^k need 2 k digits more.
    """
    with decimal.localcontext(_CONTEXT, prec=digits):
        rows = [[Decimal(float(x)) for x in row] for row in joint]
        total = sum(map(sum, rows))
        p_o, p_l = [sum(row) / total for row in rows], [sum(column) / total for column in zip(*rows, strict=True)]
        mi = js = ratio = Decimal(0)
        for a, row in zip(p_o, rows, strict=True):
            for b, weight in zip(p_l, row, strict=True):
                p, w = weight / total, a * b
                mi += p * (p / w).ln() if p else 0
                m = (p + w) / 2
                js += (_xlogx(p) + _xlogx(w)) / 2 - _xlogx(m)
                ratio = max(ratio, p / w) if w else ratio
        return float(mi), float(js), float(ratio)


def random_joint(seed: int) -> npt.NDArray[np.float64]:
    """A joint of random size, temperature and sparsity: from nearly independent to nearly deterministic."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 9, size=2))
    kind = rng.integers(4)
    if kind == 0:  # peaked
        joint = np.exp(rng.normal(size=shape) * rng.uniform(0, 30))
    elif kind == 1:  # close to independent
        joint = np.outer(rng.random(shape[0]) + 0.1, rng.random(shape[1]) + 0.1)
        joint *= 1 + 10.0 ** rng.uniform(-12, -1) * rng.normal(size=shape).clip(-3, 3)
    elif kind == 2:  # counts
        joint = rng.poisson(rng.uniform(0.1, 5), size=shape).astype(np.float64)
    else:  # sparse, with widely spread marginals
        joint = rng.random(shape) * 10.0 ** rng.uniform(-20, 0, size=(shape[0], 1))
        joint *= rng.random(shape) < rng.uniform(0.2, 1)
    if not joint.any():
        joint[rng.integers(shape[0]), rng.integers(shape[1])] = 1.0
    return joint
