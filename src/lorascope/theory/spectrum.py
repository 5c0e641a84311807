r"""Eigenvalues of the target seen through noise: the law of :math:`S_0 + \delta\,\mathrm{GOE}` and integrals over it.

:math:`S_0 = W^* W^{*T} / \sqrt{p_0 d}` with :math:`p_0 = \kappa_0 d` Gaussian columns has the R-transform
:math:`K / (1 - g/K)`, :math:`K = \sqrt{\kappa_0}`; a GOE matrix of variance :math:`\delta^2` adds :math:`\delta^2 g`. Hence

.. math:: x = \frac{K}{1 - g/K} + \delta^2 g + \frac1g,

a cubic for the Stieltjes transform g. Its complex root gives the density :math:`\rho = \mathrm{Im}\,g/\pi` and the Hilbert
transform :math:`H = \mathrm{Re}\,g`. The edges of the support are where dx/dg = 0. Between two edges (or from a threshold to
an edge) :math:`x = \mathrm{lo} + (\mathrm{hi} - \mathrm{lo}) \sin^2(\theta/2)` takes the square roots out, and
Gauss-Legendre nodes in :math:`\theta` converge exponentially. This also resolves the narrow part near 0 that a target of low
rank has at small :math:`\delta`, without an extra grid.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
NODES = 300
SMALLEST_VARIANCE = 1e-12
"""The noise variance delta^2 is kept above this; the law without noise has an atom at 0 and no density there."""


@dataclass(frozen=True)
class Moments:
    """Integrals of the soft threshold f(x) = (x - eps)_+ over the law mu.

    Attributes:
        j: int f^2 dmu.
        d: 2 int f H dmu, which is the derivative of j by delta^2.
        xf: int x f dmu.
        f: int f dmu.
        mass: Share of the eigenvalues above eps.
    """

    j: float
    d: float
    xf: float
    f: float
    mass: float


def stieltjes(x: Array, kappa0: float | int, variance: float | int) -> NDArray[np.complex128]:
    r"""The root g of the cubic with the largest imaginary part: :math:`\int d\mu(y) / (x - y)` just below the real axis.

    .. math:: (\delta^2/K) g^3 - (x/K + \delta^2) g^2 + (x + 1/K - K) g - 1 = 0.

    Args:
        x: Points on the real axis.
        kappa0: Rank of the target over d.
        variance: :math:`\delta^2`, positive.

    Returns:
        g of each point; Im g / pi is the density, Re g the Hilbert transform.

    Example:
        >>> g = stieltjes(np.array([0.0]), 1e-9, 1.0)  # hardly a target: Wigner's semicircle, of density 1/pi at 0
        >>> round(float(g.imag[0]), 3)
        1.0
    """
    k = math.sqrt(kappa0)
    lead = variance / k
    linear = x + 1 / k - k
    b, c, d = -(x / k + variance) / lead, linear / lead, -1 / lead
    # Cardano's formula for the real root, Newton's steps against cancellation, then the pair from its product and sum.
    p, q = c - b * b / 3, 2 * b**3 / 27 - b * c / 3 + d
    root = np.sqrt(np.maximum(q * q / 4 + p**3 / 27, 0))
    u = np.cbrt(-q / 2 - np.copysign(root, q))
    real = u - p / np.where(u == 0, np.inf, 3 * u) - b / 3
    for _ in range(4):
        value, slope = ((real + b) * real + c) * real + d, (3 * real + 2 * b) * real + c
        step = value / np.where(slope == 0, np.inf, slope)
        real = real - np.where(np.abs(step) < 0.5 * np.abs(real), step, 0)
    product = 1 / (lead * real)
    half = (linear - 1 / real) / (2 * lead * real)
    return half + 1j * np.sqrt(np.maximum(product - half * half, 0))


def edges(kappa0: float | int, variance: float | int) -> list[tuple[float, float]]:
    r"""The one or two intervals of the support (two may touch): images of the real g with dx/dg = 0.

    .. math:: g^2 + (\delta^2 g^2 - 1)(1 - g/K)^2 = 0.

    Example:
        >>> [(round(lo, 3), round(hi, 3)) for lo, hi in edges(0.25, 0.0001)]
        [(-0.017, 0.017), (0.5, 4.5)]
    """
    k = math.sqrt(kappa0)
    linear = np.array([-1 / k, 1.0])
    quartic = np.polyadd([1.0, 0.0, 0.0], np.polymul([variance, 0.0, -1.0], np.polymul(linear, linear)))
    found = np.roots(quartic)
    real = found[np.abs(found.imag) < 1e-6 * np.maximum(np.abs(found), 1e-12)].real
    points = []
    for g in real:
        for _ in range(20):
            gap = 1 - g / k
            slope = 1 / gap**2 + variance - 1 / g**2
            bend = 2 / (k * gap**3) + 2 / g**3
            if bend == 0 or not math.isfinite(slope / bend):
                break
            step = slope / bend
            if abs(step) > 0.1 * abs(g):
                break
            g -= step
            if abs(step) < 1e-15 * abs(g):
                break
        points.append(float(k / (1 - g / k) + variance * g + 1 / g))
    points.sort()
    if len(points) == 4 and points[2] > points[1]:
        return [(points[0], points[1]), (points[2], points[3])]
    # Two bulks that have just merged leave a dip: cut there, at the real part of the complex pair's image.
    dip = max(found, key=lambda g: float(g.imag))
    if dip.imag > 0 and dip != 0:
        middle = complex(k / (1 - dip / k) + variance * dip + 1 / dip)
        if points[0] < middle.real < points[-1] and abs(middle.imag) < 0.1 * (points[-1] - points[0]):
            return [(points[0], middle.real), (middle.real, points[-1])]
    return [(points[0], points[-1])]


@functools.lru_cache(maxsize=8)
def _nodes(count: int) -> tuple[Array, Array]:
    """sin^2(theta/2) and the weights with d sin^2(theta/2), for theta of Gauss-Legendre on (0, pi)."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    theta = (nodes + 1) * (math.pi / 2)
    return np.sin(theta / 2) ** 2, weights * (math.pi / 2) * np.sin(theta) / 2


