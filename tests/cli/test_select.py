from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorascope.cli import main
from tests.cli.test_commands import ROWS

BARE = [{key: row[key] for key in ("question", "choices")} for row in ROWS]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["lorascope", "select", *map(str, arguments)])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_come_out_as_they_were_with_a_report(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = write(tmp_path / "pool.jsonl", [{**row, "note": "kept"} for row in BARE])
    out = tmp_path / "chosen.jsonl"
    options = ("--pool", pool, "--out", out, "--model", tiny_model_dir, "--features", 16, "--subspace", 2)
    options += ("--method", "d_optimal_expected")
    assert call(monkeypatch, *options, "--budget", 3, "--no-progress") == 0
    lines = out.read_text().splitlines()
    assert set(lines) <= set(pool.read_text().splitlines())
    assert len(lines) == 3
    report = json.loads((tmp_path / "chosen.jsonl.report.json").read_text())
    assert report["method"] == "d_optimal_expected"
    assert [pool.read_text().splitlines()[index] for index in report["chosen"]] == lines
    chosen = [row for row in report["scores"] if row["choice"] is not None]
    assert sorted(row["choice"] for row in chosen) == [1, 2, 3]
    assert all(row["gain_nats"] > 0 for row in chosen)
    assert report["provenance"]["data_sha256"]
    assert str(out) in capsys.readouterr().out
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / ".lorascope-scores").rglob("*.safetensors")}
    assert parts
    assert call(monkeypatch, *options, "--budget", 2, "--no-progress") == 0
    assert out.read_text().splitlines() == lines[:2], "a smaller budget is the beginning of a larger one"
    assert {path: path.stat().st_mtime_ns for path in parts} == parts, "nothing is scored twice"


def test_labels_that_were_filled_in_are_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pool, out = write(tmp_path / "pool.jsonl", BARE), tmp_path / "chosen.jsonl"
    given = ("--method", "random", "--out", out)
    assert call(monkeypatch, "--pool", pool, "--budget", 3, *given) == 0
    assert call(monkeypatch, "--pool", out, "--budget", 1, *given) == 2
    assert "is the pool itself" in capsys.readouterr().err
    edited = out.read_text().replace("}", ', "answer": 0}')
    out.write_text(edited)
    for budget in (3, 2):
        assert call(monkeypatch, "--pool", pool, "--budget", budget, *given) == 2
        assert "was changed since it was written" in capsys.readouterr().err
    assert out.read_text() == edited
    out.unlink()
    assert call(monkeypatch, "--pool", pool, "--budget", 2, *given) == 0, "an interruption left the report alone"
    (tmp_path / "chosen.jsonl.report.json").write_text("{")
    assert call(monkeypatch, "--pool", pool, "--budget", 3, *given) == 2
    assert "not from this command" in capsys.readouterr().err
    (tmp_path / "mine.jsonl.report.json").write_text('{"lines": ["mine"]}')
    assert call(monkeypatch, "--pool", pool, "--budget", 3, "--method", "random", "--out", tmp_path / "mine.jsonl") == 2
    assert "mine.jsonl.report.json' is there already" in capsys.readouterr().err


def test_random_needs_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "chosen.jsonl"
    given = ("--pool", "towns", "--budget", 5, "--method", "random", "--out", out, "--model", tmp_path / "none")
    assert call(monkeypatch, *given) == 0
    first = out.read_text()
    assert call(monkeypatch, *given) == 0
    assert out.read_text() == first
    assert call(monkeypatch, *given, "--seed", 1) == 0
    assert out.read_text() != first


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--budget", 99, "--method", "random"), "budget 99 is over the"),
        (("--budget", 0, "--method", "random"), "budget 0 must be"),
        (("--budget", 1, "--method", "fisher"), "unknown method 'fisher'"),
        (("--budget", 1, "--method", "loss"), "needs labels"),
        (("--budget", 1, "--features", 10), "features 10 must be a square number"),
        (("--budget", 1, "--overlong", "drop"), "can't be dropped"),
        (("--budget", 1, "--pool", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--budget", 1, "--method", "random", "--out", "."), "is a folder"),
        (("--budget", 1, "--method", "random", "--out", "notes.jsonl"), "is there already and not from this command"),
    ],
)
def test_bad_options_end_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[Any, ...],
    line: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "pool.jsonl", BARE)
    (tmp_path / "notes.jsonl").write_text("mine\n")
    defaults = {"--pool": "pool.jsonl", "--out": "chosen.jsonl"}
    given = [item for key, value in defaults.items() if key not in arguments for item in (key, value)]
    assert call(monkeypatch, *given, *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert line in error
    assert len(error.splitlines()) == 1
    assert (tmp_path / "notes.jsonl").read_text() == "mine\n"


def test_an_empty_pool_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pool.jsonl").write_text("")
    out = tmp_path / "chosen.jsonl"
    assert call(monkeypatch, "--pool", tmp_path / "pool.jsonl", "--budget", 1, "--out", out) == 2
    assert "is empty" in capsys.readouterr().err
