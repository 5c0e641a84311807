"""What a sweep is asked to do: every value is checked before anything runs, and every cell has a name for good."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorascope.core import DataError, InputError
from lorascope.sweeps import Cell, SweepSpec, cell_name
from lorascope.training import RunSpec


def names(**sweep: Any) -> list[str]:
    return [cell.name for cell in SweepSpec.from_mapping(sweep).expand()]


def test_the_grid_is_the_product_of_its_values_in_order() -> None:
    cells = SweepSpec(base={"preset": "quick"}, grid={"rank": [4, 16], "seed": [0, 1]}).expand()
    assert [(cell.spec.rank, cell.spec.seed) for cell in cells] == [(4, 0), (4, 1), (16, 0), (16, 1)]
    assert {cell.spec.learning_rate for cell in cells} == {0.001}
    assert cells[0].values == {"rank": 4, "seed": 0}


def test_single_cells_come_beside_the_grid_and_may_change_the_base() -> None:
    sweep = SweepSpec(base={"learning_rate": 0.1}, grid={"rank": [4]}, cells=[{"rank": 8, "learning_rate": 0.2}])
    assert [(cell.spec.rank, cell.spec.learning_rate) for cell in sweep.expand()] == [(4, 0.1), (8, 0.2)]
    assert len(SweepSpec(cells=[{"rank": 4}]).expand()) == 1


def test_lists_are_values_of_settings_that_take_lists() -> None:
    sweep = SweepSpec(grid={"target_modules": [["q_proj", "v_proj"], "all-linear"], "length": [[1, 100], [101, 200]]})
    found = [(cell.spec.target_modules, cell.spec.length) for cell in sweep.expand()]
    assert found[0] == (("q_proj", "v_proj"), (1, 100))
    assert len(found) == 4


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"gird": {}}, "unknown key in sweep 'gird': did you mean 'grid'?"),
        ({"base": {"rnk": 1}, "grid": {"seed": [0]}}, "unknown key in base 'rnk': did you mean 'rank'?"),
        ({"grid": {"rnk": [1]}}, "unknown key in grid 'rnk': did you mean 'rank'?"),
        ({"cells": [{"rank": 1}, {"sed": 1}]}, "unknown key in cells[1] 'sed': did you mean 'seed'?"),
        ({"grid": {"rank": 4}}, "grid: 'rank' must be a list of values, such as [4]"),
        ({"grid": {"rank": []}}, "grid: 'rank' has no values"),
        ({"grid": {"rank": [4, 4]}}, "grid: 'rank' has the value 4 twice"),
        ({"base": {"rank": 4}, "grid": {"rank": [4]}}, "'rank' stands in base and in grid"),
        ({}, "a sweep needs 'grid'"),
        ({"base": [1], "grid": {"rank": [1]}}, "'base'"),
        ({"schema_version": 7, "grid": {"rank": [1]}}, "schema_version 7 is not 1"),
        ({"grid": {"rank": [4, -1], "seed": [0]}}, "cell (rank=-1, seed=0): rank -1 must be at least 0"),
        ({"grid": {"rank": ["four"]}}, "cell (rank=four): the cell: 'rank'"),
        ({"grid": {"rank": [True]}}, "cell (rank=True)"),
        ({"grid": {"length": [1, 100]}}, "cell (length=1)"),
        ({"grid": {"prompt": ["main"], "schedule": ["linaer"]}}, "did you mean 'linear'?"),
        ({"grid": {"preset": ["slow"]}}, "unknown preset 'slow'"),
        ({"grid": {"rank": [4]}, "cells": [{"rank": 4}]}, "cells (rank=4) and (rank=4) are the same run"),
        ({"cells": [{"rank": 4, "alpha": None}, {"rank": 4}]}, "are the same run"),
    ],
)
def test_what_is_wrong_is_named_before_anything_runs(sweep: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as error:
        SweepSpec.from_mapping(sweep).expand()
    assert "\n" not in str(error.value)


def test_yaml(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("base: {preset: quick}\ngrid: {rank: [0, 4]}\n")
    assert SweepSpec.load(path) == SweepSpec(base={"preset": "quick"}, grid={"rank": [0, 4]})
    path.write_text("grid: {rank: [4]}\ngrid: {rank: [8]}\n")
    with pytest.raises(DataError, match="'grid' is given twice"):
        SweepSpec.load(path)
    with pytest.raises(DataError, match="no file"):
        SweepSpec.load(tmp_path / "nothing.yaml")


def test_the_base_model_is_one_cell_for_all_that_only_training_feels() -> None:
    sweep = {"grid": {"rank": [0, 4], "seed": [3, 4], "train_limit": [10, 20], "learning_rate": [0.1, 0.2]}}
    cells = SweepSpec.from_mapping(sweep).expand()
    assert len(cells) == 1 + 8
    assert (cells[0].spec.rank, cells[0].spec.seed, cells[0].spec.train_limit) == (0, 3, None)
    assert len(names(grid={"rank": [0, 4], "prompt": ["main", "prompt3"], "seed": [0, 1]})) == 2 + 4
    # Worked examples are drawn with the seed, so that the base model answers other prompts.
    assert len(names(grid={"rank": [0], "prompt": ["prompt1"], "seed": [0, 1]})) == 2
    assert len(names(base={"rank": 0}, grid={"seed": [0, 1]})) == 1
    # Left-out settings cannot be in each other's way: a constant rate refuses a warm-up.
    assert len(names(base={"warmup_steps": 2}, grid={"rank": [0, 4], "schedule": ["linear", "cosine"]})) == 1 + 2
    assert len(names(grid={"rank": [0, 4], "init": ["default", "fisher"]})) == 1 + 2, "no adapter is started at rank 0"


def test_every_setting_of_a_run_is_an_axis() -> None:
    """Whatever `RunSpec` learns can be swept over, from YAML's types."""
    for item in dataclasses.fields(RunSpec):
        value = json.loads(json.dumps(getattr(RunSpec(), item.name)))
        (cell,) = SweepSpec(grid={item.name: [value]}).expand()
        assert cell.spec == RunSpec()