@dataclass(frozen=True)
class Spectrum:
    """The law of S0 + delta GOE.

    Attributes:
        kappa0: Rank of the target over d.
        variance: delta^2.
        support: Its intervals, from below.
        nodes: Gauss-Legendre nodes an interval.

    Example:
        >>> law = Spectrum.of(0.5, 0.3)
        >>> m = law.moments(-100.0)  # below the support nothing is cut, and H has mean 0
        >>> round(m.mass, 9), round(m.d, 9)
        (1.0, 1.0)
    """

    kappa0: float
    variance: float
    support: tuple[tuple[float, float], ...]
    nodes: int = NODES

    @classmethod
    def of(cls, kappa0: float | int, variance: float | int, nodes: int = NODES) -> Spectrum:
        """The law at a rank and a noise variance."""
        kept = max(float(variance), SMALLEST_VARIANCE)
        return cls(float(kappa0), kept, tuple(edges(kappa0, kept)), nodes)

    @property
    def top(self) -> float:
        """The largest eigenvalue."""
        return self.support[-1][1]

    def quadrature(self, above: float = -math.inf) -> tuple[Array, Array, Array]:
        """Nodes x above a threshold, their mass rho dx, and H there."""
        place, weight = _nodes(self.nodes)
        xs, ws = [], []
        for lo, hi in self.support:
            start = max(lo, above)
            if start < hi:
                xs.append(start + (hi - start) * place)
                ws.append((hi - start) * weight)
        if not xs:
            return np.zeros(0), np.zeros(0), np.zeros(0)
        x = np.concatenate(xs)
        g = stieltjes(x, self.kappa0, self.variance)
        return x, np.concatenate(ws) * g.imag / math.pi, g.real

    def moments(self, eps: float | int) -> Moments:
        """J, D, int x f and the mass above a threshold."""
        x, mass, h = self.quadrature(float(eps))
        f = x - eps
        return Moments(
            j=float((f * f * mass).sum()),
            d=float(2 * (f * h * mass).sum()),
            xf=float((x * f * mass).sum()),
            f=float((f * mass).sum()),
            mass=float(mass.sum()),
        )

    def cube(self) -> float:
        """int rho^3 dx, which the Bayes-optimal error needs."""
        place, weight = _nodes(self.nodes)
        total = 0.0
        for lo, hi in self.support:
            density = stieltjes(lo + (hi - lo) * place, self.kappa0, self.variance).imag / math.pi
            total += float(((hi - lo) * weight * density**3).sum())
        return total
