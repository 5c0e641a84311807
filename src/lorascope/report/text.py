"""Numbers and lists in words: how the report writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorascope.core.metrics import METRICS
from lorascope.figures.numbers import number

DASH = "–"
MINUS = "−"


def show(value: Any, digits: int = 4) -> str:
    """A number with some significant digits; a dash for what is unknown, NaN or infinite.

    Example:
        >>> show(1234567.0), show(0.00001234), show(2.5), show(None)
        ('1,234,567', '1.234e−5', '2.5', '–')
    """
    known = number(value)
    if known is None:
        return DASH
    size = abs(known)
    if size >= 10 ** (digits - 1) or known == int(known):
        text = f"{known:,.0f}" if size < 1e12 else f"{known:.{digits - 1}e}"
    elif size < 1e-3:
        mantissa, exponent = f"{known:.{digits - 1}e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    else:
        text = f"{known:.{digits}g}"
    return text.replace("-", MINUS)


def show_metric(metric: str, value: Any) -> str:
    """A metric's value as the report prints it: percent for fractions, else significant digits.

    Example:
        >>> show_metric("accuracy", 0.66), show_metric("ce", 2.3456789)
        ('66.0%', '2.346')
    """
    if number(value) is not None and is_fraction(metric):
        return f"{100 * value:.1f}%".replace("-", MINUS)
    return show(value)


def show_change(metric: str, change: float) -> str:
    """A difference with its sign, in percentage points for fractions.

    Example:
        >>> show_change("accuracy", 0.17), show_change("ce", -4.0)
        ('+17.0', '−4')
    """
    text = f"{100 * change:.1f}" if is_fraction(metric) else show(change)
    return (text if change < 0 else f"+{text}").replace("-", MINUS)


def is_fraction(metric: str) -> bool:
    """Whether the metric is a share of a whole, which the report prints in percent."""
    return metric in METRICS and METRICS[metric].unit == "fraction"


def unit_of(metric: str) -> str:
    """The unit as the report prints it, possibly empty."""
    if metric not in METRICS:
        return ""
    return {"nats": "nats", "fraction": "percent", "ratio": "ratio", "rank": "directions", "perplexity": ""}[
        METRICS[metric].unit
    ]


def listing(items: Sequence[str], last: str = "and") -> str:
    """Items as a phrase.

    Example:
        >>> listing(["4", "16", "64"])
        '4, 16 and 64'
    """
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} {last} {items[-1]}"


def plural(count: int, one: str, many: str | None = None) -> str:
    """A count with its noun.

    Example:
        >>> plural(1, "question"), plural(1200, "question")
        ('1 question', '1,200 questions')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"
