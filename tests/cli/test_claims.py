"""``lorascope claims`` as a person types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from lorascope.cli.claims import claims_command
from lorascope.core.errors import DataError, InputError

app = typer.Typer()
app.command()(claims_command)


def typed(*arguments: object) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "120"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def sweep_dir(tmp_path: Path) -> Path:
    rows = [
        {"name": f"{t}-{r}", "status": "done", "task": t, "R": r, "N": 10, "D": 5, "seed": 0}
        | {"accuracy": 0.5 + r / 200, "ce": 3 - r / 50, "miub_js": r / 100, "mi_joint": 9.0 - r / 99, "joint_js": 2.0}
        for t in ("<b>towns</b>", "arc", "piqa")
        for r in (4, 16, 64)
    ]
    folder = tmp_path / "sweep"
    folder.mkdir()
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    return folder


def test_paper_prints_verdicts_and_words() -> None:
    out = typed("paper")
    assert "11 supported, 3 contradicted, 8 not supported, 4 undecided" in out
    assert "in 6 of 10" in out.replace("\n", " ")
    assert "Nothing to judge by" in out
    assert "Which metric" not in out


def test_json_is_the_whole_ledger() -> None:
    ledger = json.loads(typed("paper", "--json", "--n-boot", 1000, "--seed", 4))
    assert (ledger["kind"], ledger["seed"], ledger["n_boot"]) == ("claims", 4, 1000)
    assert ledger["verdicts"]["supported"] == sum(c["verdict"] == "supported" for c in ledger["claims"])
    assert ledger["ranking"] == []


def test_a_sweep_is_judged_ranked_and_saved(sweep_dir: Path, tmp_path: Path) -> None:
    out = typed(sweep_dir, "--n-boot", 1000, "--out", tmp_path / "out")
    assert "read in three ways" in out
    assert "Which metric to watch?" in out
    ledger = json.loads((tmp_path / "out" / "claims.json").read_text())
    found = {(claim["key"], claim["quantity"]): claim["verdict"] for claim in ledger["claims"]}
    assert found["falls_rank", "Eq. 9"] == "contradicted"
    assert found["theorem3_printed", "Theorem 3"] == "contradicted"
    assert ledger["ranking"][0]["tau"] == 1.0
    page = (tmp_path / "out" / "claims.html").read_text()
    assert "Claim by claim" in page
    assert "<b>towns</b>" not in page
    assert 'src="http' not in page
    again = typed(sweep_dir, "--n-boot", 1000, "--out", tmp_path / "out", "--full")  # written over, whole
    assert len(again) > len(out)


def test_a_csv_without_accuracy_is_judged_too(sweep_dir: Path) -> None:
    table = pd.read_csv(sweep_dir / "table.csv").drop(columns="accuracy")
    table.to_csv(sweep_dir / "text.csv", index=False)
    ledger = json.loads(typed(sweep_dir / "text.csv", "--json", "--n-boot", 1000))
    assert ledger["watch"].startswith("Metrics cannot be ranked: no adapter in the table has an accuracy")
    assert ledger["ranking"] == []


def test_wrong_sources_end_in_one_line(sweep_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        typed(tmp_path / "nothing.csv")
    (tmp_path / "bad.csv").write_text("x,y\n1,2\n")
    with pytest.raises(InputError, match="none of the columns R, N, D, length"):
        typed(tmp_path / "bad.csv")


def test_importing_the_command_loads_nothing_heavy() -> None:
    code = "import sys, lorascope.cli.claims; print([m for m in ('numpy', 'pandas', 'scipy', 'plotly') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
