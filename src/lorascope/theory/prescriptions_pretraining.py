"""How to pre-train for LoRA: the ridge that leaves the least noise, and what scaling S afterwards is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from scipy import optimize

from lorascope.theory._record import PENALTIES, Record, above_zero, at_least_zero, check_tokens, one_of
from lorascope.theory._rows import Row, Setting, along, flags, logarithmic, row_of
from lorascope.theory.pretraining import Pretrained, bayes_floor, largest_root, pretrain
from lorascope.theory.spectrum import Spectrum

NEAR = 0.05
"""Ridges whose noise is this close to the lowest one count as nearly as good."""


@dataclass(frozen=True, kw_only=True)
class Regularisation(Record):
    """The best ridge of stage 1 and what surrounds it.

    Attributes:
        alpha: N / d^2.
        tokens: T.
        kappa0: Rank of the target over d.
        noise: Delta.
        penalty: ``nuclear`` or ``frobenius``.
        activation: ``linear`` or ``softmax``.
        best_ridge: The lambda (or lambda_F) with the smallest effective noise.
        best: Stage 1 there.
        near: Ridges between which the noise is within 5 % of the smallest; with softmax as far as the grid shows it. The
            upper one is None where no ridge is too large; all is None if the grid has no such point.
        frobenius_ridge: The exact optimum of the Frobenius penalty, Delta / (T^2 Q0); None with softmax or Delta = 0.
        frobenius_noise: Its effective noise.
        bayes_noise: The floor that no estimator goes below; None with softmax.
        rows: Stage 1 along a grid of ridges.
        warnings: Why a number is not to be trusted.
        schema_version: Version of this layout.
    """

    alpha: float
    tokens: int
    kappa0: float
    noise: float
    penalty: str
    activation: str
    best_ridge: float
    best: Row
    near: list[float | None] | None
    frobenius_ridge: float | None
    frobenius_noise: float | None
    bayes_noise: float | None
    rows: list[Row]
    warnings: list[str] = field(default_factory=list)
    schema_version: int = 1

    kind: ClassVar[str] = "regularisation"


@dataclass(frozen=True, kw_only=True)
class Recalibration(Record):
    """What the factor beta = M / Q on the frozen matrix is worth.

    Attributes:
        beta: M / Q.
        noise_before: Effective noise of S.
        noise_after: Effective noise of beta S.
        removed: (Q - M)^2 / Q, their difference.
        plain: Both stages on fresh data without the factor.
        recalibrated: The same with it.
        best_plain: The plain case at its best ridge, for comparison.
        rows: Noise before and after along a grid of ridges: what is left of the dependence on lambda.
        warnings: Why a number is not to be trusted.
        schema_version: Version of this layout.
    """

    beta: float
    noise_before: float
    noise_after: float
    removed: float
    plain: Row
    recalibrated: Row
    best_plain: Row
    rows: list[Row]
    warnings: list[str] = field(default_factory=list)
    schema_version: int = 1

    kind: ClassVar[str] = "recalibration"


def best_pretraining(
    *,
    alpha: float | int,
    tokens: int,
    kappa0: float | int,
    noise: float | int,
    penalty: str = "nuclear",
    activation: str = "linear",
) -> Pretrained:
    r"""Stage 1 at the ridge that minimises the effective noise.

    Frobenius: :math:`\lambda_F^* = \Delta/(T^2 Q_0)`, exactly. Nuclear, linear: lambda enters only through the threshold
    eps, and at a given :math:`\delta^2` the noise :math:`\Delta/2 + Q_0 - 2M + Q` is smallest where

    .. math:: \epsilon = 2\delta^2\, E[H(x) \mid x > \epsilon],

    the mean of what the posterior mean :math:`x - 2\delta^2 H(x)` takes off the kept eigenvalues. The fixed point over
    :math:`\delta^2` with this eps is then the lowest one of all lambda, so that no search over lambda is needed. Softmax: a
    bounded search over log lambda.

    Args:
        alpha: N / d^2.
        tokens: T.
        kappa0: Rank of the target over d.
        noise: Delta.
        penalty: ``nuclear`` or ``frobenius``.
        activation: ``linear`` or ``softmax`` (T = 2, nuclear).

    Returns:
        `pretrain` at the best ridge.

    Raises:
        InputError: A value is out of range or unknown.

    Example:
        >>> found = best_pretraining(alpha=0.3, tokens=2, kappa0=0.5, noise=0.5)
        >>> round(found.ridge, 3), round(found.delta_eff, 3)
        (0.122, 0.381)
    """
    check_tokens(tokens, activation)
    above_zero(alpha=alpha, kappa0=kappa0)
    at_least_zero(noise=noise)
    one_of("penalty", penalty, PENALTIES)
    if activation != "linear":
        return _searched(alpha, tokens, kappa0, noise, penalty, activation)
    if penalty == "frobenius":
        ridge = max(noise / (tokens**2 * (1 + kappa0)), 1e-9)
    else:
        ridge = _best_nuclear(float(alpha), tokens, float(kappa0), float(noise))
    return pretrain(alpha=alpha, tokens=tokens, kappa0=kappa0, noise=noise, ridge=ridge, penalty=penalty)


def _best_nuclear(alpha: float, tokens: int, kappa0: float, noise: float) -> float:
    gamma, q0 = alpha * tokens * (tokens + 1), 1 + kappa0

    def step(deff: float) -> float:
        law = Spectrum.of(kappa0, deff / gamma)
        found = law.moments(_best_threshold(law, gamma))
        return noise / 2 + q0 - 2 * (found.xf - law.variance * found.d) + found.j

    deff, _, _ = largest_root(step, max(noise / 2, 1e-9), noise / 2 + q0, 1e-10)
    law = Spectrum.of(kappa0, deff / gamma)
    eps = _best_threshold(law, gamma)
    return max(2 * eps * (gamma - law.moments(eps).d) / tokens**2, 0.0)


def _best_threshold(law: Spectrum, gamma: float) -> float:
    """The eps of least noise among those with D <= gamma, which is where lambda is at least 0."""

    def slope(eps: float) -> float:
        _, mass, h = law.quadrature(eps)
        return eps * float(mass.sum()) - 2 * law.variance * float((mass * h).sum())

    top = law.top * (1 - 1e-9)
    low = 0.0
    if law.moments(0.0).d > gamma:
        low = float(optimize.brentq(lambda eps: law.moments(eps).d - gamma, 0.0, top, xtol=1e-14))
    if slope(low) >= 0:
        return low
    return top if slope(top) < 0 else float(optimize.brentq(slope, low, top, xtol=1e-13))


def _searched(
    alpha: float | int, tokens: int, kappa0: float | int, noise: float | int, penalty: str, activation: str
) -> Pretrained:
    seen: dict[float, Pretrained] = {}
    near: Pretrained | None = None

    def cost(place: float) -> float:
        nonlocal near
        found = pretrain(
            alpha=alpha,
            tokens=tokens,
            kappa0=kappa0,
            noise=noise,
            ridge=10**place,
            penalty=penalty,
            activation=activation,
            start=near,
        )
        near = found if found.converged and not found.collapsed else None
        seen[place] = found
        return found.delta_eff

    grid = [-4.0 + 0.5 * step for step in range(9)]
    values = [cost(place) for place in grid]
    best = min(range(9), key=values.__getitem__)
    near = seen[grid[best]]
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, 8)])
    optimize.minimize_scalar(cost, bounds=bounds, method="bounded", options={"xatol": 0.01})
    return seen[min(seen, key=lambda place: seen[place].delta_eff)]


def regularise(
    *,
    alpha: float | int,
    tokens: int,
    kappa0: float | int,
    noise: float | int,
    penalty: str = "nuclear",
    activation: str = "linear",
    ridges: Sequence[float | int] | None = None,
    progress: bool = False,
) -> Regularisation:
    """How strongly to regularise pre-training: for fresh fine-tuning data, the least noise is best for alignment and error.

    Args:
        alpha: N / d^2.
        tokens: T.
        kappa0: Rank of the target over d.
        noise: Delta.
        penalty: ``nuclear`` or ``frobenius``.
        activation: ``linear`` or ``softmax`` (T = 2, nuclear).
        ridges: Grid that is shown around the best; by default from a thirtieth to thirty times of it.
        progress: Show a progress bar.

    Returns:
        The best ridge, its neighbourhood, the exact optimum of the Frobenius penalty and the Bayes floor.

    Raises:
        InputError: A value is out of range or unknown.

    Example:
        >>> found = regularise(alpha=0.1, tokens=2, kappa0=0.5, noise=0.5, ridges=[0.05, 0.5])
        >>> round(found.best_ridge, 3), round(found.best["delta_eff"], 3), round(found.bayes_noise, 3)
        (0.076, 0.765, 0.676)
    """
    setting = Setting(
        alpha=alpha,
        tokens=tokens,
        kappa0=kappa0,
        noise=noise,
        ridge=None,
        penalty=penalty,
        activation=activation,
    )
    best = setting.first()
    given = logarithmic(*_around(best.ridge), 25) if ridges is None else [float(ridge) for ridge in ridges]
    points = sorted({*given, best.ridge} if best.ridge > 0 else set(given))
    rows = [row for _, row in along([setting.but(ridge=ridge) for ridge in points], "ridges", progress)]
    near: list[float | None] | None
    if activation == "linear":
        near = _near(best)
    else:
        close = [row["ridge"] for row in rows if row["delta_eff"] <= best.delta_eff * (1 + NEAR)]
        near = [min(close), max(close)] if close else None
    rival: Pretrained | None = None
    if activation == "linear" and noise > 0:
        rival = best_pretraining(alpha=alpha, tokens=tokens, kappa0=kappa0, noise=noise, penalty="frobenius")
    floor = None
    if activation == "linear":
        floor = bayes_floor(alpha=alpha, tokens=tokens, kappa0=kappa0, noise=noise)
    words = [f"at the best ridge: {word}" for word in best.warnings] + flags(rows)
    return Regularisation(
        alpha=float(alpha),
        tokens=tokens,
        kappa0=float(kappa0),
        noise=float(noise),
        penalty=penalty,
        activation=activation,
        best_ridge=best.ridge,
        best=row_of(best),
        near=near,
        frobenius_ridge=None if rival is None else rival.ridge,
        frobenius_noise=None if rival is None else rival.delta_eff,
        bayes_noise=floor,
        rows=rows,
        warnings=words,
    )


def _near(best: Pretrained) -> list[float | None]:
    """Where the noise crosses 1.05 of the smallest, on both sides of the best ridge; 0 or None if it does not."""

    def excess(place: float) -> float:
        found = pretrain(
            alpha=best.alpha,
            tokens=best.tokens,
            kappa0=best.kappa0,
            noise=best.noise,
            ridge=math.exp(place),
            penalty=best.penalty,
        )
        return found.delta_eff - best.delta_eff * (1 + NEAR)

    middle = math.log(max(best.ridge, 1e-6))
    ends: list[float | None] = []
    for step in (-1.0, 1.0):
        outer = middle
        while excess(outer) < 0 and abs(outer - middle) < 8:
            outer += step
        crossed = abs(outer - middle) < 8
        root = float(optimize.brentq(excess, outer - step, outer, xtol=1e-4)) if crossed and outer != middle else outer
        ends.append(math.exp(root) if crossed else 0.0 if step < 0 else None)
    return ends


def _around(ridge: float) -> tuple[float, float]:
    middle = max(ridge, 1e-3)
    return middle / 30, middle * 30


def recalibrate(
    *,
    alpha: float | int,
    tokens: int,
    kappa0: float | int,
    noise: float | int,
    ridge: float | int,
    alpha_finetune: float | int,
    ridge_finetune: float | int | None = 0.5,
    penalty: str = "nuclear",
    activation: str = "linear",
    points: int = 21,
    samples: int | None = None,
    progress: bool = False,
) -> Recalibration:
    r"""What it is worth to scale the frozen matrix by :math:`\beta = M/Q` before fine-tuning.

    The scaled matrix has the noise :math:`\Delta/2 + Q_0 - M^2/Q`, lower by :math:`(Q-M)^2/Q`. M needs the target; in
    practice beta is the slope of the labels on the frozen logits of fresh data.

    Args:
        alpha: N / d^2 of stage 1.
        tokens: T.
        kappa0: Rank of the target over d.
        noise: Delta.
        ridge: lambda.
        alpha_finetune: N' / d.
        ridge_finetune: lambda'; None for the best of each case.
        penalty: ``nuclear`` or ``frobenius``.
        activation: ``linear`` or ``softmax`` (T = 2).
        points: Ridges at which both noises are shown.
        samples: Quasi-random points of stage 2.
        progress: Show a progress bar.

    Returns:
        Noise, alignment and error with and without the factor.

    Raises:
        InputError: A value is out of range or unknown.
    """
    setting = Setting(
        alpha=alpha,
        tokens=tokens,
        kappa0=kappa0,
        noise=noise,
        ridge=ridge,
        penalty=penalty,
        activation=activation,
        alpha_finetune=alpha_finetune,
        ridge_finetune=ridge_finetune,
        samples=samples,
    )
    above_zero(ridge=ridge)
    first = setting.first()
    plain = row_of(first, setting.second(first))
    scaled = row_of(first, setting.but(data="recalibrated").second(first))
    best = setting.but(ridge=None)
    best_first = best.first()
    best_plain = row_of(best_first, best.second(best_first))
    grid = logarithmic(*_around(float(ridge)), points)
    stage1 = [setting.but(ridge=value, alpha_finetune=None) for value in grid]
    rows = [row for _, row in along(stage1, "ridges", progress)]
    named = {"plain": plain, "recalibrated": scaled, "best ridge": best_plain}
    words = [f"{name}: {word}" for name, row in named.items() for word in row["warnings"]]
    return Recalibration(
        beta=first.beta,
        noise_before=first.delta_eff,
        noise_after=first.delta_recalibrated,
        removed=first.delta_eff - first.delta_recalibrated,
        plain=plain,
        recalibrated=scaled,
        best_plain=best_plain,
        rows=rows,
        warnings=[*words, *flags(rows)],
    )
