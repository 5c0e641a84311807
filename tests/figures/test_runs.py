from __future__ import annotations

import math

import pytest

from lorascope.core.errors import InputError
from lorascope.figures import (
    loss_curves_info,
    metric_against_rank_info,
    plot_loss_curves,
    plot_metric_against_rank,
)

ROWS = [
    {"rank": 64, "miub_js": 0.04, "accuracy": 0.7, "accuracy_se": 0.045},
    {"rank": 4, "miub_js": 0.01, "accuracy": 0.6},
    {"rank": 4, "miub_js": 0.03, "accuracy": 0.7, "accuracy_se": 0.05},
    {"rank": 0, "miub_js": math.nan, "accuracy": 0.5},
    {"rank": None, "miub_js": 9.0},
    {"rank": 8, "miub_js": None},
]


def test_runs_are_ordered_and_averaged_by_rank() -> None:
    (line,) = metric_against_rank_info(ROWS).series
    assert line.ranks == (0, 4, 64)
    assert line.values == (None, 0.02, 0.04)
    assert line.accuracy == pytest.approx((0.5, 0.65, 0.7))
    assert line.accuracy_error == (None, None, 0.045)
    assert line.runs == (1, 2, 1)


def test_groups_become_series_over_the_same_ranks() -> None:
    info = metric_against_rank_info(
        [{"rank": 4, "ce": 1.0, "group": "a"}, {"rank": 8, "ce": 2.0, "group": "b"}], metric="ce"
    )
    assert [(line.name, line.ranks, line.values) for line in info.series] == [("a", (4,), (1.0,)), ("b", (8,), (2.0,))]
    assert info.ranks == (4, 8)
    figure = plot_metric_against_rank(info)
    assert [trace.name for trace in figure.data] == ["a", "b"]
    assert figure.layout.showlegend


def test_figure_has_the_accuracy_beside_the_metric() -> None:
    metric, accuracy = plot_metric_against_rank(metric_against_rank_info(ROWS)).data
    assert list(metric.x) == list(accuracy.x) == ["base", "4", "64"]
    assert list(metric.y) == [None, 0.02, 0.04]
    assert list(accuracy.error_y.array) == [0.0, 0.0, 0.045]
    assert accuracy.yaxis == "y2"


def test_without_accuracy_and_for_accuracy_itself_there_is_one_line() -> None:
    assert len(plot_metric_against_rank(metric_against_rank_info([{"rank": 4, "ce": 1.0}], "ce")).data) == 1
    figure = plot_metric_against_rank(metric_against_rank_info(ROWS, "accuracy"))
    assert len(figure.data) == 1
    assert list(figure.data[0].error_y.array) == [0.0, 0.0, 0.045]


def test_no_rank_or_no_value_is_said() -> None:
    with pytest.raises(InputError, match="'mi_joint'"):
        metric_against_rank_info(ROWS, "mi_joint")
    with pytest.raises(InputError, match="no run with a rank"):
        metric_against_rank_info([{"rank": None, "ce": 1.0}], "ce")


def test_losses_are_read_from_the_log_and_the_last_entry_of_a_step_counts() -> None:
    info = loss_curves_info(
        {
            "a": [
                {"step": 2, "loss": 2.0},
                {"step": 1, "loss": 3.0},
                {"step": 2, "loss": 1.5},
                {"step": 2, "eval_loss": 1},
            ],
            "b": [{"step": 1, "loss": math.nan}, {"loss": 1.0}, {"train_runtime": 3.0}],
        }
    )
    assert info.curves == {"a": ((1, 2), (3.0, 1.5))}
    assert list(plot_loss_curves(info).data[0].y) == [3.0, 1.5]


def test_no_loss_is_said() -> None:
    with pytest.raises(InputError, match="no run has a training loss"):
        loss_curves_info({"a": []})


def test_given_names_are_escaped_in_figures() -> None:
    assert plot_loss_curves(loss_curves_info({"<b>": [{"step": 1, "loss": 1.0}]})).data[0].name == "&lt;b&gt;"
    info = metric_against_rank_info([{"rank": 4, "ce": 1.0, "group": "<b>"}], "ce")
    assert plot_metric_against_rank(info).data[0].name == "&lt;b&gt;"
