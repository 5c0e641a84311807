from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

import lorascope.bridge.compare as compare
from lorascope.bridge import BridgePlan, BridgeResult
from lorascope.bridge.shape import CurvePoint, theory_curve
from lorascope.cli import main

Made = tuple[BridgePlan, Path, BridgeResult]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["lorascope", "theory", "bridge", *map(str, arguments)])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def options(made: Made) -> list[object]:
    plan, folder, _ = made
    found: list[object] = ["--out", folder, "--model", plan.model, "--task", plan.task, "--rank", plan.rank]
    found += ["--sizes", "8,2", "--seeds", 2, "--steps", plan.steps, "--questions", plan.questions]
    return [*found, "--reference-rows", plan.reference_rows, "--reference-steps", plan.reference_steps, "--no-progress"]


def test_page_record_and_table(
    tiny_bridge: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder, result = tiny_bridge

    def rough(*, samples: int, **settings: float) -> list[CurvePoint]:
        assert samples == 2**10
        return theory_curve(**settings, samples=64)  # type: ignore[arg-type]

    monkeypatch.setattr(compare, "theory_curve", rough)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/result.json")}
    assert call(monkeypatch, *options(tiny_bridge)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Noise: the frozen model leaves" in said
    assert str(folder / "bridge.html") in said
    assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing is trained twice"
    record = BridgeResult.load(folder / "bridge.json")
    assert record.runs == result.to_dict()["runs"]
    assert len(pd.read_csv(folder / "bridge.csv")) == 6
    page = (folder / "bridge.html").read_text(encoding="utf-8")
    assert "Where the shape holds and where not" in page
    assert call(monkeypatch, *options(tiny_bridge), "--json") == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "bridge"


def test_dry_run_lists_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "--out", tmp_path / "out", "--sizes", "8,32", "--seeds", 1, "--dry-run") == 0
    assert capsys.readouterr().out.splitlines() == [
        "reference: 960 rows, 60 steps, seed 1000",
        "n8-s0: 8 rows, 20 steps, seed 0",
        "n32-s0: 32 rows, 20 steps, seed 0",
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--sizes", "16,many"), "--sizes '16,many' must be whole numbers"),
        (("--sizes", "16"), "give more sizes"),
        (("--sizes", "16,2000"), "reference_rows 960 is below"),
        (("--seeds", "0"), "--seeds 0"),
        (("--rank", "0"), "rank 0"),
        (("--ridge", "0"), "ridge 0"),
        (("--tokens", "9"), "tokens 9"),
        (("--task", "twons"), "twons"),
    ],
)
def test_bad_options_end_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_model_dir: Path,
    arguments: tuple[str, ...],
    line: str,
) -> None:
    assert call(monkeypatch, "--out", tmp_path / "out", "--model", tiny_model_dir, *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert line in error
    assert len(error.splitlines()) == 1
