r"""Stage 1 as order parameters: what pre-training on :math:`N = \alpha d^2` noisy sequences leaves for LoRA."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from scipy import optimize

from lorascope.core.errors import InputError
from lorascope.theory._record import (
    PENALTIES,
    Record,
    above_zero,
    at_least_zero,
    check_samples,
    check_tokens,
    number,
    one_of,
)
from lorascope.theory.spectrum import Moments, Spectrum

SMALLEST_RIDGE = 1e-9
"""ridge 0 is taken as this, the limit of a vanishing penalty."""
COLLAPSE = 0.01
"""S counts as collapsed when Q is below this share of Q0, or fewer than this share of its eigenvalues are kept."""
INTERPOLATION = 1e6


@dataclass(frozen=True, kw_only=True)
class Pretrained(Record):
    r"""Order parameters of stage 1.

    Attributes:
        alpha: N / d^2.
        tokens: T.
        kappa0: Rank of the target over d.
        noise: Delta.
        ridge: lambda (nuclear) or lambda_F (Frobenius).
        penalty: ``nuclear`` or ``frobenius``.
        activation: ``linear`` or ``softmax``.
        kappa: Rank of the factors over d; lambda counts sqrt(kappa) times.
        Q: Tr S^2 / d.
        M: Tr(S S0) / d.
        Q0: Tr S0^2 / d = 1 + kappa0.
        V: Susceptibility of the logits.
        k: How much fitting a sequence shrinks its own residual: 1 + 4 V / T^2 (softmax: root of delta_eff / delta_reuse).
        delta_eff: Variance of the residual logits on a fresh sequence, Delta/2 + Q0 - 2M + Q.
        delta_reuse: The same on a sequence of the training set; delta_eff / k^2 if linear.
        delta_recalibrated: The same on a fresh sequence with S times beta, Delta/2 + Q0 - M^2/Q.
        base_error: Q0 - 2M + Q.
        base_recalibrated: Q0 - M^2/Q.
        beta: M / Q, the best factor of S; 1 if S = 0.
        error: Of the noiseless target on a fresh sequence; linear: (T+1)/T base_error.
        rank_fraction: Share of the eigenvalues of S that are not 0.
        trace: Tr S / d; that of S0 is sqrt(kappa0).
        converged: Whether the residual is below the tolerance.
        iterations: Evaluations of the fixed-point map.
        residual: Largest change that the map would still make.
        warnings: Why a number is not to be trusted, one sentence each; empty if nothing is known against it.
        schema_version: Version of this layout.
    """

    alpha: float
    tokens: int
    kappa0: float
    noise: float
    ridge: float
    penalty: str
    activation: str
    kappa: float
    Q: float
    M: float
    Q0: float
    V: float
    k: float
    delta_eff: float
    delta_reuse: float
    delta_recalibrated: float
    base_error: float
    base_recalibrated: float
    beta: float
    error: float
    rank_fraction: float
    trace: float
    converged: bool
    iterations: int
    residual: float
    warnings: list[str] = field(default_factory=list)
    schema_version: int = 1

    kind: ClassVar[str] = "pretrained"

    @property
    def collapsed(self) -> bool:
        """Whether S is so close to 0 that the theory's numbers for it mean little at finite d."""
        return self.Q < COLLAPSE * self.Q0 or self.rank_fraction < COLLAPSE

    @property
    def valid(self) -> bool:
        """Whether there is no warning."""
        return not self.warnings


