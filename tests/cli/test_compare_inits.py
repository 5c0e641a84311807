from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from lorascope.cli import main
from lorascope.cli._compare_inits import _table, settings_of
from lorascope.core.errors import InputError
from tests.cli.test_commands import ROWS


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["lorascope", "compare-inits", *map(str, arguments)])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def rows(folder: Path) -> Path:
    folder.mkdir()
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def test_page_table_and_json_of_real_runs(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--model", tiny_model_dir, "--task", rows(tmp_path / "rows"), "--out", out, "--workers", 1]
    options += ["--methods", "fisher", "--rates", "1e-2", "--seeds", 2, "--no-progress"]
    for setting in ("max_steps=2", "probe_steps=[1,2]", "rank=2", "text_task=null"):
        options += ["--set", setting]
    assert call(monkeypatch, *options) == 0
    said = capsys.readouterr().out
    assert "Validation loss after 2 steps" in said
    assert str(out / "inits.html") in said
    runs = pd.read_csv(out / "inits.csv")
    assert sorted(runs["method"].unique()) == ["default", "fisher"]
    assert len(runs) == 4
    assert {"held_out_loss@1", "held_out_loss@2", "accuracy", "miub_js", "seconds_init"} <= set(runs.columns)
    assert (runs.set_index("method").loc["fisher", "seconds_init"] > 0).all()
    facts = json.loads((out / "inits.json").read_text())
    assert facts["headline"] in said.replace("\n", " ")
    assert len(facts["tuning"]) == 2
    assert "Initialisations of LoRA" in (out / "inits.html").read_text(encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/result.json")}
    assert call(monkeypatch, *options) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing is trained twice"


def test_dry_run_counts_the_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_model_dir: Path
) -> None:
    out = tmp_path / "out"
    options = ["--model", tiny_model_dir, "--task", rows(tmp_path / "rows"), "--out", out, "--set", "rank=2"]
    assert call(monkeypatch, *options, "--methods", "eva", "--rates", "1e-3", "--dry-run") == 0
    assert "8 cells" in capsys.readouterr().out  # 2 methods, 1 rate, 1 tuning seed and 3 others
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--methods", "fischer"), "did you mean 'fisher'"),
        (("--rates", "fast"), "--rates 'fast' must be numbers"),
        (("--rates", "0"), "must be numbers above 0"),
        (("--set", "rank"), "give NAME=VALUE"),
        (("--set", "seed=3"), "the comparison sets that itself"),
        (("--set", "rnak=3"), "rank"),
        (("--set", "max_steps=5"), "go beyond max_steps 5"),
    ],
)
def test_bad_options_end_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[Any, ...],
    line: str,
) -> None:
    assert call(monkeypatch, "--out", tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert line in error
    assert len(error.splitlines()) == 1


def test_settings_are_read_as_yaml() -> None:
    found = settings_of(["learn=1e-3", "use_rslora=true", "text_task=null", "schedule=linear", "length=[1, 9]"])
    assert found == {"learn": 1e-3, "use_rslora": True, "text_task": None, "schedule": "linear", "length": [1, 9]}
    with pytest.raises(InputError, match="not YAML"):
        settings_of(["a=[1"])


def test_the_table_fits_a_narrow_terminal() -> None:
    cell = {"metric": "loss", "mean": 2.4321, "difference": -0.00794, "low": -0.0661, "high": 0.00751, "p_holm": 1.0}
    frame = pd.DataFrame([cell | {"method": "fisher_select_lowest", "helped": "undecided"}])
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(_table(frame, "loss", "Loss"))
    row = console.export_text().splitlines()[-1]
    assert row.split() == [
        "fisher_select_lowest",
        "2.432",
        "-7.94e-03",
        "-0.066",
        "to",
        "7.51e-03",
        "1.000",
        "undecided",
    ]
