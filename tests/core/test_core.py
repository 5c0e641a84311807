"""The ground floor: names, files, seeds, configuration, provenance."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import lorascope
from lorascope.core import METRICS, DataError, InputError, MissingDependencyError, OutputError, resolve_groups
from lorascope.core.files import atomic_write_text, read_json, require_empty_dir, sha256_of, write_json
from lorascope.core.metrics import GROUPS
from lorascope.core.optional import require
from lorascope.core.provenance import collect
from lorascope.core.seeds import derive_seed, preserved_random_state
from lorascope.core.spec import dump_yaml, from_mapping, load_yaml


def test_metrics_resolve_by_name_group_and_all() -> None:
    assert resolve_groups(["miub_joint", "ce", "mi_joint"]) == ("mi_joint", "ce")
    assert resolve_groups("all") == GROUPS
    assert {metric.group for metric in METRICS.values()} == set(GROUPS)
    with pytest.raises(InputError, match="unknown metric 'effectiverank': did you mean 'effective_rank'"):
        resolve_groups(["effectiverank"])
    with pytest.raises(InputError, match="no metric given"):
        resolve_groups([])


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file.json"
    write_json(path, {"a": 1})

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"disk full while writing '.*file\.json': free some space"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert [item.name for item in path.parent.iterdir()] == ["file.json"]


def test_places_that_cannot_be_written_say_so(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(OutputError, match="cannot write"):
        atomic_write_text(file / "below", "text")
    with pytest.raises(OutputError, match="is a file, not a folder"):
        require_empty_dir(file, remedy="")
    with pytest.raises(OutputError, match="is not empty: move it"):
        require_empty_dir(tmp_path, remedy="move it")
    require_empty_dir(tmp_path / "new" / "folder", remedy="")
    assert (tmp_path / "new" / "folder").is_dir()


def test_json_has_no_nan_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "nan.json", {"a": float("nan")})
    with pytest.raises(DataError, match="no file"):
        read_json(tmp_path / "missing.json")
    (tmp_path / "cut.json").write_text(json.dumps({"a": [1, 2]})[:-2])
    with pytest.raises(DataError, match=r"cut\.json' is not valid JSON.*interrupted"):
        read_json(tmp_path / "cut.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not valid JSON"):
        read_json(tmp_path / "bytes.json")


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_seeds_differ_by_use_and_stay_the_same() -> None:
    assert derive_seed(0, "towns") == derive_seed(0, "towns")
    assert len({derive_seed(seed, use) for seed in range(50) for use in "abc"}) == 150
    assert derive_seed(1, "a", "b") != derive_seed(1, "ab")


def test_global_random_state_is_put_back_also_after_an_error() -> None:
    def draw() -> tuple[float, float]:
        return float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    with preserved_random_state():
        before = draw()
    with pytest.raises(ZeroDivisionError), preserved_random_state():
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        raise ZeroDivisionError
    with preserved_random_state():
        assert draw() == before


@dataclass(frozen=True)
class Settings:
    rank: int
    name: str = "a"
    rate: float | None = None


def test_configuration_is_checked_by_name_and_type(tmp_path: Path) -> None:
    assert from_mapping(Settings, {"rank": 4, "rate": 0.5}) == Settings(4, "a", 0.5)
    with pytest.raises(InputError, match=r"unknown key in run.yaml 'rnak': did you mean 'rank'"):
        from_mapping(Settings, {"rnak": 4}, source="run.yaml")
    with pytest.raises(InputError, match=r"'rank'.*got 'four'"):
        from_mapping(Settings, {"rank": "four"})
    with pytest.raises(InputError, match=r"'rank'.*required"):
        from_mapping(Settings, {})
    path = tmp_path / "run.yaml"
    path.write_text(dump_yaml(Settings(4)))
    assert from_mapping(Settings, load_yaml(path)) == Settings(4)
    path.write_text("rank: true")
    with pytest.raises(InputError, match="'rank' must not be true"):
        from_mapping(Settings, load_yaml(path))
    for text in ("a: [1", "- 1", "rank: 4\nrank: 8", "!!python/object/apply:os.system ['true']"):
        path.write_text(text)
        with pytest.raises(DataError, match=r"run\.yaml"):
            load_yaml(path)
    with pytest.raises(DataError, match="no file"):
        load_yaml(tmp_path / "missing.yaml")
    with pytest.raises(DataError, match="is not a file"):
        load_yaml(tmp_path)


def test_missing_packages_say_how_to_get_them() -> None:
    with pytest.raises(MissingDependencyError, match=r"plots need.*pip install 'lorascope\[x\]'"):
        require("no_such_package_at_all", install="'lorascope[x]'", purpose="plots")
    assert require("json", install="", purpose="") is json


def test_provenance_is_ready_for_json_and_names_no_person(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("x")
    record = collect(seed=3, files=[tmp_path / "data"], extra={"model": "m"})
    text = json.dumps(record)
    assert record["seed"] == 3
    assert record["model"] == "m"
    assert record["sha256"]["data"] == sha256_of(tmp_path / "data")
    assert {"python", "torch", "transformers", "peft", "lorascope"} <= set(record["versions"])
    assert os.uname().nodename not in text or len(os.uname().nodename) < 4


def test_sub_packages_are_reached_from_the_package_alone() -> None:
    code = (
        "import lorascope, sys; assert 'torch' not in sys.modules; import math; "
        "assert abs(float(lorascope.information.jensen_shannon([[0, -math.inf]], [[-math.inf, 0]])) - math.log(2)) < 1e-12"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in ("nonsense", "_private"):
        with pytest.raises(AttributeError, match=name):
            getattr(lorascope, name)
