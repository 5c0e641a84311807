from __future__ import annotations

import math

import numpy as np
import pytest

from lorascope.core.errors import InputError
from lorascope.figures import depth_profile_info, layer_heatmap_info, plot_depth_profile, plot_layer_heatmap
from lorascope.figures.finite import number

RECORDS = [
    {"name": "l.1.q", "layer": 1, "projection": "q", "miub_js": 3.0},
    {"name": "l.0.q", "layer": 0, "projection": "q", "miub_js": 1.0},
    {"name": "l.0.e0.up", "layer": 0, "projection": "up", "miub_js": 2.0},
    {"name": "l.0.e1.up", "layer": 0, "projection": "up", "miub_js": 4.0},
    {"name": "head", "layer": None, "projection": "head", "miub_js": 9.0},
    {"name": "l.1.up", "layer": 1, "projection": "up", "miub_js": math.nan, "ce": 1.0},
]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1.0), (np.float32(0.5), 0.5), (True, None), (None, None), ("1", None), (math.nan, None), (math.inf, None)],
)
def test_only_finite_numbers_are_shown(value: object, expected: float | None) -> None:
    assert number(value) == expected


def test_heatmap_sorts_layers_averages_experts_and_leaves_holes() -> None:
    info = layer_heatmap_info(RECORDS)
    assert info.layers == ("0", "1", "other")
    assert info.projections == ("q", "up", "head")
    assert info.values == ((1.0, 3.0, None), (3.0, None, None), (None, None, 9.0))
    assert info.components == ((1, 2, 0), (1, 0, 0), (0, 0, 1))
    assert info.label == "MIUB (Eq. 9) (nats)"
    assert info.extremes == (("0", "q", 1.0), ("other", "head", 9.0))


def test_heatmap_of_an_unknown_metric_says_what_there_is() -> None:
    with pytest.raises(InputError, match="no component has a value of 'miub': there is miub_js, ce"):
        layer_heatmap_info(RECORDS, "miub")
    with pytest.raises(InputError, match="there is nothing"):
        layer_heatmap_info([])


def test_components_without_layer_and_projection_keep_their_name() -> None:
    assert layer_heatmap_info([{"name": "score", "miub_js": 1.0}]).projections == ("score",)


def test_heatmap_draws_the_values_with_the_first_layer_on_top() -> None:
    figure = plot_layer_heatmap(layer_heatmap_info(RECORDS))
    assert [list(row) for row in figure.data[0].z] == [[1.0, 3.0, None], [3.0, None, None], [None, None, 9.0]]
    assert figure.layout.yaxis.autorange == "reversed"
    assert figure.layout.paper_bgcolor == "rgba(0,0,0,0)"


def test_widely_spread_values_get_logarithmic_colours() -> None:
    records = [{"layer": layer, "projection": "q", "ce": 10.0**-layer} for layer in range(5)]
    info = layer_heatmap_info(records, "ce")
    assert info.logarithmic
    heat = plot_layer_heatmap(info).data[0]
    assert [row[0] for row in heat.z] == pytest.approx([0, -1, -2, -3, -4])
    assert [row[0] for row in heat.customdata] == pytest.approx([1, 0.1, 0.01, 0.001, 0.0001])
    assert list(heat.colorbar.ticktext) == ["0.0001", "0.001", "0.01", "0.1", "1"]
    assert not layer_heatmap_info([*records, {"layer": 5, "projection": "q", "ce": 0.0}], "ce").logarithmic


@pytest.mark.parametrize(("value", "low", "high"), [(0.0, 0.0, 1.0), (2.0, 0.0, 2.0), (-2.0, -2.0, -1.0)])
def test_a_constant_map_has_a_range_that_holds_its_value(value: float, low: float, high: float) -> None:
    heat = plot_layer_heatmap(layer_heatmap_info([{"layer": 0, "projection": "q", "ce": value}], "ce")).data[0]
    assert (heat.zmin, heat.zmax) == (low, high)


def test_long_names_are_shortened_on_the_axis_only() -> None:
    name = "a" * 40 + "z"
    figure = plot_layer_heatmap(layer_heatmap_info([{"layer": 0, "projection": name, "ce": 1.0}], "ce"))
    assert list(figure.data[0].x) == [name]
    assert list(figure.layout.xaxis.ticktext) == ["a" * 16 + "…" + "a" * 14 + "z"]


def test_profile_has_one_rising_line_for_each_projection() -> None:
    info = depth_profile_info(RECORDS)
    assert info.lines == {"q": ((0, 1), (1.0, 3.0)), "up": ((0,), (3.0,))}
    figure = plot_depth_profile(info)
    assert [trace.name for trace in figure.data] == ["q", "up"]
    assert list(figure.data[0].y) == [1.0, 3.0]
    assert figure.data[0].line.color != figure.data[1].line.color


def test_profile_needs_a_layer_number() -> None:
    with pytest.raises(InputError, match="no component with a layer number"):
        depth_profile_info([{"name": "score", "layer": None, "projection": "score", "miub_js": 1.0}])


def test_given_names_are_escaped_in_figures() -> None:
    records = [{"name": "x", "layer": 0, "projection": "<a href='//x'>&", "miub_js": 1.0}]
    assert list(plot_layer_heatmap(layer_heatmap_info(records)).data[0].x) == ["&lt;a href='//x'&gt;&amp;"]
    assert plot_depth_profile(depth_profile_info(records)).data[0].name == "&lt;a href='//x'&gt;&amp;"
