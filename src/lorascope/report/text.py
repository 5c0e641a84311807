"""Numbers and lists in words: how the report writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lorascope.core.metrics import METRICS
from lorascope.figures.finite import number

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


def show_alike(values: Sequence[Any], digits: int = 4) -> list[str]:
    """Numbers with the same decimals, as many as give the largest one its significant digits.

    Numbers too small to be seen with those decimals are shown by `show`.

    Example:
        >>> show_alike([21.4, 22.0, 25.31, None])
        ['21.40', '22.00', '25.31', '–']
        >>> show_alike([21.4, 22.0])
        ['21.4', '22.0']
    """
    known = [value for item in values if (value := number(item)) is not None and value != 0]
    if not known:
        return [show(value, digits) for value in values]
    decimals = min(10, max(0, digits - 1 - math.floor(math.log10(max(map(abs, known))))))
    texts = {}
    for place, item in enumerate(values):
        value = number(item)
        if value is not None and 10.0 ** (1 - decimals) <= abs(value) < 1e12:
            texts[place] = f"{value:,.{decimals}f}".replace("-", MINUS)
    while texts and all("." in text and text[-1] in "0." for text in texts.values()):
        texts = {place: text[:-1] for place, text in texts.items()}
    return [texts.get(place, show(item, digits)) for place, item in enumerate(values)]


def show_metrics(metric: str, values: Sequence[Any]) -> list[str]:
    """A metric's values as the report prints them side by side."""
    return [show_metric(metric, value) for value in values] if is_fraction(metric) else show_alike(values)


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
    return {"nats": "nats", "fraction": "", "ratio": "ratio", "rank": "directions", "perplexity": ""}[
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