def pretrain(
    *,
    alpha: float | int,
    tokens: int,
    kappa0: float | int,
    noise: float | int,
    ridge: float | int,
    penalty: str = "nuclear",
    activation: str = "linear",
    kappa: float | int = 1.0,
    samples: int = 2**12,
    start: Pretrained | None = None,
    tolerance: float = 1e-9,
) -> Pretrained:
    r"""Order parameters of stage 1.

    Pre-training minimises :math:`\sum T^{-2} |z(S) - y|_F^2 + d\,\tilde\lambda\,\mathrm{Tr} S` over S >= 0.

    With :math:`\gamma = \alpha T (T+1)`, :math:`\delta^2 = \Delta_{\rm eff}/\gamma`, f(x) = (x - eps)_+ and the integrals
    J, D over the law of S0 + delta GOE (see `lorascope.theory.spectrum`):

    .. math:: \epsilon (\gamma - D) = \sqrt\kappa \lambda T^2/2, \quad Q = J, \quad M = \int x f\, d\mu - \delta^2 D, \quad
              \Delta_{\rm eff} = \Delta/2 + Q_0 - 2M + Q, \quad k = 1/(1 - D/\gamma).

    The problem is convex, so that this map of one number has one fixed point; it is found by bracketing. The Frobenius
    penalty :math:`(d \lambda_F/2) |S|_F^2` over symmetric S has a closed form. Softmax (T = 2, nuclear) see
    `lorascope.theory._softmax_pretraining`; it is not convex, so it is iterated from several starts.

    Args:
        alpha: N / d^2.
        tokens: T.
        kappa0: Rank of the target over d.
        noise: Delta, the label noise.
        ridge: lambda of the nuclear penalty, lambda_F of the Frobenius one. 0 (nuclear) is the limit of a vanishing penalty.
        penalty: ``nuclear`` or ``frobenius``.
        activation: ``linear`` or ``softmax`` (T = 2, nuclear).
        kappa: Rank of the factors over d, at least 1; the nuclear penalty counts sqrt(kappa) times.
        samples: Quasi-random points of softmax, a power of two.
        start: A result nearby, from which softmax is iterated; the linear cases need none.
        tolerance: Of the fixed point (softmax: at least 1e-5).

    Returns:
        Order parameters with convergence and warnings. Numbers are finite, also where warnings say not to trust them.

    Raises:
        InputError: A value is out of range or unknown.

    Example:
        >>> found = pretrain(alpha=0.1, tokens=3, kappa0=1.0, noise=0.5, ridge=0.1)
        >>> round(found.Q, 3), round(found.M, 3), round(found.k, 3), round(found.delta_eff, 4), round(found.delta_reuse, 4)
        (1.268, 1.411, 1.885, 0.6955, 0.1957)

    References:
        The model: arXiv 2606.05899; the spectral form of linear pre-training: arXiv 2509.24914. See docs/science/theory.md
        for what is whose.
    """
    check_tokens(tokens, activation)
    above_zero(alpha=alpha, kappa0=kappa0)
    at_least_zero(noise=noise, ridge=ridge)
    check_samples(samples)
    one_of("penalty", penalty, PENALTIES)
    above_zero(tolerance=tolerance)
    if not number("kappa", kappa) >= 1:
        raise InputError(
            f"kappa {kappa} must be a number of at least 1: narrower factors are not equal to the nuclear norm"
        )
    given = Pretrained(
        alpha=float(alpha),
        tokens=tokens,
        kappa0=float(kappa0),
        noise=float(noise),
        ridge=float(ridge),
        penalty=penalty,
        activation=activation,
        kappa=float(kappa),
        Q=0.0,
        M=0.0,
        Q0=1 + float(kappa0),
        V=0.0,
        k=1.0,
        delta_eff=0.0,
        delta_reuse=0.0,
        delta_recalibrated=0.0,
        base_error=0.0,
        base_recalibrated=0.0,
        beta=1.0,
        error=0.0,
        rank_fraction=0.0,
        trace=0.0,
        converged=False,
        iterations=0,
        residual=0.0,
    )
    if activation == "softmax":
        if penalty != "nuclear":
            raise InputError("penalty 'frobenius' is solved with activation 'linear' only: use penalty 'nuclear'")
        from lorascope.theory._softmax_pretraining import solve

        return complete(solve(given, samples, start, max(tolerance, 1e-5)))
    if penalty == "frobenius":
        if ridge == 0:
            raise InputError("ridge 0 with penalty 'frobenius' has no unique solution: give a number above 0")
        return complete(_frobenius(given))
    return complete(_nuclear(given, tolerance))


def complete(found: Pretrained) -> Pretrained:
    """Fill in what follows from Q, M, k and V, and the warnings."""
    q, m, q0 = found.Q, found.M, found.Q0
    recalibrated = max(q0 - m * m / q, 0.0) if q > 0 else q0
    base = max(q0 - 2 * m + q, 0.0)
    changes: dict[str, Any] = {"base_error": base, "base_recalibrated": recalibrated, "beta": m / q if q > 0 else 1.0}
    changes |= {"delta_eff": found.noise / 2 + base, "delta_recalibrated": found.noise / 2 + recalibrated}
    if found.activation == "linear":
        changes |= {"delta_reuse": changes["delta_eff"] / found.k**2, "error": (found.tokens + 1) / found.tokens * base}
    done = replace(found, **changes)
    return replace(done, warnings=[*found.warnings, *_warnings(done)])


def _warnings(found: Pretrained) -> list[str]:
    words = []
    if found.collapsed:
        words.append(
            f"pre-training collapsed (Q {found.Q:.2g} of {found.Q0:.2g}, {found.rank_fraction:.1%} of eigenvalues kept): "
            "lower ridge"
        )
    if found.k > INTERPOLATION:
        words.append(f"the training data are interpolated (k {found.k:.1g}): raise ridge for numbers on reused data")
    if not found.converged:
        words.append(f"not converged after {found.iterations} iterations (residual {found.residual:.1e})")
    return words


