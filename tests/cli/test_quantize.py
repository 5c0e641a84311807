"""``lorascope quantize`` as a person types it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lorascope.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Type a command; get its exit code, what it printed, and what it said on the error stream."""

    def typed(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lorascope", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return typed


def test_quantise(run: Run, tiny_model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "q"
    code, said, _ = run("quantize", "--model", tiny_model_dir, "--out", out, "--n", 5, "--no-progress")
    assert code == 0
    assert "layers.1.mlp.up_proj" in said.replace("\n", "") or "1.mlp.up_proj" in said
    assert f"quantised model: {out}" in said.replace("\n", "")
    report = json.loads((out / "quantization.json").read_text())
    assert len(report["layers"]) == 14 and report["config"]["n"] == 5


def test_json_and_plain(run: Run, tiny_model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "q"
    code, said, _ = run("quantize", "--model", tiny_model_dir, "--out", out, "--method", "plain", "--bits", 3, "--json")
    assert code == 0
    report = json.loads(said)
    assert report["config"]["objective"] == "none" and report["config"]["bits"] == 3
    assert "entropy_bits_plain" not in report["totals"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--bits", 5], "bits 5 is not supported"),
        (["--method", "gptq"], "unknown method 'gptq'"),
        (["--objective", "none"], "unknown objective 'none'"),
        (["--dtype", "int8"], "unknown dtype 'int8'"),
        (["--block-size", 1], "block_size 1"),
        (["--search", "scale"], "for integers only"),
    ],
)
def test_wrong_options_end_in_one_line(
    run: Run, tiny_model_dir: Path, tmp_path: Path, options: list[object], said: str
) -> None:
    code, _, error = run("quantize", "--model", tiny_model_dir, "--out", tmp_path / "q", "--no-progress", *options)
    assert code == 2
    assert said in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "q").exists()


def test_a_model_that_is_not_there_leaves_no_folder(run: Run, tmp_path: Path) -> None:
    code, _, error = run("quantize", "--model", tmp_path / "none", "--out", tmp_path / "q", "--no-progress")
    assert code == 2 and "none" in error and len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_refused(run: Run, tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    code, _, error = run("quantize", "--model", tiny_model_dir, "--out", tmp_path, "--no-progress")
    assert code == 2 and "not empty" in error
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
