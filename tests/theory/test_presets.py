from __future__ import annotations

import inspect

import pytest

from lorascope.core.errors import DataError, InputError
from lorascope.simulation import Adam, simulate_finetune, simulate_pipeline, simulate_pretrain
from lorascope.theory.comparison import compare
from lorascope.theory.points import SimulationPoint
from lorascope.theory.presets import PRESETS, Line, at, preset, read_points, rows_of, stored_points


def test_every_line_is_a_call_of_a_simulation() -> None:
    functions = {"pipeline": simulate_pipeline, "pretrain": simulate_pretrain, "finetune": simulate_finetune}
    for item in PRESETS:
        assert len({line.name for line in item.lines}) == len(item.lines)
        assert any(line.low for line in item.lines)
        for line in item.lines:
            known = inspect.signature(functions[line.stage]).parameters
            given = {**at(line, line.high or line.simulated[0]), **line.options}
            if "adam" in given:
                assert isinstance(Adam(**given.pop("adam")), Adam)
            assert set(given) <= set(known), (item.name, line.name)
            needed = {name for name, value in known.items() if value.default is inspect.Parameter.empty}
            assert needed <= set(given), (item.name, line.name)


def test_the_articles_settings_are_there() -> None:
    first = preset("article-ridges")
    assert first.of_article
    assert [line.setting["ridge_finetune"] for line in first.lines] == [0.05, 0.5, 1.0]
    for line in first.lines:
        wanted = {"tokens": 3, "alpha": 0.1, "alpha_finetune": 3.0, "kappa0": 1.0, "noise": 0.5}
        assert {name: line.setting[name] for name in wanted} == wanted
    assert [line.setting["ridge"] for line in preset("article-samples").lines] == [0.01, 0.1, 1.0]
    reused = preset("article-reused").lines[0].setting
    wanted = {"tokens": 2, "alpha": 0.2, "alpha_finetune": 3.0, "kappa0": 0.5, "noise": 0.5, "data": "reused"}
    assert {name: reused[name] for name in wanted} == wanted


def test_a_share_of_the_budget_becomes_both_stages() -> None:
    (line,) = preset("budget").lines
    given = at(line, 0.9, 100)
    assert given["alpha"] == pytest.approx(0.27) and given["alpha_finetune"] == pytest.approx(3.0)
    assert "budget" not in given and 0.05 < given["ridge"] < 0.3


def test_rows_of_each_kind_of_line() -> None:
    second = Line(
        name="a",
        stage="finetune",
        setting={"tokens": 2, "ridge": 0.5, "noise": 0.7},
        over="alpha_finetune",
        low=2.0,
        high=4.0,
    )
    rows = rows_of(second, count=2, samples=256)
    assert [row["alpha_finetune"] for row in rows] == pytest.approx([2.0, 4.0])
    assert rows[0]["alignment"] < rows[1]["alignment"]
    (split,) = preset("budget").lines
    assert [row["share"] for row in rows_of(split, count=2, samples=256)] == [split.low, split.high]
    first = preset("regularise").lines[0]
    assert rows_of(first, count=3)[0]["ridge"] == first.low
    assert rows_of(Line(name="b", setting={}, over="ridge", simulated=(0.1,))) == []


def test_stored_simulations_belong_to_the_presets_and_lie_near_the_theory() -> None:
    found = stored_points()
    assert set(found) == {item.name for item in PRESETS}
    for item in PRESETS:
        for line in item.lines:
            rows = found[item.name].get(line.name, [])
            assert sorted(row[line.over] for row in rows) == sorted(line.simulated), (item.name, line.name)
            assert all(row["dim"] == line.options["dim"] and row["seeds"] == line.options["seeds"] for row in rows)
    regularise = found["regularise"]["N/d² = 0.3"]
    best = min(regularise, key=lambda row: row["delta_eff"])
    assert best["ridge"] == 0.1  # the theory's best ridge is 0.122


def test_unknown_presets_and_foreign_files_are_refused() -> None:
    with pytest.raises(InputError, match="unknown preset 'other'"):
        preset("other")
    with pytest.raises(DataError, match="schema_version"):
        read_points({"schema_version": 99})


def test_comparison_says_within_or_off_and_why_not() -> None:
    settings = {
        "alpha": 4.0,
        "tokens": 2,
        "ridge": 0.5,
        "noise": 0.7,
        "base_error": 0.0,
        "rank": 1,
        "start": "informed",
    }
    samples = {"alignment": [0.98, 0.982, 0.981], "m": [0.5, 0.501, 0.499], "agreement": [1.0, 1.0, 1.0]}
    point = SimulationPoint(stage="finetune", settings=settings, dim=200, samples=samples)
    rows, words = compare(point)
    assert [(row.quantity, row.within) for row in rows] == [("alignment", True), ("m", False)]
    assert rows[0].allowed == pytest.approx(3 * point.error("alignment") + 3.4 / 200 * rows[0].theory)
    assert words == []
    odd = {**settings, "optimiser": "adam", "factors": "lora", "start": "random"}
    _, words = compare(SimulationPoint(stage="finetune", settings=odd, dim=200, samples=samples))
    assert len(words) == 2 and "B A" in words[0]
    rows, words = compare(SimulationPoint(stage="finetune", settings={**settings, "rank": 2}, dim=200, samples=samples))
    assert all(row.theory is None for row in rows) and "rank" in words[0]
    rows, _ = compare(SimulationPoint(stage="finetune", settings=settings, dim=200, samples={"m": [0.97]}))
    assert rows[0].within is None and rows[0].theory is not None
