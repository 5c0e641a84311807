"""``lorascope plan`` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from lorascope.cli.plan import plan_command
from lorascope.core.errors import LorascopeError
from lorascope.results import RunRecord

app = typer.Typer()
app.command()(plan_command)


def run(*arguments: object) -> str:
    found = CliRunner().invoke(app, [str(item) for item in arguments])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    return found.output


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    rows = [
        {
            "N": 1.35e8,
            "R": r,
            "D": d,
            "seed": s,
            "task": "towns",
            "model": "smollm2",
            "status": "done",
            "accuracy": 0.4 + 0.1 * (1 - 0.5 ** (r / 2)) + 0.1 * np.log10(d / 100) + rng.normal(0, 0.004),
            "train_tokens_seen": 25 * d,
        }
        for r in (2, 4, 8, 16, 32)
        for d in (100, 400)
        for s in (0, 1)
    ]
    path = tmp_path / "sweep" / "table.csv"
    path.parent.mkdir()
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_words_json_and_files(table: Path, tmp_path: Path) -> None:
    printed = run(table.parent, "--out", tmp_path / "plan")
    assert printed.startswith(("Use rank", "For now use rank"))
    assert "LoraConfig(" in printed
    values = json.loads(run(table, "--json"))
    assert values["choice"]["R"] in (8, 16)
    assert values["choice"]["D"] == 400
    kept = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert kept["choice"] == values["choice"]
    assert json.loads((tmp_path / "plan" / "lora_config.json").read_text())["r"] == values["choice"]["R"]


def test_the_page_says_the_advice_first(table: Path, tmp_path: Path) -> None:
    run(table.parent, "--out", tmp_path / "plan")
    page = (tmp_path / "plan" / "plan.html").read_text(encoding="utf-8")
    advice = json.loads((tmp_path / "plan" / "plan.json").read_text())["summary"].splitlines()[0]
    assert page.index(advice) < page.index('id="curves"')
    printed = run(table, "--report", tmp_path / "deep" / "page.html")
    assert f"report: {tmp_path / 'deep' / 'page.html'}" in printed
    assert (tmp_path / "deep" / "page.html").is_file()
    with pytest.raises(LorascopeError, match=r"--report .*page\.txt' does not end in \.html"):
        run(table, "--report", tmp_path / "page.txt")


def test_grid_where_target_and_budget(table: Path, tmp_path: Path) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        "base: {preset: quick}\ngrid: {rank: [0, 2, 4], train_limit: [100, 400], model: [smollm2], seed: [0, 1]}\n"
    )
    values = json.loads(run(table, "--json", "--grid", grid, "--where", "task=towns"))
    assert [record["R"] for record in values["ranks"]] == [2, 4]
    assert json.loads(run(table, "--json", "--target", 0.48))["target"]["probability"] > 0.4
    assert json.loads(run(table, "--json", "--budget", "2 TFLOPs"))["choice"]["D"] == 100


def test_one_run_gives_a_guess(tmp_path: Path) -> None:
    layers = [{"name": f"l{i}", "rank": 16, "effective_rank": 5.0, "update_ratio": 0.1} for i in range(4)]
    folder = tmp_path / "run"
    RunRecord(name="run", totals={}, layers=layers, spec={"rank": 16}).save(folder / "result.json")
    for path in (folder, folder / "result.json"):
        assert run(path).startswith("First guess, not a recommendation: rank 8.")
    run(folder, "--report", tmp_path / "guess.html")
    assert "First guess, not a recommendation: rank 8." in (tmp_path / "guess.html").read_text(encoding="utf-8")
    with pytest.raises(LorascopeError, match="is one run: a target or a budget needs a sweep"):
        run(folder, "--target", 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "3 bananas"], "unknown unit 'bananas'"),
        (["--target", "2"], "out of reach: the best prediction of accuracy is"),
        (["--metric", "bleu"], "no values of 'bleu'"),
        (["--where", "task"], "write column=value"),
        (["--where", "task=x"], "there is towns"),
        (["--where", "planet=x"], "no column 'planet'"),
        (["--model-config", "nowhere.json"], "no file 'nowhere.json'"),
        (["--grid", "nowhere.yaml"], "no file 'nowhere.yaml'"),
    ],
)
def test_bad_options(table: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(LorascopeError, match=message) as caught:
        run(table, *arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: {learning_rate: [0.1]}", "'learning_rate' is no axis of a plan"),
        ("rank: 4", "'rank' must be a list of numbers"),
        ("rank: [true]", "'rank' must be a list of numbers"),
        ("model: [gpt5]", "no finished run tells N of 'model'"),
    ],
)
def test_bad_grids(table: Path, tmp_path: Path, text: str, message: str) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text(text)
    with pytest.raises(LorascopeError, match=message):
        run(table, "--grid", grid)


def test_missing_table(tmp_path: Path) -> None:
    with pytest.raises(LorascopeError, match="no file"):
        run(tmp_path / "absent.csv")
    with pytest.raises(LorascopeError, match=r"no table\.csv"):
        run(tmp_path)
