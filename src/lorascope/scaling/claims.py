"""A claim with its verdict, and the rules that turn an interval into one (docs/science/claims.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from lorascope.core.errors import DataError

Verdict = Literal["supported", "not supported", "contradicted", "undecided"]
VERDICTS: tuple[Verdict, ...] = ("supported", "contradicted", "not supported", "undecided")
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim, tested.

    Attributes:
        key: Identifier; the same for a sweep and for the paper's numbers.
        statement: The claim in one sentence.
        verdict: ``"supported"``, ``"not supported"``, ``"contradicted"`` or ``"undecided"``.
        quantity: What was looked at: ``"MIUB as printed"``, ``"Eq. 9"``, ``"Theorem 3, I"`` ...
        statistic: What ``value`` is.
        value: The statistic; NaN where there is none.
        low: Lower end of its 95 % interval; NaN where there is none.
        high: Upper end.
        n: Number of units behind it.
        reference: What the interval is compared with; None where nothing is.
        needed: About how many units would decide; None where that is not known or not needed.
        explanation: What was found, in words.
        scope: What the verdict speaks of (cells like these, or these cells only), as a sentence; empty where that is plain.
        details: Further numbers, JSON-ready.

    Example:
        >>> claim = undecided("x", "It rains.", "rain", "there is no weather in the table")
        >>> claim.verdict, claim.to_dict()["value"]
        ('undecided', None)
    """

    key: str
    statement: str
    verdict: Verdict
    quantity: str
    statistic: str
    value: float
    low: float
    high: float
    n: int
    explanation: str
    reference: float | None = None
    needed: int | None = None
    scope: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping of every field; NaN becomes None."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Claim:
        """Build a claim from what `to_dict` made.

        Raises:
            DataError: A field is missing or unknown, or the version is another one.
        """
        if values.get("schema_version") != SCHEMA_VERSION:
            raise DataError(
                f"claim has schema_version {values.get('schema_version')!r}: this lorascope reads {SCHEMA_VERSION}; "
                "compute the claims again"
            )
        names = {item.name for item in fields(cls)}
        if set(values) != names:
            raise DataError(f"claim lacks or has too many fields ({', '.join(sorted(set(values) ^ names))})")
        numbers = {name: math.nan if values[name] is None else values[name] for name in ("value", "low", "high")}
        return cls(**{**values, **numbers})


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def undecided(
    key: str,
    statement: str,
    quantity: str,
    reason: str,
    *,
    statistic: str = "none",
    n: int = 0,
    needed: int | None = None,
) -> Claim:
    """A claim that the data cannot decide, with the reason (a clause without a capital and full stop)."""
    nan = math.nan
    return Claim(
        key=key,
        statement=statement,
        verdict="undecided",
        quantity=quantity,
        statistic=statistic,
        value=nan,
        low=nan,
        high=nan,
        n=n,
        needed=needed,
        explanation=f"{reason[0].upper()}{reason[1:]}.",
    )


def verdict_of(low: float, high: float, reference: float) -> Verdict:
    """The verdict on "the statistic is above the reference", from its interval.

    Example:
        >>> verdict_of(0.1, 0.4, 0.0), verdict_of(-0.1, 0.4, 0.0), verdict_of(-0.4, -0.1, 0.0)
        ('supported', 'not supported', 'contradicted')
    """
    touching = 1e-9 * max(1.0, abs(reference))  # sums of thirds that should be 0 are not quite
    if low > reference + touching:
        return "supported"
    return "contradicted" if high < reference - touching else "not supported"


def count_verdicts(claims: Sequence[Claim]) -> dict[Verdict, int]:
    """How many claims got each verdict.

    Example:
        >>> count_verdicts([undecided("x", "It rains.", "rain", "no weather")])["undecided"]
        1
    """
    return {verdict: sum(claim.verdict == verdict for claim in claims) for verdict in VERDICTS}
