"""``lorascope quantize-study`` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorascope.quantization.studies import QuantizationStudy
from tests.cli.test_quantize import Run, run

__all__ = ["run"]


@pytest.mark.parametrize(
    ("study", "options", "rows", "said"),
    [
        ("sensitivity", ["--ns", "1,5", "--lams", "0.1"], 2, "95 % of the gain"),
        ("ceiling", ["--bits", "2,4", "--n", 5], 4, "for an ideal code"),
        ("median", ["--n", 5], 9, "searching from the median"),
    ],
)
def test_studies_of_weights(
    run: Run, tiny_model_dir: Path, tmp_path: Path, study: str, options: list[object], rows: int, said: str
) -> None:
    command = ["quantize-study", study, "--model", tiny_model_dir, "--out", tmp_path / "s", "--limit", 4, *options]
    code, printed, _ = run(*command, "--no-progress")
    assert code == 0
    assert said in " ".join(printed.split())
    values = json.loads((tmp_path / "s" / f"{study}.json").read_text())
    found = QuantizationStudy.from_dict(values)
    assert len(found.records) == rows and found.settings["limit"] == 4
    assert found.to_dict() == values
    page = (tmp_path / "s" / f"{study}.html").read_text()
    assert "tiny-llama" in page and "plotly" in page.lower()
    code, _, error = run(*command)
    assert code == 2 and "is there already" in error


def test_resources(run: Run, tiny_model_dir: Path, tmp_path: Path) -> None:
    options = ["--variants", "dense,icq", "--batches", "1", "--lengths", "2,4", "--rounds", 1, "--no-progress"]
    code, printed, _ = run("quantize-study", "resources", "--model", tiny_model_dir, "--out", tmp_path, *options)
    assert code == 0 and "Weights: dense" in " ".join(printed.split())
    records = json.loads((tmp_path / "resources.json").read_text())["records"]
    assert {row["variant"] for row in records} == {"dense", "icq"} and len(records) == 8


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["sensitivity", "--ns", "1,x"], "--ns '1,x' must be numbers"),
        (["ceiling", "--bits", "5"], "bits 5 is not supported"),
        (["resources", "--variants", "fp8"], "unknown variant 'fp8'"),
        (["resources", "--device", "tpu"], "device 'tpu' is not there"),
        (["median", "--block-size", "4096"], "whole block of 4096"),
    ],
)
def test_wrong_options_end_in_one_line(
    run: Run, tiny_model_dir: Path, tmp_path: Path, options: list[object], said: str
) -> None:
    code, _, error = run(
        "quantize-study", *options, "--model", tiny_model_dir, "--out", tmp_path / "s", "--no-progress"
    )
    assert code == 2
    assert said in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "s").exists()


def test_resources_of_a_quantised_model_are_refused(run: Run, tiny_model_dir: Path, tmp_path: Path) -> None:
    quantised = tmp_path / "q"
    assert run("quantize", "--model", tiny_model_dir, "--out", quantised, "--no-progress")[0] == 0
    code, _, error = run("quantize-study", "resources", "--model", quantised, "--out", tmp_path / "s", "--no-progress")
    assert code == 2 and "is quantised already" in error
