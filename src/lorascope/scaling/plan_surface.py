"""A metric over (N, R, D) without a formula: a Gaussian process whose settings are averaged over, not chosen.

It bends where the data bend (a rank that stops helping, overfitting) and stays flat where they are flat, works from four
runs on, and says how unsure it is. A fitted law can be its trend; the process then holds what the law misses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln
from scipy.stats import norm, qmc

_DEGREES = 3.0  # of the prior of the metric's scale: it is known to a factor of about 3
_MEAN_VARIANCE = 25.0
_JITTER = 1e-9
_LARGEST = 60  # observations; more are averaged by cell first, which loses nothing but the order of the seeds


@dataclass(frozen=True, eq=False)
class Draws:
    """Joint draws of the metric's mean at several places.

    Attributes:
        values: (draws, places), in the metric's unit.
        noise: Standard deviation of one run about its cell's mean when the seed's common effect is taken away, (draws,).
        evidence: Log of the marginal likelihood of the data.
    """

    values: np.ndarray
    noise: np.ndarray
    evidence: float


def draw_surface(
    x: np.ndarray,
    y: np.ndarray,
    seeds: np.ndarray,
    at: np.ndarray,
    *,
    count: int,
    rng: np.random.Generator,
    trend: tuple[np.ndarray, np.ndarray] | None = None,
    settings: int = 192,
) -> Draws:
    """Draw the metric's mean at places, given runs.

    y = mean + f(x) + u[seed] + e, with f = sum over axes of a_j (linear + Gaussian bump kernel) plus an interaction of
    all axes, u the common effect of a seed and e the noise of a run. The kernel's amplitudes, its length, u's and e's
    sizes have log-normal priors and are averaged over by importance sampling in two rounds; the overall scale is
    integrated out (a Student t).

    Args:
        x: Places of the runs, (n, k), each axis scaled to a length of about 1.
        y: Metric, (n,).
        seeds: Number of each run's seed, (n,), from 0.
        at: Places to draw at, (m, k).
        count: Draws.
        rng: Source of randomness.
        trend: A trend's bootstrap at the runs (b, n) and at the places (b, m), taken away and put back draw by draw.
        settings: Kernels in each round.

    Returns:
        The draws.

    References:
        Rasmussen and Williams, Gaussian Processes for Machine Learning, chapters 2 and 5.
    """
    at_data, at_places = trend if trend is not None else (np.zeros((1, len(y))), np.zeros((1, len(at))))
    x, y, at_data, seeds, counts, inner = _condensed(x, y, at_data, seeds)
    residual = y - at_data.mean(0)
    centre = float(residual.mean())
    scale = float(residual.std()) if len(y) > 1 else 0.0
    if scale <= 1e-12 * max(1.0, float(np.abs(y).max())):
        if len(y) > 1:  # every run the same: the data show no spread of any kind
            flat = np.broadcast_to(centre + at_places[rng.integers(len(at_places), size=count)], (count, len(at)))
            return Draws(np.array(flat), np.zeros(count), 0.0)
        scale = 0.1 * max(abs(centre), 1e-3)
    kernel = _Kernel(x, seeds, counts, (inner[0] / scale**2, inner[1]))
    targets = (y - at_data - centre) / scale  # one row a trend
    theta, weights, evidence = _settings(kernel, (residual - centre) / scale, settings, rng)
    chosen = rng.choice(len(theta), size=count, p=weights)
    which = rng.integers(len(at_places), size=count)
    values, noise = np.empty((count, len(at))), np.empty(count)
    n = len(y)
    for index in np.unique(chosen):
        rows = np.flatnonzero(chosen == index)
        covariance = kernel.data(theta[index : index + 1])[0]
        cross = kernel.cross(theta[index], at)
        solved = np.linalg.solve(covariance, np.column_stack([cross.T, targets[which[rows]].T]))
        gain, alpha = solved[:, : len(at)], solved[:, len(at) :]
        left = kernel.prior(theta[index], at) - cross @ gain
        root = _root(left)
        quadratic = np.einsum("rn,nr->r", targets[which[rows]], alpha) + kernel.replicates(theta[index])
        spread = (_DEGREES + quadratic) / rng.chisquare(_DEGREES + n + inner[1], size=len(rows))
        z = rng.standard_normal((len(rows), len(at)))
        drawn = (cross @ alpha).T + np.sqrt(spread)[:, None] * (z @ root.T)
        values[rows] = centre + scale * drawn + at_places[which[rows]]
        noise[rows] = scale * np.sqrt(spread) * np.exp(theta[index, kernel.noise_at])
    return Draws(values, noise, evidence - (n + inner[1]) * float(np.log(scale)))


def _condensed(
    x: np.ndarray, y: np.ndarray, trend: np.ndarray, seeds: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[float, float]]:
    """The runs, or, where they are many, one average a cell with the seeds' common effect taken away.

    Last is what the averages lose: the sum of squares within cells, and its degrees of freedom.
    """
    places, cell = np.unique(x, axis=0, return_inverse=True)
    cell = cell.reshape(-1)
    if len(y) <= _LARGEST or len(places) == len(y):
        return x, y, trend, seeds, np.ones(len(y)), (0.0, 0.0)
    counts = np.bincount(cell).astype(float)
    effect = np.zeros(int(seeds.max()) + 1)
    for _ in range(50):  # two-way means by turns
        means = np.bincount(cell, y - effect[seeds]) / counts
        effect = np.bincount(seeds, y - means[cell], minlength=len(effect)) / np.maximum(np.bincount(seeds), 1)
        effect -= effect.mean()
    clean = y - effect[seeds]
    means = np.bincount(cell, clean) / counts
    free = max(float(len(y) - len(places) - (len(effect) - 1)), 0.0)
    inner = (float(((clean - means[cell]) ** 2).sum()) if free else 0.0, free)
    trends = np.stack([np.bincount(cell, row) / counts for row in trend])
    return places, means, trends, np.zeros(len(places), dtype=int), counts, inner


class _Kernel:
    """Covariances of the runs under many settings; the runs' distances are computed once.

    Settings are logs: one amplitude an axis, the interaction's, the length, the noise, the seeds' effect.
    """

    def __init__(self, x: np.ndarray, seeds: np.ndarray, counts: np.ndarray, inner: tuple[float, float]) -> None:
        self.x, self.counts, self.inner = x, counts, inner
        self.axes = x.shape[1]
        self.same = (seeds[:, None] == seeds[None]).astype(float)
        self.noise_at = self.axes + 2
        several = len(np.unique(seeds)) > 1
        centre = [np.log(0.5)] * self.axes + [np.log(0.2), np.log(0.7), np.log(0.2), np.log(0.1 if several else 1e-4)]
        width = [1.0] * self.axes + [1.0, 0.4, 0.8, 1.0 if several else 1e-3]
        self.centre, self.width = np.array(centre), np.array(width)

    def _smooth(self, theta: np.ndarray, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Covariance of f between places x and z for settings theta (s, p): (s, len(x), len(z))."""
        amplitude = np.exp(2 * theta[:, : self.axes + 1])
        length = np.exp(2 * theta[:, self.axes + 1])[:, None, None]
        found = np.full((len(theta), len(x), len(z)), _MEAN_VARIANCE)
        whole = np.zeros((len(x), len(z)))
        for axis in range(self.axes):
            gap = (x[:, axis][:, None] - z[:, axis][None]) ** 2
            whole = whole + gap
            linear = x[:, axis][:, None] * z[:, axis][None]
            found += amplitude[:, axis][:, None, None] * (linear + np.exp(-gap / (2 * length)))
        if self.axes > 1:
            found += amplitude[:, self.axes][:, None, None] * np.exp(-whole / (2 * length))
        return found

    def data(self, theta: np.ndarray) -> np.ndarray:
        """Covariance of the runs for each setting, (s, n, n)."""
        found = self._smooth(theta, self.x, self.x)
        found += np.exp(2 * theta[:, self.noise_at + 1])[:, None, None] * self.same
        diagonal = np.arange(len(self.x))
        found[:, diagonal, diagonal] += np.exp(2 * theta[:, self.noise_at])[:, None] / self.counts + _JITTER
        return found

    def replicates(self, theta: np.ndarray) -> np.ndarray:
        """Sum of squares within cells over the noise's variance, for settings (..., p)."""
        return np.asarray(self.inner[0] * np.exp(-2 * theta[..., self.noise_at]))

    def cross(self, theta: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Covariance of f at places with the runs, (m, n)."""
        return np.asarray(self._smooth(theta[None], at, self.x)[0])

    def prior(self, theta: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Covariance of f at places, (m, m)."""
        return np.asarray(self._smooth(theta[None], at, at)[0])

    def evidence(self, theta: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Log marginal likelihood of each setting with the scale integrated out, (s,)."""
        n, free = len(y), self.inner[1]
        found = []
        for part in np.array_split(theta, max(1, len(theta) * n * n // 2_000_000 + 1)):
            if not len(part):
                continue
            root = np.linalg.cholesky(self.data(part))
            whitened = np.linalg.solve(root, np.broadcast_to(y[:, None], (len(part), n, 1)))[..., 0]
            logdet = np.log(np.diagonal(root, axis1=1, axis2=2)).sum(1) + free * part[:, self.noise_at]
            quadratic = (whitened**2).sum(1) + self.replicates(part)
            found.append(-logdet - 0.5 * (_DEGREES + n + free) * np.log1p(quadratic / _DEGREES))
        every = n + free
        constant = gammaln((_DEGREES + every) / 2) - gammaln(_DEGREES / 2) - 0.5 * every * np.log(_DEGREES * np.pi)
        return np.asarray(np.concatenate(found) + constant)


def _settings(
    kernel: _Kernel, y: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, float]:
    """Settings with their posterior weights, and the log evidence: prior draws, then draws around the good ones."""
    size = len(kernel.centre)

    def quasi() -> np.ndarray:
        with_power = qmc.Sobol(size, seed=rng).random_base2(int(np.ceil(np.log2(count))))[:count]
        return np.asarray(norm.ppf(np.clip(with_power, 1e-6, 1 - 1e-6)))

    first = quasi()  # in units of the prior's widths
    fit = kernel.evidence(kernel.centre + kernel.width * first, y)
    soft = np.exp((fit - fit.max()) / 2)
    soft /= soft.sum()
    middle = soft @ first
    spread = np.sqrt(soft @ (first - middle) ** 2 + 0.05)
    second = middle + 1.3 * spread * quasi()
    every = np.concatenate([first, second])
    fit = np.concatenate([fit, kernel.evidence(kernel.centre + kernel.width * second, y)])
    prior = norm.logpdf(every).sum(1)
    proposal = np.logaddexp(prior, norm.logpdf(every, middle, 1.3 * spread).sum(1)) - np.log(2)
    logs = fit + prior - proposal
    top = float(logs.max())
    weights = np.exp(logs - top)
    return kernel.centre + kernel.width * every, weights / weights.sum(), top + float(np.log(weights.mean()))


def _root(covariance: np.ndarray) -> np.ndarray:
    """A matrix whose square is a covariance that rounding may have made slightly indefinite."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))
