from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest

from lorascope.core.errors import InputError
from lorascope.figures.axis_svg import axis_svg, ticks_between
from lorascope.figures.claims import metrics_against_axis_info, plot_metrics_against_axis, plot_ranking, ranking_info

ROWS = [
    {"cell": "towns", "level": 201.0, "label": "201-300", "metric": "accuracy", "mean": 0.7, "sd": math.nan, "runs": 1},
    {"cell": "towns", "level": 1.0, "label": "1-100", "metric": "accuracy", "mean": 0.5, "sd": 0.1, "runs": 3},
    {"cell": "<arc>", "level": 1.0, "label": "1-100", "metric": "accuracy", "mean": 0.4, "sd": None, "runs": 1},
    {"cell": "towns", "level": 1.0, "label": "1-100", "metric": "miub_js", "mean": 0.01, "sd": None, "runs": 3},
    {"cell": "towns", "level": 101.0, "label": "101-200", "metric": "miub_js", "mean": math.nan, "sd": None, "runs": 1},
]
RANKED = [
    {"label": "Cross-entropy", "better": "lower", "tau": 0.8, "low": 0.5, "high": 0.9, "behind_low": 0.0},
    {"label": "CKA", "better": "lower", "tau": 0.7, "low": None, "high": None, "behind_low": None},
    {"label": "MIUB (Eq. 9)", "better": "higher", "tau": -0.2, "low": -0.4, "high": 0.1, "behind_low": 0.6},
]


def test_lines_are_ordered_and_grouped_by_metric_and_cell() -> None:
    info = metrics_against_axis_info(ROWS, "length")
    assert info.cells == ("towns", "<arc>")
    assert [line.cell for line in info.panels["accuracy"]] == ["towns", "<arc>"]
    line = info.panels["accuracy"][0]
    assert (line.levels, line.labels, line.means) == ((1.0, 201.0), ("1-100", "201-300"), (0.5, 0.7))
    assert (line.deviations, line.runs) == ((0.1, None), (3, 1))
    assert info.panels["miub_js"][0].means == (0.01,)
    assert list(metrics_against_axis_info(ROWS, "length", ["miub_js", "ce"]).panels) == ["miub_js"]


def test_panels_share_one_ordered_axis_and_one_legend() -> None:
    figure = plot_metrics_against_axis(metrics_against_axis_info(ROWS, "length"))
    assert [trace.yaxis for trace in figure.data] == ["y", "y", "y2"]
    assert [trace.name for trace in figure.data if trace.showlegend] == ["towns", "&lt;arc&gt;"]
    assert list(figure.layout.xaxis.categoryarray) == ["1-100", "201-300"]
    assert figure.layout.yaxis.domain[0] > figure.layout.yaxis2.domain[1]
    assert figure.layout.yaxis.tickformat == ".0%"
    assert list(figure.data[0].error_y.array) == [0.1, 0.0]


def test_nothing_to_draw_is_said() -> None:
    with pytest.raises(InputError, match="unknown axis 'len'"):
        metrics_against_axis_info(ROWS, "len")
    with pytest.raises(InputError, match="no two runs differ in prompt length"):
        metrics_against_axis_info([], "length")
    with pytest.raises(InputError, match="no metric was ranked"):
        ranking_info([])


def test_ranking_shows_intervals_and_what_cannot_be_told_from_the_first() -> None:
    info = ranking_info(RANKED)
    assert info.open == (True, True, False)
    assert info.labels[2] == "MIUB (Eq. 9) (higher)"
    (trace,) = plot_ranking(info).data
    assert list(trace.x) == [0.8, 0.7, -0.2]
    assert list(trace.error_x.array) == pytest.approx([0.1, 0.0, 0.3])
    assert list(trace.error_x.arrayminus) == pytest.approx([0.3, 0.0, 0.2])
    assert list(trace.marker.symbol) == ["circle", "circle", "circle-open"]


def test_the_svg_has_every_point_in_its_panel_and_is_well_formed() -> None:
    info = metrics_against_axis_info(ROWS, "length")
    root = ET.fromstring(axis_svg(info))
    space = "{http://www.w3.org/2000/svg}"
    panels = root.findall(f"{space}g")
    assert len(panels) == len(info.panels) == 2
    points = [panel.findall(f"{space}circle") for panel in panels]
    assert [len(found) for found in points] == [
        sum(len(line.means) for line in lines) for lines in info.panels.values()
    ]
    first, second, other = ((float(p.attrib["cx"]), float(p.attrib["cy"])) for p in points[0])
    assert first[0] < second[0] and first[0] == other[0]  # 1-100 before 201-300
    assert second[1] < first[1] < other[1]  # 0.7 above 0.5 above 0.4
    words = [text.text for text in root.iter(f"{space}text")]
    assert {"<arc>", "towns", "1-100", "201-300", "70%"} <= set(words)


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-3.2, 5.1), (1e-9, 4e-9), (31.2, 31.3), (1200.0, 98000.0), (0.0, 0.0)]
)
def test_ticks_are_round_and_span_the_values(low: float, high: float) -> None:
    ticks = ticks_between(low, high)
    assert 3 <= len(ticks) <= 8
    assert ticks[0] <= low and ticks[-1] >= high
    assert ticks == sorted(set(ticks))
