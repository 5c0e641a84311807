"""Metrics against an axis as a small SVG file: for a README, a paper or a page without scripts."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from lorascope.core.metrics import METRICS
from lorascope.figures.claims import AxisLine, MetricsAgainstAxisInfo
from lorascope.figures.style import FONT, INK, LINES, label_of

_WIDTH, _HEIGHT, _COLUMNS = 360, 210, 2  # of a panel, in pixels; panels in a row
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 30, 44
_FAINT = "#80889038"


def axis_svg(info: MetricsAgainstAxisInfo) -> str:
    """Draw what `plot_metrics_against_axis` draws, two panels in a row; error bars are one standard deviation over seeds.

    Args:
        info: The numbers of the figure.

    Returns:
        The text of an SVG file, legible on white and near-black.

    Example:
        >>> from lorascope.figures.claims import metrics_against_axis_info
        >>> row = {"cell": "towns", "label": "4", "metric": "ce", "sd": None, "runs": 1}
        >>> info = metrics_against_axis_info([{**row, "level": 4, "mean": 2.0}, {**row, "level": 16, "mean": 1.0}], "rank")
        >>> axis_svg(info).count("<circle")
        2
    """
    named = [cell for cell in info.cells if cell] if len(info.cells) > 1 else []
    legend = 18 * len(named) + (10 if named else 0)
    rows = math.ceil(len(info.panels) / _COLUMNS)
    width, height = _WIDTH * min(_COLUMNS, len(info.panels)), _HEIGHT * rows + legend
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="{html.escape(FONT)}" font-size="11" fill="{INK}" role="img">',
        f"<title>{html.escape(f'Metrics against {info.label}')}</title>",
    ]
    labels: dict[float, str] = {}
    for lines in info.panels.values():
        for line in lines:
            labels.update(zip(line.levels, line.labels, strict=True))
    places = {level: (number + 0.5) / len(labels) for number, level in enumerate(sorted(labels))}
    for number, (metric, lines) in enumerate(info.panels.items()):
        x, y = _WIDTH * (number % _COLUMNS), _HEIGHT * (number // _COLUMNS)
        parts.append(f'<g transform="translate({x} {y})">')
        parts += _panel(info, metric, lines, places, labels)
        parts.append("</g>")
    for number, cell in enumerate(named):
        y, color = _HEIGHT * rows + 14 + 18 * number, LINES[info.cells.index(cell) % len(LINES)]
        parts.append(f'<circle cx="{_LEFT}" cy="{y - 4}" r="4" fill="{color}"/>')
        parts.append(f'<text x="{_LEFT + 12}" y="{y}">{html.escape(cell)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(
    info: MetricsAgainstAxisInfo,
    metric: str,
    lines: Sequence[AxisLine],
    places: dict[float, float],
    labels: dict[float, str],
) -> list[str]:
    ends = [
        mean + side * (deviation or 0.0)
        for line in lines
        for mean, deviation in zip(line.means, line.deviations, strict=True)
        for side in (-1, 1)
    ]
    ticks = ticks_between(min(ends), max(ends))
    low, high = min(ticks[0], *ends), max(ticks[-1], *ends)
    inner, tall = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def across(level: float) -> float:
        return round(_LEFT + inner * places[level], 1)

    def down(value: float) -> float:
        return round(_TOP + tall * (high - value) / (high - low), 1)

    known = METRICS.get(metric)
    share = known is not None and known.unit == "fraction"
    parts = [f'<text x="{_LEFT}" y="18" font-weight="600">{html.escape(label_of(metric))}</text>']
    for tick in ticks:
        text = f"{tick:.0%}" if share else f"{tick:.4g}"
        parts.append(
            f'<path d="M{_LEFT} {down(tick)}H{_WIDTH - _RIGHT}" stroke="{_FAINT}"/>'
            f'<text x="{_LEFT - 6}" y="{down(tick) + 4}" text-anchor="end">{text}</text>'
        )
    for level, label in labels.items():
        text = f"{level / 1e6:.0f}M" if info.axis == "size" and level >= 1e6 else label
        parts.append(
            f'<text x="{across(level)}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{html.escape(text)}</text>'
        )
    parts.append(
        f'<text x="{_LEFT + inner / 2}" y="{_HEIGHT - _BOTTOM + 32}" text-anchor="middle">{html.escape(info.label)}</text>'
    )
    for line in lines:
        color = LINES[info.cells.index(line.cell) % len(LINES)]
        points = [(across(level), down(mean)) for level, mean in zip(line.levels, line.means, strict=True)]
        path = "L".join(f"{x} {y}" for x, y in points)
        parts.append(f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        for (x, y), mean, deviation in zip(points, line.means, line.deviations, strict=True):
            if deviation:
                upper, lower = down(mean + deviation), down(mean - deviation)
                parts.append(
                    f'<path d="M{x} {upper}V{lower}M{x - 4} {upper}h8M{x - 4} {lower}h8" stroke="{color}" fill="none"/>'
                )
            parts.append(f'<circle cx="{x}" cy="{y}" r="3.5" fill="{color}"/>')
    return parts


def ticks_between(low: float, high: float) -> list[float]:
    """Four to seven round numbers or so that span an interval.

    Example:
        >>> ticks_between(0.31, 0.58)
        [0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6]
        >>> ticks_between(2.0, 2.0)
        [1.0, 1.5, 2.0, 2.5, 3.0]
    """
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        low, high = low - max(abs(low) / 2, 1e-12), high + max(abs(high) / 2, 1e-12)
    rough = (high - low) / 4
    scale = 10.0 ** math.floor(math.log10(rough))
    step = min((scale * size for size in (1, 2, 2.5, 5, 10)), key=lambda size: abs(math.log(size / rough)))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{step * number:.12g}") for number in range(first, last + 1)]