def test_names_are_readable() -> None:
    assert cell_name(RunSpec(rank=16, train_limit=300)) == "r16-n300-s0"
    assert cell_name(RunSpec(rank=0, seed=2, prompt="prompt1", share=4, length=(1, 100))) == (
        "r0-s2-share4-len1-100-prompt1"
    )
    assert re.fullmatch(
        r"r4-s0-smollm2-135m-instruct-arc_easy-[0-9a-f]{8}",
        cell_name(RunSpec(rank=4, model="HuggingFaceTB/SmolLM2-135M-Instruct", task="arc_easy")),
    )


def test_a_name_stays_when_the_grid_grows() -> None:
    small = set(names(base={"preset": "quick"}, grid={"rank": [4, 16]}))
    large = set(names(base={"preset": "quick"}, grid={"rank": [4, 8, 16], "seed": [0, 1], "train_limit": [None, 50]}))
    assert small < large


_SETTINGS = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["smollm2", "a/b", "A/b", "A", "a", "../b", "ä ö/ü", "x" * 300]),
        "task": st.sampled_from(["towns", "/data/rows", "/data/rows.jsonl", "rows"]),
        "rank": st.integers(0, 512),
        "seed": st.integers(0, 9),
        "train_limit": st.none() | st.integers(1, 10**6),
        "share": st.sampled_from([None, 8, 4, 2, 1]),
        "length": st.sampled_from([None, (1, 100), (101, 200)]),
        "learning_rate": st.sampled_from([4e-5, 1e-3, 1]),
        "target_modules": st.sampled_from(["all-linear", ("q_proj",), ("v_proj",)]),
    }
)


@given(_SETTINGS, _SETTINGS)
def test_names_are_safe_and_those_of_different_runs_differ(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Also on file systems that do not tell small from capital letters."""
    name = cell_name(RunSpec(**one))
    assert re.fullmatch(r"[a-z0-9_-]{1,140}", name)
    assert (name == cell_name(RunSpec(**other))) == (one == other)


@given(_SETTINGS)
def test_a_cell_comes_back_from_json(settings: dict[str, Any]) -> None:
    spec = RunSpec(**settings)
    cell = Cell(name=cell_name(spec), spec=spec, values={"rank": spec.rank})
    assert Cell.from_dict(json.loads(json.dumps(cell.to_dict()))) == cell


def test_paths_are_made_absolute_and_names_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers run in other folders."""
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "rows", "towns"):
        (tmp_path / name).mkdir()
    (cell,) = SweepSpec(cells=[{"model": "tiny", "task": "rows", "text_task": "./towns"}]).expand()
    assert (cell.spec.model, cell.spec.task) == (str(tmp_path / "tiny"), str(tmp_path / "rows"))
    assert cell.spec.text_task == str(tmp_path / "towns")
    (cell,) = SweepSpec(cells=[{"model": "smollm2", "task": "towns", "text_task": "sotu"}]).expand()
    assert (cell.spec.model, cell.spec.task, cell.spec.text_task) == ("smollm2", "towns", "sotu")


def test_reading_a_sweep_imports_no_torch() -> None:
    """So that the cells' server can import it while the sweep's own process checks the cells."""
    code = (
        "import sys; from lorascope.sweeps import SweepSpec, run_sweep; import lorascope.training;"
        "SweepSpec(base={'preset': 'quick'}, grid={'rank': [4, 8]}).expand(); print('torch' in sys.modules)"
    )
    child = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert child.stdout.strip() == "False"
