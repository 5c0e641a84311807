from __future__ import annotations

import errno
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lorascope.core.errors import OutputError
from lorascope.training.checkpoints import checkpoint_fault, find_resume, safetensors_fault
from lorascope.training.writing import explain_save_errors


def make(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    save_file({"a": np.zeros((64, 4), dtype=np.float32)}, path / "adapter_model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        with zipfile.ZipFile(path / name, "w") as archive:
            archive.writestr("data", b"x" * 500)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return path


def cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def test_newest_whole_checkpoint_by_number(tmp_path: Path) -> None:
    for step in (9, 10, 2):
        make(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    found = find_resume(tmp_path)
    assert found.checkpoint == tmp_path / "checkpoint-10"
    assert (found.step, found.skipped) == (10, ())


def test_nothing_there(tmp_path: Path) -> None:
    assert find_resume(tmp_path / "none").checkpoint is None


@pytest.mark.parametrize(
    ("name", "keep"),
    [
        ("adapter_model.safetensors", 4),
        ("adapter_model.safetensors", 60),
        ("adapter_model.safetensors", -1),
        ("optimizer.pt", 100),
        ("scheduler.pt", 0),
        ("rng_state.pth", -1),
        ("trainer_state.json", 5),
    ],
)
def test_cut_file_is_said_and_skipped(tmp_path: Path, name: str, keep: int) -> None:
    make(tmp_path, 2)
    broken = make(tmp_path, 4)
    cut(broken / name, keep)
    found = find_resume(tmp_path)
    assert found.checkpoint == tmp_path / "checkpoint-2"
    (sentence,) = found.skipped
    assert str(broken) in sentence
    assert name in sentence
    assert "\n" not in sentence
    assert broken.is_dir()


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = make(tmp_path, 4)
    (path / name).unlink()
    assert checkpoint_fault(path) == f"{name} is missing"


def test_state_of_another_step(tmp_path: Path) -> None:
    path = make(tmp_path, 4)
    (path / "trainer_state.json").write_text('{"global_step": 3}')
    assert "another step" in str(checkpoint_fault(path))


def test_broken_ones_can_be_deleted(tmp_path: Path) -> None:
    cut(make(tmp_path, 4) / "optimizer.pt", 10)
    assert find_resume(tmp_path, discard=True).checkpoint is None
    assert list(tmp_path.iterdir()) == []


def test_whole_file_has_no_fault(tmp_path: Path) -> None:
    assert safetensors_fault(make(tmp_path, 1) / "adapter_model.safetensors") is None


def test_each_way_to_say_that_the_disk_is_full_is_understood(tmp_path: Path) -> None:
    said = (
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
        RuntimeError("basic_ios::clear: iostream error"),
    )
    for error in said:
        with pytest.raises(OutputError, match="disk full"), explain_save_errors(tmp_path):
            raise error
    with pytest.raises(RuntimeError, match="reader"), explain_save_errors(tmp_path):
        raise RuntimeError("PytorchStreamReader failed reading zip archive: a reader")
