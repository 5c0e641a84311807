"""``lorascope theory`` as a person types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lorascope.cli.theory import theory_app
from lorascope.core.errors import DataError, InputError
from lorascope.theory.points import load_points


def typed(*arguments: object) -> str:
    result = CliRunner().invoke(theory_app, list(map(str, arguments)), env={"COLUMNS": "100"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def page_of(path: Path) -> str:
    text = path.read_text()
    assert 'src="http' not in text
    return text


def test_point_answers_in_words_and_json(tmp_path: Path) -> None:
    out = typed("point", "--samples", 512, "--data", "fresh,reused", "--dim", 60, "--out", tmp_path)
    assert "effective noise of 0.402" in out.replace("\n", " ")
    assert "flag: reused: 16.7% of the stage-1 sequences are reused" in out.replace("\n", " ")
    values = json.loads(typed("point", "--samples", 512, "--data", "fresh", "--ridge", "best", "--json"))
    assert values["kind"] == "theory_point" and values["pretrained"]["ridge"] == pytest.approx(0.1224, abs=1e-3)
    assert "16.7%" in page_of(tmp_path / "point.html")
    assert json.loads((tmp_path / "point.json").read_text())["warnings"]


def test_reused_data_are_never_shown_without_their_d() -> None:
    few = ["--alpha", 0.01, "--alpha-finetune", 5, "--samples", 128]
    out = typed("point", "--data", "reused", *few).replace("\n", " ")
    assert "for d of 10,000 and more" in out and "flag: reused: below d = 10,000 more than 5%" in out
    assert "for d of 200 and more" in typed("point", "--data", "reused", "--samples", 128).replace("\n", " ")
    maps = ["mismatch", "--ridges", "0.05,0.2", "--samples", 128, "--no-progress"]
    out = typed(*maps).replace("\n", " ")
    assert "flag: 2 of 4 points: below d = 300 more than 5%" in out and "d ≥" in out
    assert "flag" not in typed(*maps, "--dim", 300).split("flag", 1)[1]  # the head of the column only


def test_simulations_are_set_beside_the_theory_and_drawn_on_its_curve(tmp_path: Path) -> None:
    common = ["--dim", 24, "--seeds", 3, "--no-progress"]
    out = typed("simulate", *common, "--over", "ridge", "--values", "0.03,0.2", "--out", tmp_path / "points")
    assert out.count("alignment") == 2 and "ridge 0.2: fresh, d = 24, 3 seeds" in out
    assert "within" in out
    points = load_points(tmp_path / "points" / "simulation.json")
    assert [point.settings["ridge"] for point in points] == [0.03, 0.2]
    assert (tmp_path / "points" / "simulation.csv").read_text().count("\n") == 3
    file = tmp_path / "points" / "simulation.json"
    arguments = ["--over", "ridge", "--values", "0.02:0.3:4", "--samples", 256, "--no-progress"]
    out = typed("curve", *arguments, "--points", file, "--out", tmp_path)
    assert "λ" in out and "The lowest test error" in out
    assert "d = 24, 3 seeds" in page_of(tmp_path / "curve-ridge.html")
    with pytest.raises(InputError, match=r"noise is 0\.5 there and 0\.1 here"):
        typed("curve", *arguments, "--noise", 0.1, "--points", file)
    with pytest.raises(DataError):
        typed("curve", *arguments, "--points", tmp_path / "nothing.json")


def test_other_stages_and_adam_are_simulated() -> None:
    common = ["--dim", 16, "--seeds", 2, "--no-progress", "--json"]
    (first,) = json.loads(typed("simulate", "--stage", "pretrain", *common))
    assert first["stage"] == "pretrain" and set(first["samples"]) >= {"Q", "M", "delta_eff"}
    adam = ["--optimiser", "adam", "--steps", 30, "--batch", 16, "--start", "random"]
    (second,) = json.loads(typed("simulate", "--stage", "finetune", *adam, *common, "--first-seed", 5))
    assert second["settings"]["factors"] == "lora" and second["provenance"]["seeds"] == [5, 6]
    out = typed("simulate", "--stage", "finetune", *adam, "--dim", 16, "--seeds", 2, "--no-progress")
    assert "tied factors" in out.replace("\n", " ")


def test_regularise_threshold_recalibrate(tmp_path: Path) -> None:
    out = typed("regularise", "--ridges", "0.05,0.2,5", "--no-progress", "--out", tmp_path).replace("\n", " ")
    assert "Best nuclear ridge 0.122" in out and "Bayes floor of 0.376" in out
    assert "flag: 1 of 4 points: pre-training collapsed" in out
    assert "Bayes floor" in page_of(tmp_path / "regularise.html")
    out = typed("threshold", "--residual", 0.7, "--samples", 256, "--no-progress", "--out", tmp_path).replace("\n", " ")
    assert "Below N′/d = 0.23" in out and "replica symmetry is doubtful" in out
    assert "weak recovery" in page_of(tmp_path / "threshold.html")
    values = json.loads(typed("threshold", "--targets", "0.9", "--samples", 256, "--no-progress", "--json"))
    assert values["noise"] == pytest.approx(0.3813, abs=1e-3)  # of the best ridge
    out = typed("recalibrate", "--ridge", 0.3, "--samples", 256, "--no-progress", "--out", tmp_path).replace("\n", " ")
    assert "Scaling S by 1.13" in out and "times M/Q" in out
    page_of(tmp_path / "recalibrate.html")


def test_mismatch_budget_active(tmp_path: Path) -> None:
    common = ["--samples", 256, "--no-progress", "--out", tmp_path]
    out = typed("mismatch", "--ridges", "0.01,0.07,0.4", *common).replace("\n", " ")
    assert "On reused data the two disagree" in out and "On fresh data one ridge serves both" in out
    page_of(tmp_path / "mismatch.html")
    out = typed("budget", "--shares", "0.5,0.85,0.99", "--ridge-finetune", 0.5, *common).replace("\n", " ")
    assert "85.0% of the budget" in out and "flag: 1 of 3 points" in out
    page_of(tmp_path / "budget.html")
    linear = ["--activation", "linear", "--noise", 0.5, "--alpha-finetune", 3, "--ridge-finetune", 0.5]
    out = typed("active", *linear, "--fractions", "0.1,0.5", *common).replace("\n", " ")
    assert "flag: 2 of 5 points: choosing the largest" in out
    assert "Which sequences to label" in page_of(tmp_path / "active.html")


def test_figures_draw_chosen_presets(tmp_path: Path) -> None:
    assert "article-ridges" in typed("figures", "--list")
    out = typed(
        "figures", "--only", "regularise,budget", "--count", 3, "--samples", 256, "--no-progress", "--out", tmp_path
    )
    assert "theory.html" in out
    values = json.loads((tmp_path / "theory_figures.json").read_text())
    assert list(values["presets"]) == ["regularise", "budget"]
    assert len(values["presets"]["budget"]["points"]["best ridge at each split"]) == 3
    text = page_of(tmp_path / "theory.html")
    assert "How to split a label budget" in text and "not available to us" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["point", "--ridge", "good"], "--ridge 'good' must be a number or the word best"),
        (["point", "--tokens", "0"], "tokens 0"),
        (["point", "--data", "stale", "--no-progress"], "unknown data 'stale'"),
        (["active", "--fractions", "2"], "fraction 2.0 must be above 0 and at most 1"),
        (["curve", "--values", "1:2"], "--values '1:2'"),
        (["curve", "--values", "2:1:5"], "0 < from < to"),
        (["curve", "--over", "depth"], "unknown over 'depth'"),
        (["simulate", "--stage", "third"], "unknown stage 'third'"),
        (["simulate", "--over", "ridge"], "--over and --values belong together"),
        (["simulate", "--over", "data", "--values", "1"], "unknown over 'data'"),
        (["simulate", "--optimiser", "sgd"], "unknown optimiser 'sgd'"),
        (["figures", "--only", "other"], "unknown preset 'other'"),
    ],
)
def test_wrong_values_end_in_one_line(arguments: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        typed(*arguments)


def test_importing_the_commands_loads_nothing_heavy() -> None:
    code = (
        "import sys, lorascope.cli.theory; "
        "print([m for m in ('numpy', 'pandas', 'scipy', 'plotly', 'torch', 'rich.table') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
