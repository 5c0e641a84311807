from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from lorascope.cli import main
from lorascope.core.errors import DataError
from lorascope.initialization.result import FisherInitialization
from tests.cli.test_compare_inits import rows


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["lorascope", *map(str, arguments)])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_an_adapter_a_table_and_a_first_guess(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    given = ("--model", tiny_model_dir, "--task", rows(tmp_path / "rows"), "--rank", 4, "--no-progress")
    assert call(monkeypatch, "init", "--out", out, *given, "--budget", 3000, "--max-rank", 8) == 0
    said = capsys.readouterr().out  # 80 columns wide
    assert all(line.split()[-1].isdecimal() for line in said.splitlines() if "_proj " in line)
    assert "Layers worth adapting" in said and "first guess of the rank" in said and str(out) in said
    result = FisherInitialization.load(out / "initialization.json")
    assert sum(row["parameters"] for row in result.layers) <= 3000
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    ids = torch.tensor([[4, 5, 6]])
    with torch.no_grad():
        before = base(ids).logits
        model = PeftModel.from_pretrained(base, str(out), is_trainable=True).eval()
        assert torch.equal(model(ids).logits, before)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == sum(row["parameters"] for row in result.layers)
    assert call(monkeypatch, "plan", out) == 0
    planned = " ".join(capsys.readouterr().out.split())
    ranks = [row["rank"] for row in result.layers]
    assert "the curvature of the data spreads" in planned
    assert f"The ranks given ({min(ranks)} to {max(ranks)}) hold" in planned
    assert call(monkeypatch, "doctor", out) == 0
    assert "was not trained yet" in " ".join(capsys.readouterr().out.split())
    assert call(monkeypatch, "init", "--out", out, *given) == 2
    assert "choose another --out" in capsys.readouterr().err
    assert call(monkeypatch, "init", "--out", tmp_path / "json", *given, "--mode", "activation", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["mode"] == "activation" and all(row["suggested_rank"] >= 1 for row in printed["layers"])


def test_a_first_guess_is_of_the_layers_that_were_looked_at_and_of_whole_files(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    given = ("--model", tiny_model_dir, "--task", rows(tmp_path / "rows"), "--rank", 4, "--no-progress")
    assert call(monkeypatch, "init", "--out", out, *given, "--target-modules", "q_proj,v_proj") == 0
    assert call(monkeypatch, "plan", out) == 0
    assert "target_modules=['q_proj', 'v_proj']" in " ".join(capsys.readouterr().out.split())
    assert call(monkeypatch, "init", "--out", tmp_path / "one", *given, "--target-modules", "q_proj") == 0
    assert "q_proj" in capsys.readouterr().out
    path = out / "initialization.json"
    whole = json.loads(path.read_text())
    first = whole["layers"][0]
    damaged: list[tuple[dict[str, Any], str]] = [
        ({"schema_version": 99}, "schema_version 99"),
        ({"rank_pattern": 3}, "no numbers for 'rank_pattern'"),
        ({"layers": [{**first, "d_in": None}]}, "no numbers for 'd_in'"),
        ({"layers": [{k: v for k, v in first.items() if k != "d_out"}]}, "no numbers for 'd_out'"),
        ({"layers": [{**first, "rank": "x"}]}, "no numbers for 'rank'"),
    ]
    for change, said in damaged:
        path.write_text(json.dumps({**whole, **change}))
        assert call(monkeypatch, "plan", out) == 2
        assert said in capsys.readouterr().err
        if "layers" in change:
            with pytest.raises(DataError, match="layer 1 has no number for"):
                FisherInitialization.load(path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--mode", "fisher_select"), "lorascope train --init fisher_select"),
        (("--mode", "fischer"), "did you mean 'fisher'"),
        (("--budget", "3 hours"), "is no size of an adapter"),
        (("--budget", "-5"), "'-5' is no size of an adapter"),
        (("--budget", "5"), "is below"),
        (("--task", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--max-memory", "5B"), "is too little"),
        (("--fisher", "half"), "unknown fisher 'half'"),
    ],
)
def test_bad_options_end_in_one_line(
    options: tuple[str, str],
    said: str,
    tmp_path: Path,
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ("--model", tiny_model_dir, "--task", rows(tmp_path / "rows"), "--rank", 2, "--no-progress")
    assert call(monkeypatch, "init", "--out", tmp_path / "out", *given, *options) == 2
    error = capsys.readouterr().err
    assert said in " ".join(error.split())
    assert {file.name for file in tmp_path.iterdir()} <= {"rows", tiny_model_dir.name}, "nothing is left behind"
