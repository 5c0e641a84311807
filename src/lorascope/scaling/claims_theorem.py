"""Theorem 3 of the paper, as printed and as true, on runs and on random joint distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lorascope.scaling.claims import Claim, Verdict, undecided
from lorascope.scaling.claims_statistics import share_interval

LN2 = math.log(2)
LOWEST_RATIO = 2 / LN2  # of I to JS; the paper claims that the ratio is at most ln 2
_ROUNDING = 1e-9


def printed_bound(mi: Sequence[float], printed: Sequence[float], unit: str, extra: str = "") -> Claim:
    """Test Theorem 3 as printed: ``I <= log(2) JS``.

    Args:
        mi: Mutual information of each case, in nats; cases without any are left out.
        printed: ``log(2) JS`` of the same cases.
        unit: What a case is, in the plural.
        extra: A sentence to add.

    Returns:
        The claim; one counterexample contradicts it.
    """
    key, statement = (
        "theorem3_printed",
        "Mutual information is at most log(2) times the Jensen-Shannon divergence (Theorem 3).",
    )
    pairs = [(a, b) for a, b in zip(mi, printed, strict=True) if math.isfinite(a) and math.isfinite(b) and a > 0]
    statistic = "share of cases in which the inequality holds"
    if not pairs:
        reason = "no run has `mi_joint` above zero together with `joint_js` or `miub_joint`: measure mi_joint"
        return undecided(key, statement, "Theorem 3", reason, statistic=statistic)
    hold = sum(a <= b * (1 + _ROUNDING) for a, b in pairs)
    ratios = [a / b if b > 0 else math.inf for a, b in pairs]
    text = (
        f"It holds in {hold} of {len(pairs)} {unit}: the information is at least {min(ratios):.3g} times the printed bound. "
        f"It cannot hold: I is never below 2.885 JS, and ln 2 is 0.693 (proof in docs/science/information.md)."
    )
    return _claim(key, statement, statistic, hold, len(pairs), text + extra, {"smallest_ratio": min(ratios)})


def valid_bounds(lower: Sequence[float], mi: Sequence[float], upper: Sequence[float], unit: str) -> Claim:
    """Check ``(2 / ln 2) JS <= I <= kappa(R) JS``, which is proved; a failure would be a fault of the program.

    Args:
        lower: ``(2 / ln 2) JS`` of each case, in nats.
        mi: Mutual information.
        upper: ``kappa(R) JS``; NaN where unknown, then only the lower side is checked.
        unit: What a case is, in the plural.

    Returns:
        The claim.
    """
    key = "theorem3_valid"
    statement = "(2 / ln 2) JS <= mutual information <= kappa(R) JS (lorascope's bounds, not the paper's)."
    statistic = "share of cases in which both sides hold"
    cases = [c for c in zip(lower, mi, upper, strict=True) if math.isfinite(c[0]) and math.isfinite(c[1])]
    if not cases:
        reason = "no run has `mi_joint` together with `joint_js`: measure mi_joint"
        return undecided(key, statement, "Theorem 3", reason, statistic=statistic)
    room = [_ROUNDING * max(1.0, abs(b)) for _, b, _ in cases]
    hold = sum(a <= b + e and not b > c + e for (a, b, c), e in zip(cases, room, strict=True))
    text = f"Both sides hold in {hold} of {len(cases)} {unit}, as they must: they are proved."
    if hold < len(cases):
        text = f"They fail in {len(cases) - hold} of {len(cases)} {unit}: they are proved, so that these numbers are wrong."
    return _claim(key, statement, statistic, hold, len(cases), text, {})


def _claim(key: str, statement: str, statistic: str, hold: int, n: int, text: str, details: dict[str, float]) -> Claim:
    verdict: Verdict = "supported" if hold == n else "contradicted"
    low, high = share_interval(hold, n)
    return Claim(
        key=key,
        statement=statement,
        verdict=verdict,
        quantity="Theorem 3",
        statistic=statistic,
        value=hold / n,
        low=low,
        high=high,
        n=n,
        reference=1.0,
        explanation=text,
        details=details,
    )


def random_joints(count: int = 1000, seed: int = 0) -> tuple[list[float], list[float], list[float], list[float]]:
    """Mutual information and its bounds for random joint distributions, from nearly independent to nearly deterministic.

    With r = P / (P_O P_L): I is the sum of ``w f_KL(r)`` and JS that of ``w f_JS(r)``, w = P_O P_L, in nats.

    Args:
        count: How many distributions; sizes from 2 x 2 to 8 x 8.
        seed: Of the draws.

    Returns:
        I, JS, (2 / ln 2) JS and kappa(R) JS of each.

    Example:
        >>> mi, js, lower, upper = random_joints(10)
        >>> all(a <= b <= c for a, b, c in zip(lower, mi, upper))
        True
    """
    generator = np.random.default_rng(seed)
    found: tuple[list[float], list[float], list[float], list[float]] = ([], [], [], [])
    for _ in range(count):
        shape = generator.integers(2, 9, size=2)
        sharpness = 10 ** generator.uniform(-1.5, 1.0)
        joint = generator.dirichlet(np.full(int(shape[0] * shape[1]), sharpness)).reshape(shape) + 1e-15
        joint /= joint.sum()
        product = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
        ratio = joint / product
        mi = float((product * _f_kl(ratio)).sum())
        js = float((product * _f_js(ratio)).sum())
        largest = np.asarray(ratio.max())
        kappa = float((_f_kl(largest) / _f_js(largest)).item()) if largest.item() - 1 > 1e-4 else 4.0
        for values, value in zip(found, (mi, js, LOWEST_RATIO * js, kappa * js), strict=True):
            values.append(value)
    return found


def _f_kl(r: np.ndarray) -> np.ndarray:
    return np.asarray(r * np.log(r) - r + 1)


def _f_js(r: np.ndarray) -> np.ndarray:
    return np.asarray((r * np.log(2 * r / (1 + r)) + np.log(2 / (1 + r))) / 2)
