from __future__ import annotations

import itertools
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lorascope.core.errors import InputError, OutputError
from lorascope.report import render_report, write_report
from lorascope.report.charts import charts
from lorascope.report.tables import COMPONENT_ROWS, comparison, component_tables, facts_of
from lorascope.results import AdapterMeasurement, RunRecord
from tests.report.conftest import make_run

EVIL = "</script><img src=x onerror=alert(1)>\"'&<!--<script>{{7*7}}"
VOID = {"meta", "link", "img", "br", "input", "hr"}


class Page(HTMLParser):
    """The page's elements, texts and scripts; raises on crossed or unclosed elements."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(text)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            if tag in self.inside:
                self.inside[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:])
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.inside:
            self.inside[self.open[-1]][-1] += data
        else:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def figures(self) -> dict[str, Any]:
        return json.loads(self.inside["script"][0])


@pytest.fixture(scope="module")
def page(runs: list[RunRecord]) -> Page:
    return Page(render_report(runs))


def evil_run() -> RunRecord:
    run = make_run(4, layers=2)
    layers = [{**layer, "name": EVIL, "projection": EVIL, EVIL: 1.0, "adapter": EVIL} for layer in run.layers]
    return RunRecord(
        name=EVIL,
        totals={**run.totals, EVIL: 1.0},
        layers=layers,
        counts={EVIL: 1},
        settings={EVIL: EVIL},
        warnings=[EVIL],
        provenance={"command": EVIL, "versions": {EVIL: EVIL}},
        spec={**run.spec, "model": EVIL, "task": EVIL, "note": [EVIL]},
        history=run.history,
    )


def test_page_is_well_formed_and_has_every_part(page: Page) -> None:
    headings = [name for name, _ in page.elements if re.fullmatch("h[1-6]", name)]
    assert headings.count("h1") == 1
    for part in (
        "What the adapters learned",
        "Accuracy rose by 14.0 to 21.0 points",
        "Before you rely on this",
        "The numbers",
        "What rank buys",
        "Where in the network",
        "While training",
        "Every component",
        "mi_joint: 30 components wider than 1024",
        "lorascope train --rank 4",
        "Example CPU",
        "04" * 32,
    ):
        assert part in page.text, part


def test_headings_do_not_skip_a_level(page: Page) -> None:
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_tables_have_captions_and_headers(page: Page) -> None:
    names = [name for name, _ in page.elements]
    assert names.count("table") == names.count("caption") > 5
    assert all(header.get("scope") in ("col", "row", "rowgroup") for header in page.all("th"))


def test_every_figure_has_a_summary_in_words(page: Page) -> None:
    plots = [attributes for attributes in page.all("div") if attributes.get("class") == "plot"]
    captions = {attributes["id"] for attributes in page.all("figcaption")}
    assert len(plots) == 3
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in plots)
    assert {plot["aria-describedby"] for plot in plots} == captions
    assert "Eq. 9): 0 at the base, 0.0031 at rank 4, 0.0085 at rank 16 and 0.0392 at rank 64." in page.text


def test_links_lead_to_sections(page: Page) -> None:
    targets = {f"#{attributes['id']}" for _, attributes in page.elements if "id" in attributes}
    links = [link["href"] for link in page.all("a")]
    assert len(links) == len(set(links)) == 7
    assert set(links) <= targets


def test_identifiers_are_unique(page: Page) -> None:
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


def test_nothing_is_loaded_from_anywhere(page: Page) -> None:
    assert not page.all("link") and not page.all("img") and not page.all("iframe") and not page.all("base")
    for name, attributes in page.elements:
        for key in ("src", "srcset", "action", "data", "poster", "background"):
            assert key not in attributes, (name, attributes)
        assert not any(key.startswith("on") for key in attributes)
    for style in page.inside["style"]:
        assert "url(" not in style and "@import" not in style and "http" not in style
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and policy.startswith("default-src 'none'") and "http" not in policy
    assert "http" not in page.inside["script"][0] and "http" not in page.inside["script"][2]


def test_colours_follow_the_reader(page: Page) -> None:
    assert "@media (prefers-color-scheme: dark)" in page.inside["style"][0]
    assert {"name": "color-scheme", "content": "light dark"} in page.all("meta")
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")


def test_script_of_the_charts_is_inside_once(runs: list[RunRecord], page: Page) -> None:
    assert [script.get("type") for script in page.all("script")] == ["application/json", None, None]
    assert sum("plotly.js v" in script for script in page.inside["script"]) == 1
    assert len(render_report(runs)) < 6_000_000


def test_every_choice_of_a_chart_is_a_figure_or_empty(runs: list[RunRecord], page: Page) -> None:
    assert set(page.figures) == {"rank", "layers", "loss"}
    assert set(page.figures["loss"]) == {""}
    assert {"miub_js", "mi_joint", "accuracy", "ce", "text_ppl"} <= set(page.figures["rank"])
    assert {"1|miub_js", "3|effective_rank"} <= set(page.figures["layers"])
    for chart in charts(runs):
        assert chart.first["caption"]
        assert all(figure["data"] and figure["layout"]["height"] for figure in chart.figures.values())
    layers = next(chart for chart in charts(runs) if chart.name == "layers")
    assert [selector.chosen for selector in layers.selectors] == ["3", "miub_js"]


def test_hostile_text_stays_text() -> None:
    text = render_report([evil_run()], title=EVIL)
    page = Page(text)
    assert not page.all("img")
    assert [script.get("type") for script in page.all("script")] == ["application/json", None, None]
    assert page.text.count(EVIL) > 10
    assert "49" not in page.text.replace("{{7*7}}", "")[:200]
    figures = json.dumps(page.figures)
    assert "<" not in page.inside["script"][0]
    assert "<img" not in json.dumps([trace for trace in page.figures["layers"]["0|miub_js"]["data"]])
    assert "&lt;img" in figures


def test_hostile_names_of_runs_do_not_break_selectors() -> None:
    page = Page(render_report([evil_run(), make_run(0)]))
    assert [option["value"] for option in page.all("option")].count("0") == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_unknown_numbers_are_dashes(value: float) -> None:
    found = AdapterMeasurement(
        totals={"miub_js": value, "ce": 1.0}, layers=[{"name": "a", "miub_js": value, "d_in": None}]
    )
    page = Page(render_report([found]))
    assert not re.search(r"\b(nan|inf|infinity|none|null)\b", page.text.lower())
    assert [row.cells[0].text for _, rows in comparison([found]) for row in rows] == ["1", "–"]
    assert component_tables([found])[0].rows == (("a", "–", "–"),)


def test_a_report_without_charts_carries_no_script() -> None:
    text = render_report([AdapterMeasurement(totals={"ce": 1.0}, layers=[])])
    assert Page(text).all("script") == []
    assert len(text) < 50_000


def test_a_report_of_nothing_known() -> None:
    assert "No run has a total." in Page(render_report([AdapterMeasurement(totals={}, layers=[])])).text


def test_classifier_without_layer_numbers_or_ranks() -> None:
    layers = [{"name": "classifier", "layer": None, "projection": "classifier", "rank": 8, "miub_js": 0.5}]
    page = Page(render_report([AdapterMeasurement(totals={"miub_js": 0.5, "accuracy": 0.9}, layers=layers)]))
    assert set(page.figures) == {"layers"}
    assert "MIUB (Eq. 9), adapter: the same in every cell (0.5)." in page.text


def test_twenty_runs() -> None:
    records = [
        make_run(rank, task=task, seed=seed, layers=4)
        for task in ("towns", "piqa")
        for rank in (0, 4, 16, 64, 128)
        for seed in (0, 1)
    ]
    page = Page(render_report(records))
    assert len([table for table in page.all("table") if table.get("class") == "components"]) == 16
    assert {trace["name"] for trace in page.figures["rank"]["ce"]["data"]} == {"task towns", "task piqa"}
    assert len(charts(records)[0].figures["ce"]["data"][0]["x"]) == 5


def test_comparison_shows_errors_and_changes(runs: list[RunRecord]) -> None:
    blocks = dict(comparison(runs))
    assert list(blocks) == ["What the model can do", "What changed inside"]
    first = blocks["What the model can do"][0]
    assert (first.name, first.unit) == ("accuracy", "")
    assert [cell.text for cell in first.cells] == ["49.0%", "66.0%", "63.0%", "70.0%"]
    assert [cell.notes for cell in first.cells] == [
        ("± 5.0",),
        ("± 4.8", "+17.0 vs base"),
        ("± 4.9", "+14.0 vs base"),
        ("± 4.6", "+21.0 vs base"),
    ]
    surprise = next(row for row in blocks["What the model can do"] if row.name == "ce")
    assert [cell.notes for cell in surprise.cells][:2] == [("± 0.25",), ("± 0.25", "−4.03 vs base")]
    shift = blocks["What changed inside"][0]
    assert (shift.label, shift.unit) == ("MIUB (Eq. 9)", "nats")
    assert [cell.text for cell in shift.cells] == ["0", "0.0031", "0.0085", "0.0392"]
    assert shift.meaning.startswith("How far the adapter moves")


def test_unknown_totals_are_kept_apart() -> None:
    blocks = dict(comparison([AdapterMeasurement(totals={"mine": 2.0, "ce": 1.0}, layers=[])]))
    assert [row.name for row in blocks["Also recorded"]] == ["mine"]


def test_facts_are_split_into_shared_and_differing(runs: list[RunRecord]) -> None:
    table = facts_of(runs[1:3], "spec", "counts")
    assert ("model", "SmolLM2-135M-Instruct") in table.shared
    assert ("rank", ("4", "16")) in table.differing
    nested = facts_of(runs[1:3], "provenance")
    assert ("versions / torch", "2.13.0") in nested.shared
    assert facts_of([runs[0], AdapterMeasurement(totals={}, layers=[])], "spec").differing[0][1][1] == "–"


def test_too_many_components_are_said_not_hidden() -> None:
    record = make_run(4, layers=30)
    many = [record] * (COMPONENT_ROWS // len(record.layers) + 1)
    tables = component_tables(many)
    assert sum(len(table.rows) for table in tables) <= COMPONENT_ROWS
    assert "210 components, too many for this page" in tables[-1].left_out
    assert tables[1].run == "rank-4 (2)"


def test_write_makes_the_folder_and_replaces_the_file(tmp_path: Path, runs: list[RunRecord]) -> None:
    path = tmp_path / "deep" / "report.html"
    assert write_report(runs[:1], path, title="First") == path
    write_report(runs[:1], path, title="Second")
    assert "Second" in path.read_text(encoding="utf-8") and "First" not in path.read_text(encoding="utf-8")
    assert [item.name for item in path.parent.iterdir()] == ["report.html"]


def test_nothing_to_report_and_no_place_to_write(tmp_path: Path, runs: list[RunRecord]) -> None:
    with pytest.raises(InputError, match="nothing to report"):
        write_report([], tmp_path / "report.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_report(runs[:1], tmp_path / "file" / "sub" / "report.html")
