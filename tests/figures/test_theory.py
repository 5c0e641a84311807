from __future__ import annotations

import pytest

from lorascope.core.errors import InputError
from lorascope.figures.theory import plot_theory_curves, theory_curves_info

ROWS = [
    {"ridge": 1.0, "test_error": 0.9, "alignment": 0.8, "warnings": []},
    {"ridge": 0.01, "test_error": 0.5, "alignment": 0.9, "warnings": ["jump 0.3 is above"]},
    {"ridge": 0.1, "test_error": 0.4, "alignment": 0.95, "warnings": []},
    {"ridge": 0.5, "test_error": None, "alignment": 0.85, "warnings": []},
]
SIZE = ({"dim": 80, "seeds": 4}, {"dim": 80, "seeds": 1})
POINTS = [
    {
        "ridge": 0.1,
        "test_error": 0.42,
        "test_error_se": 0.01,
        "alignment": 0.94,
        "alignment_se": 0.02,
        "dim": 80,
        "seeds": 4,
    },
    {
        "ridge": 1.0,
        "test_error": 0.92,
        "test_error_se": None,
        "alignment": 0.81,
        "alignment_se": None,
        "dim": 80,
        "seeds": 1,
    },
]


def test_curves_over_a_setting_are_sorted_and_keep_their_flags() -> None:
    info = theory_curves_info({"fresh": ROWS}, "ridge", "test_error", points={"fresh": POINTS})
    (line,) = info.lines
    assert line.x == (0.01, 0.1, 1.0)
    assert line.notes == ("jump 0.3 is above", "", "")
    (marks,) = info.marks
    assert marks.y_errors == (0.01, None) and marks.x_errors == (None, None)
    assert marks.tags[0] == "simulated, d = 80, 4 seeds"
    assert info.log_x and info.x_label.startswith("pre-training ridge")


def test_curves_over_a_result_run_in_the_order_of_their_rows() -> None:
    info = theory_curves_info({"fresh": ROWS}, "alignment", "test_error", points={"fresh": POINTS}, tag="ridge")
    assert info.lines[0].x == (0.8, 0.9, 0.95)
    assert info.lines[0].tags[1] == "ridge 0.01"
    assert info.marks[0].x_errors == (0.02, None)
    assert not info.log_x


def test_flagged_stretches_are_dotted_and_simulations_carry_error_bars() -> None:
    curves = {"<fresh>": ROWS, "odd": [{"ridge": 0.2, "test_error": 0.7, "warnings": ["bad"]}]}
    info = theory_curves_info(
        curves,
        "ridge",
        "test_error",
        points={"<fresh>": POINTS, "only simulated": POINTS[:1]},
        rules={"best": 0.1, "none": None},
        floors={"Bayes": 0.3},
    )
    figure = plot_theory_curves(info)
    dotted = [trace for trace in figure.data if trace.line.dash == "dot"]
    assert [list(trace.x) for trace in dotted] == [[0.01, 0.1], [0.2]]
    assert all("bad" in entry[0] for entry in dotted[1].customdata)
    legend = [trace.name for trace in figure.data if trace.showlegend]
    assert legend == ["&lt;fresh&gt;", "odd", "only simulated"]
    (bars, single) = [trace for trace in figure.data if trace.mode == "markers" and trace.error_y.array is not None][:2]
    assert list(bars.error_y.array) == [0.01, 0.0]
    assert bars.marker.color == next(t for t in figure.data if t.name == "&lt;fresh&gt;").line.color
    assert single.name == "only simulated"
    assert [text for trace in figure.data if trace.mode == "text" for text in trace.text] == [" best"]
    assert len(figure.layout.shapes) == 2
    assert figure.layout.xaxis.type == "log"


def test_nothing_to_draw_is_said() -> None:
    with pytest.raises(InputError, match="no curve has both ridge and jump"):
        theory_curves_info({"fresh": ROWS}, "ridge", "jump")
    zero = theory_curves_info({"a": [{"ridge": 0.0, "test_error": 1.0}]}, "ridge", "test_error")
    assert not zero.log_x
