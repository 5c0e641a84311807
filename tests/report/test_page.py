from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest

from lorascope.core.errors import InputError
from lorascope.report import Section, Table, render_page, write_page

NASTY = "<script>alert('x')</script>&"


def figures_of(page: str) -> dict[str, dict[str, dict[str, object]]]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.S)
    assert found is not None
    parsed: dict[str, dict[str, dict[str, object]]] = json.loads(found.group(1))
    return parsed


def test_words_tables_and_figures_are_there() -> None:
    figure = go.Figure(go.Scatter(x=[1, 2], y=[3.0, float("nan")]), layout={"height": 300, "font": {"size": 12}})
    table = Table.from_frame(pd.DataFrame({"rank": [4, 16], "ce": [2.5, None]}), "two runs")
    sections = [
        Section("answer", "The answer", ("Rank 4 is enough.",), points=("one", "two"), tables=(table,)),
        Section("curve", "Curve", figures={"a": (figure, "first"), "b": (figure, "second")}),
    ]
    page = render_page(sections, title="T", headline="H", provenance={"seed": 0, "versions": {"numpy": "2"}})
    for text in ("Rank 4 is enough.", "<li>two</li>", "<td>2.5</td>", "<td>–</td>", "numpy 2"):
        assert text in page
    found = figures_of(page)
    assert [entry["caption"] for entry in found["curve"].values()] == ["first", "second"]
    assert list(found["curve"]) == ["0", "1"]


def test_everything_given_is_escaped(tmp_path: Path) -> None:
    figure = go.Figure(go.Scatter(x=[1], y=[1], name=NASTY))
    table = Table(NASTY, (NASTY,), ((NASTY,),))
    section = Section("a", NASTY, (NASTY,), (NASTY,), (table,), {NASTY: (figure, NASTY)})
    path = write_page(
        tmp_path / "deep" / "page.html", [section], title=NASTY, headline=NASTY, provenance={NASTY: NASTY}
    )
    text = path.read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "http://" not in re.sub(r"<script>.*?</script>", "", text, flags=re.S)


def test_index_of_a_frame_becomes_its_first_columns() -> None:
    frame = pd.DataFrame({("rank", "4"): [0.5]}, index=pd.Index(["towns"], name="task"))
    table = Table.from_frame(frame, "t")
    assert table.rows == (("towns", "0.5"),)
    assert table.columns[1] == "rank 4"


def test_an_empty_page_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to show"):
        render_page([], title="T", headline="H")
