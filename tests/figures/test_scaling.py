from __future__ import annotations

import math

import numpy as np
import pytest

from lorascope.core.errors import InputError
from lorascope.figures.scaling import (
    law_curves_info,
    law_residuals_info,
    law_surface_info,
    plot_law_curves,
    plot_law_residuals,
    plot_law_surface,
)
from lorascope.scaling import ScalingFit, fit_scaling_law
from tests.scaling.synthetic import ADDITIVE, grid, runs


@pytest.fixture(scope="module")
def fit() -> ScalingFit:
    return fit_scaling_law(runs("additive", ADDITIVE, grid(N=3, R=4, D=3), noise=0.02), n_boot=60)


def test_curves_are_the_law_at_the_middle_of_the_other_axes(fit: ScalingFit) -> None:
    info = law_curves_info(fit, points=11)
    assert [panel.axis for panel in info.panels] == ["N", "R", "D"]
    rank = info.panels[1]
    assert rank.values[0] == pytest.approx(4)
    assert rank.values[-1] == pytest.approx(4 * 512)
    assert rank.largest == 512
    middle = {axis: fit.reference[axis] for axis in ("N", "D")}
    assert rank.curve == pytest.approx(fit.predict(R=np.array(rank.values), **middle))
    assert all(low < value < high for low, value, high in zip(rank.low, rank.curve, rank.high, strict=True))
    assert rank.measured == pytest.approx(fit.data["ce"])


def test_runs_keep_their_distance_from_the_law_when_they_are_moved(fit: ScalingFit) -> None:
    panel = law_curves_info(fit).panels[2]
    here = fit.predict(N=fit.reference["N"], R=fit.reference["R"], D=fit.data["D"])
    assert np.array(panel.points) / here == pytest.approx(fit.data["ce"] / fit.fitted)
    accuracy = runs(
        "additive", {"B": 0.5, "beta": -0.05, "C": 0.1, "gamma": -0.1}, grid(R=4, D=4), noise=0.01, metric="accuracy"
    )
    absolute = fit_scaling_law(accuracy, metric="accuracy", n_boot=0)
    panel = law_curves_info(absolute).panels[0]
    here = absolute.predict(R=absolute.data["R"], D=absolute.reference["D"])
    assert np.array(panel.points) - here == pytest.approx(absolute.residuals)
    assert panel.low == ()


def test_one_axis_shows_the_runs_where_they_are() -> None:
    fit = fit_scaling_law(runs("additive", {"B": 1.0, "beta": 0.5}, grid(R=6), noise=0.05), n_boot=30)
    info = law_curves_info(fit)
    assert not info.moved
    assert info.panels[0].points == pytest.approx(fit.data["ce"])


def test_the_figure_has_a_band_a_line_and_points_for_each_axis(fit: ScalingFit) -> None:
    figure = plot_law_curves(law_curves_info(fit))
    assert [trace.fill for trace in figure.data] == ["toself", None, None] * 3
    assert [trace.xaxis for trace in figure.data] == ["x"] * 3 + ["x2"] * 3 + ["x3"] * 3
    assert figure.layout.xaxis2.type == "log"
    assert list(figure.layout.xaxis2.tickvals) == pytest.approx(np.geomspace(4, 512, 4))
    assert list(figure.layout.xaxis.ticktext) == ["100M", "1B", "10B"]
    assert figure.layout.yaxis.title.text == "Cross-entropy (nats)"


def test_no_band_where_there_is_none() -> None:
    fit = fit_scaling_law({"R": [4, 64], "ce": [2.0, 1.5]}, n_boot=20)
    assert math.isinf(law_curves_info(fit).panels[0].high[0])
    assert len(plot_law_curves(law_curves_info(fit)).data) == 2


def test_a_surface_is_the_law_on_a_grid_and_the_mean_of_the_runs(fit: ScalingFit) -> None:
    info = law_surface_info(fit, ("R", "D"), points=5)
    assert info.surface[4][0] == pytest.approx(fit.predict(N=fit.reference["N"], R=4, D=1e6))
    assert info.fixed == {"N": pytest.approx(1e9)}
    assert len(info.runs) == 12
    at = (fit.data["R"] == 512) & (fit.data["D"] == 1e6)
    assert info.runs[-1] == pytest.approx((512, 1e6, fit.data["ce"][at].mean(), 3))
    heat, points = plot_law_surface(info).data
    assert heat.zmin == points.marker.cmin
    assert len(points.x) == 12


def test_the_surface_takes_the_axes_along_which_the_law_changes_most(fit: ScalingFit) -> None:
    change = {}
    for axis in fit.axes:
        others = {other: fit.reference[other] for other in fit.axes if other != axis}
        first, last = fit.predict(**others, **{axis: np.array(fit.ranges[axis])})
        change[axis] = abs(last - first)
    assert min(change, key=change.__getitem__) not in law_surface_info(fit).axes


def test_a_surface_needs_two_axes_of_the_law(fit: ScalingFit) -> None:
    with pytest.raises(InputError, match="not two of the law's axes"):
        law_surface_info(fit, ("R", "R"))
    alone = fit_scaling_law(runs("additive", {"B": 1.0, "beta": 0.5}, grid(R=6), noise=0.05), n_boot=0)
    with pytest.raises(InputError, match="R alone"):
        law_surface_info(alone)


def test_residuals_are_fractions_where_the_noise_is(fit: ScalingFit) -> None:
    info = law_residuals_info(fit)
    assert info.relative
    assert info.residuals == pytest.approx(fit.data["ce"] / fit.fitted - 1)
    assert info.names[0] == "N = 1e+08, R = 4, D = 1000"
    figure = plot_law_residuals(info)
    assert figure.layout.yaxis.tickformat == ".0%"
    (band,) = figure.layout.shapes
    assert band.y1 == pytest.approx(2 * fit.sigma)