def threshold(law: Spectrum, gamma: float | int, pull: float | int) -> tuple[float, Moments]:
    r"""The eps > 0 with :math:`\epsilon (\gamma - D(\epsilon))` = ``pull`` and D < gamma, and the moments there."""

    def gap(eps: float) -> float:
        return eps * (gamma - law.moments(eps).d) - pull

    top = max(law.top, 0.0)
    if top * gamma <= pull:
        eps = pull / gamma
        return eps, Moments(0.0, 0.0, 0.0, 0.0, 0.0)
    # D is at most 1 (its value without a threshold) and positive, so that the root lies above pull / gamma.
    low = pull / gamma
    eps = low if gap(low) >= 0 else float(optimize.brentq(gap, low, top, xtol=1e-14, rtol=1e-13))
    return eps, law.moments(eps)


def largest_root(step: Callable[[float], float], low: float, high: float, tolerance: float) -> tuple[float, int, float]:
    """The largest fixed point of a map of one number, found from above: its place, evaluations, |step(x) - x|."""
    count = 0

    def gap(x: float) -> float:
        nonlocal count
        count += 1
        return step(x) - x

    upper = high
    while gap(upper) > 0 and upper < 1e12:
        upper *= 2
    lower = upper
    while lower > low:
        following = max(low, lower / 2)
        if gap(following) >= 0:
            found = float(optimize.brentq(gap, following, lower, xtol=tolerance * 1e-3, rtol=1e-13))
            return found, count, abs(gap(found))
        lower = following
    return low, count, abs(gap(low))


def _nuclear(given: Pretrained, tolerance: float) -> Pretrained:
    tokens = given.tokens
    gamma = given.alpha * tokens * (tokens + 1)
    pull = math.sqrt(given.kappa) * max(given.ridge, SMALLEST_RIDGE) * tokens**2 / 2

    def at(deff: float) -> tuple[float, Moments, float]:
        law = Spectrum.of(given.kappa0, deff / gamma)
        _, found = threshold(law, gamma, pull)
        return found.j, found, found.xf - law.variance * found.d

    def step(deff: float) -> float:
        q, _, m = at(deff)
        return given.noise / 2 + given.Q0 - 2 * m + q

    low = max(given.noise / 2, 1e-9)
    deff, count, residual = largest_root(step, low, given.noise / 2 + given.Q0, tolerance)
    q, found, m = at(deff)
    k = 1 / max(1 - found.d / gamma, 1e-15)
    return replace(
        given,
        Q=q,
        M=m,
        V=(k - 1) * tokens**2 / 4,
        k=k,
        rank_fraction=found.mass,
        trace=found.f,
        converged=residual < max(tolerance, 2 * low * (given.noise == 0)),
        iterations=count,
        residual=residual,
    )


def _frobenius(given: Pretrained) -> Pretrained:
    tokens, lf, q0 = given.tokens, given.ridge, given.Q0
    c, gamma = 1 / tokens**2, given.alpha * tokens * (tokens + 1)
    square, linear = 8 * c * lf, 4 * c * gamma + 2 * lf - 4 * c
    root = math.sqrt(linear * linear + 4 * square)
    v = 2 / (linear + root) if linear > 0 else (root - linear) / (2 * square)
    k = 1 + 4 * c * v
    a = 2 * c * gamma / k
    eta = a / (a + lf)
    deff = (given.noise / 2 + q0 * (1 - eta) ** 2) / (1 - eta**2 / gamma)
    return replace(
        given,
        Q=eta**2 * (q0 + deff / gamma),
        M=eta * q0,
        V=v,
        k=k,
        rank_fraction=1.0,
        trace=eta * math.sqrt(given.kappa0),
        converged=True,
        iterations=1,
        residual=0.0,
    )


def bayes_floor(*, alpha: float | int, tokens: int, kappa0: float | int, noise: float | int) -> float:
    r"""The smallest effective noise that any pre-training can leave, that of the posterior mean.

    .. math:: D = \Delta/2 + \delta^2 - \tfrac{4\pi^2}{3} \delta^4 \int \rho_\delta^3, \qquad \delta^2 = D/\gamma.

    Args:
        alpha: N / d^2.
        tokens: T.
        kappa0: Rank of the target over d.
        noise: Delta.

    Returns:
        The largest fixed point D; compare it with `Pretrained.delta_eff`.

    Raises:
        InputError: A value is out of range.

    Example:
        >>> round(bayes_floor(alpha=0.3, tokens=2, kappa0=0.5, noise=0.5), 3)
        0.376
    """
    check_tokens(tokens)
    above_zero(alpha=alpha, kappa0=kappa0)
    at_least_zero(noise=noise)
    gamma = alpha * tokens * (tokens + 1)

    def step(d: float) -> float:
        law = Spectrum.of(kappa0, d / gamma)
        return noise / 2 + law.variance - 4 * math.pi**2 / 3 * law.variance**2 * law.cube()

    return largest_root(step, max(noise / 2, 1e-9), noise / 2 + 1 + kappa0, 1e-9)[0]
