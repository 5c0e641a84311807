"""``lorascope fit`` as a person types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner, Result

from lorascope.cli.fit import fit_command, formula
from lorascope.core.errors import InputError
from lorascope.scaling import ScalingFit, fit_scaling_law
from tests.scaling.synthetic import ADDITIVE, MULTIPLICATIVE, grid, runs

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    app = typer.Typer()
    app.command()(fit_command)

    def typed(*arguments: object) -> Result:
        return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(argument) for argument in arguments])

    return typed


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = pd.DataFrame(runs("additive", ADDITIVE, grid(N=4, R=4, D=4), noise=0.02))
    rows["accuracy"] = 0.9 - 0.1 * rows["ce"] / rows["ce"].max()
    rows["constant"] = 1.0
    rows["name"] = "a"
    rows.to_csv(tmp_path / "table.csv", index=False)
    return tmp_path / "table.csv"


def test_it_chooses_fits_prints_and_writes(tmp_path: Path, table: Path, run: Run) -> None:
    found = run(table, "--out", tmp_path / "out", "--n-boot", 100)
    assert found.exit_code == 0, found.output
    for word in ("alpha", "exponent of rank R", "chosen: the additive law", "report:"):
        assert word in found.output
    written = json.loads((tmp_path / "out" / "fit.json").read_text())
    fit = ScalingFit.from_dict(written["fits"]["ce"])
    assert fit.law == "additive"
    assert fit.params["alpha"] == pytest.approx(ADDITIVE["alpha"], abs=0.1)
    assert len(fit.boot) == 100
    assert len(written["comparisons"]["ce"]["candidates"]) == 4
    page = (tmp_path / "out" / "fit.html").read_text()
    for part in ("ce: along each axis", "ce: over ", "ce: what the law leaves over", "Laws compared"):
        assert part in page


def test_json_is_all_that_is_printed(table: Path, run: Run) -> None:
    found = run(table, "--json", "--law", "multiplicative", "--no-floor", "--n-boot", 100, "--level", 0.9, "--seed", 3)
    values = json.loads(found.stdout)
    fit = values["fits"]["ce"]
    assert (fit["law"], fit["floor"], fit["level"], fit["seed"]) == ("multiplicative", False, 0.9, 3)
    assert set(fit["params"]) == {"A", "alpha", "beta", "gamma"}
    assert "boot" not in fit
    assert values["comparisons"] == {}


def test_a_folder_several_metrics_and_all(table: Path, run: Run) -> None:
    two = json.loads(run(table.parent, "--json", "--metric", "ce, accuracy", "--law", "additive").stdout)
    assert list(two["fits"]) == ["ce", "accuracy"]
    every = json.loads(run(table, "--json", "--metric", "all", "--law", "additive").stdout)
    assert list(every["fits"]) == ["ce", "accuracy"]


def test_a_floor_is_used_or_compared_as_asked(table: Path, run: Run) -> None:
    with_floor = json.loads(run(table, "--json", "--law", "additive", "--floor", "--n-boot", 0).stdout)
    assert "E" in with_floor["fits"]["ce"]["params"]
    best = json.loads(run(table, "--json", "--no-floor", "--n-boot", 0).stdout)
    assert [candidate["floor"] for candidate in best["comparisons"]["ce"]["candidates"]] == [False, False]


def test_of_all_metrics_those_that_cannot_be_fitted_are_said(tmp_path: Path, run: Run) -> None:
    rows = pd.DataFrame(runs("additive", {"B": 1.0, "beta": 0.5}, grid(R=6), noise=0.02))
    rows["accuracy"] = [0.5] + [None] * 5
    rows.to_csv(tmp_path / "a.csv", index=False)
    found = run(tmp_path / "a.csv", "--metric", "all")
    assert found.exit_code == 0
    assert "accuracy is not fitted: 1 row" in found.output
    with pytest.raises(InputError, match="1 row"):
        raise run(tmp_path / "a.csv", "--metric", "accuracy").exception


def test_warnings_are_printed(tmp_path: Path, run: Run) -> None:
    pd.DataFrame({"R": [4, 64], "ce": [2.0, 1.5]}).to_csv(tmp_path / "a.csv", index=False)
    found = run(tmp_path / "a.csv", "--out", tmp_path / "out")
    assert found.exit_code == 0, found.output
    assert "2 runs for 2 parameters" in " ".join(found.output.split())
    assert "too few runs" in " ".join(found.output.split())
    assert "the runs tell no exponent" in (tmp_path / "out" / "fit.html").read_text()


def test_mixed_settings_are_said_and_can_be_left_out(tmp_path: Path, run: Run) -> None:
    rows = pd.DataFrame(runs("additive", ADDITIVE, grid(N=3, R=3, D=3), noise=0.01)).assign(prompt="main", alpha=16)
    other = rows.head(4).assign(ce=9.0, prompt="letters")
    both = pd.concat([rows, other])
    both["rank_twice"] = 2 * both["R"]  # goes with an axis: no setting of its own
    both.to_csv(tmp_path / "a.csv", index=False)
    found = run(tmp_path / "a.csv", "--out", tmp_path / "out")
    assert "only runs with prompt main: 4 with other settings left out" in " ".join(found.output.split())
    assert "also differ" not in found.output
    assert json.loads((tmp_path / "out" / "fit.json").read_text())["fits"]["ce"]["n_runs"] == len(rows)
    pooled = run(tmp_path / "a.csv", "--pool", "--out", tmp_path / "out")
    assert "the runs also differ in prompt (main, letters)" in " ".join(pooled.output.split())
    assert "rank_twice" not in pooled.output
    written = json.loads((tmp_path / "out" / "fit.json").read_text())
    assert written["pooled"]
    assert written["fits"]["ce"]["n_runs"] == len(both)
    kept = run(tmp_path / "a.csv", "--where", "prompt=main", "--out", tmp_path / "out")
    assert "also differ" not in kept.output
    written = json.loads((tmp_path / "out" / "fit.json").read_text())
    assert written["where"] == ["prompt=main"]
    assert written["fits"]["ce"]["n_runs"] == len(rows)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["TABLE", "--where", "name"], "write column=value"),
        (["TABLE", "--where", "name=b"], "no row has that value; there is a"),
        (["TABLE", "--where", "nome=b"], "the table has no column 'nome'"),
        (["none.csv"], "no file"),
        (["TABLE", "--metric", "nothing"], "no column 'nothing'"),
        (["TABLE", "--metric", ","], "no metric to fit"),
        (["TABLE", "--law", "cubic"], "unknown law 'cubic'"),
        (["TABLE", "--level", 2], "level is 2"),
        (["TABLE", "--group", "seed"], "no column 'seed'"),
    ],
)
def test_wrong_input_is_said(table: Path, run: Run, options: list[object], said: str) -> None:
    found = run(*[table if option == "TABLE" else option for option in options])
    assert isinstance(found.exception, InputError)
    assert said in str(found.exception)
    assert "\n" not in str(found.exception)


def test_the_formula_is_readable() -> None:
    fit = fit_scaling_law(runs("multiplicative", MULTIPLICATIVE, grid(N=3, R=4, D=3)), "multiplicative", n_boot=0)
    assert formula(fit) == "ce = 2.000 (1e9/N)^0.150 (45.3/R)^0.050 (31,600/D)^0.200 + 0.500"
