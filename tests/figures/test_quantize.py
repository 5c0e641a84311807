"""What figures of quantisation studies show."""

import pytest

from lorascope.core.errors import InputError
from lorascope.figures.quantize import bars_info, plot_series, series_info

ROWS = [{"n": n, "lam": lam, "gain": lam * n} for lam in (0.1, 0.2) for n in (10, 1)]


def test_lines_rise_along_the_axis_one_for_each_value():
    info = series_info(ROWS, x="n", y="gain", by="lam", x_label="n", y_label="gain", name="lambda {}")
    assert info.series == {"lambda 0.1": ((1, 10), (0.1, 1.0)), "lambda 0.2": ((1, 10), (0.2, 2.0))}
    figure = plot_series(info)
    assert figure.layout.xaxis.type == "log" and list(figure.layout.xaxis.ticktext) == ["1", "10"]
    assert [trace.name for trace in figure.data] == ["lambda 0.1", "lambda 0.2"]


def test_bars_that_are_nearly_alike_are_marks():
    rows = [{"model": "a<b>", "one": 3.7, "two": 3.8}]
    info = bars_info(rows, {"one": "first", "two": "second"}, x="model", x_label="", y_label="bits")
    figure = plot_series(info)
    assert {(trace.type, trace.mode) for trace in figure.data} == {("scatter", "markers")}
    assert figure.data[0].x == ("a&lt;b&gt;",)
    far = plot_series(bars_info([{"m": "a", "x": 1.0, "y": 9.0}], {"x": "x", "y": "y"}, x="m", x_label="", y_label=""))
    assert {trace.type for trace in far.data} == {"bar"} and far.layout.yaxis.range is None


def test_nothing_is_refused():
    with pytest.raises(InputError, match="no row"):
        series_info([], x="n", y="gain", by="lam", x_label="", y_label="")
    with pytest.raises(InputError, match="no row"):
        bars_info([], {"a": "a"}, x="model", x_label="", y_label="")
