from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerState

from lorascope.tasks import encode_task, load_task
from lorascope.training import RunSpec, run, runner
from lorascope.training.costs import Costs, peak_memory, reset_peak_memory

from .test_run import base as base
from .test_run import spec as spec
from .tiny import make_tokenizer

KEYS = {
    "seconds_training",
    "seconds_measuring",
    "seconds_evaluating",
    "seconds_total",
    "cpu_seconds_training",
    "threads",
    "train_steps",
    "train_tokens_seen",
    "peak_memory_bytes",
}
CPU = torch.device("cpu")


class Clock:
    """Time that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("lorascope.training.costs.time.perf_counter", lambda: self.now)
        monkeypatch.setattr("lorascope.training.costs.time.process_time", lambda: 1.5 * self.now)


def test_seconds_add_up_over_stages_and_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    path = tmp_path / "stages" / "costs.json"
    first = Costs(path, CPU, 95.0)
    with pytest.raises(KeyboardInterrupt), first.timing("training"):
        clock.now += 10
        first.trained(TrainerState(global_step=2, num_input_tokens_seen=50))
        first.save()  # with a checkpoint
        clock.now += 3  # lost
        raise KeyboardInterrupt
    clock.now = 1000.0
    second = Costs(path, CPU, 999.0)
    assert second.values["train_steps"] == 2
    with second.timing("training"):
        clock.now += 4
    with second.timing("measuring"):
        clock.now += 2
    clock.now += 1
    found = second.to_dict()
    assert (found["seconds_training"], found["seconds_measuring"], found["seconds_evaluating"]) == (14, 2, 0)
    assert found["seconds_total"] == 15 + 8
    assert found["cpu_seconds_training"] == 1.5 * 14
    assert found["threads"] == torch.get_num_threads()
    assert (found["train_steps"], found["train_tokens_seen"]) == (2, 50)
    assert set(found) == KEYS


def test_a_stage_that_fails_writes_nothing(tmp_path: Path) -> None:
    costs = Costs(tmp_path / "stages" / "costs.json", CPU, 0.0)
    with pytest.raises(ValueError, match="bad option"), costs.timing("measuring"):
        raise ValueError("bad option")
    assert list(tmp_path.iterdir()) == []


def test_peak_memory_sees_what_was_freed_again() -> None:
    reset_peak_memory(CPU)
    before = peak_memory(CPU)
    block = torch.ones(60_000_000)
    size = block.numel() * 4
    del block
    assert peak_memory(CPU) >= before + size * 0.9
    assert Path("/proc").is_dir() is False or peak_memory(CPU) < 2**40


def test_a_run_says_what_it_cost(spec: RunSpec, data: Path, tmp_path: Path) -> None:
    record = run(dataclasses.replace(spec, text_task=str(data)), tmp_path / "r", progress=False)
    costs = record.settings["costs"]
    assert set(costs) == KEYS
    stages = [costs[f"seconds_{name}"] for name in ("training", "measuring", "evaluating")]
    assert all(seconds > 0 for seconds in stages)
    assert costs["seconds_total"] > sum(stages)
    assert costs["train_steps"] == 6
    assert 0 < costs["cpu_seconds_training"] <= 1.1 * costs["threads"] * costs["seconds_training"] + 0.1
    # 24 rows in batches of 8, six steps: every row is seen twice
    rows = encode_task(load_task(str(data)), make_tokenizer(), "train")
    assert costs["train_tokens_seen"] == 2 * rows.counts["tokens"]
    assert costs["peak_memory_bytes"] > 10**7
    weights = load_file(tmp_path / "r" / "adapter" / "adapter_model.safetensors")
    assert record.counts["adapter_parameters"] == sum(value.numel() for value in weights.values())
    assert record.settings["text_evaluation"]["errors"].keys() >= {"ce"}
    json.dumps(record.to_dict(), allow_nan=False)


def test_the_base_model_trains_nothing(spec: RunSpec, tmp_path: Path) -> None:
    record = run(dataclasses.replace(spec, rank=0), tmp_path / "r", progress=False)
    costs = record.settings["costs"]
    assert (costs["seconds_training"], costs["train_steps"], costs["train_tokens_seen"]) == (0, 0, 0)
    assert record.counts["adapter_parameters"] == 0
    assert record.counts["model_parameters"] > 0


@pytest.mark.parametrize("stage", ["append_metrics", "measure", "evaluate_task", "collect"])
def test_costs_are_kept_over_an_interruption(
    spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    append = runner.RunStore.append_metrics

    def crash(self: Any, name: str, line: dict[str, Any]) -> None:
        append(self, name, line)
        if line["step"] == 5:
            raise KeyboardInterrupt

    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if stage == "append_metrics":
            patch.setattr(runner.RunStore, stage, crash)
        else:
            patch.setattr(runner, stage, stop)
        with pytest.raises(KeyboardInterrupt):
            run(spec, tmp_path / "r", progress=False)
    path = tmp_path / "r" / "stages" / "costs.json"
    kept = json.loads(path.read_text())
    assert kept["seconds_training"] > 0
    kept["seconds_training"] += 1000
    kept["seconds_total"] += 1000
    path.write_text(json.dumps(kept))
    costs = run(spec, tmp_path / "r", progress=False).settings["costs"]
    assert 1000 < kept["seconds_training"] <= costs["seconds_training"] < costs["seconds_total"] < 2000
    assert costs["train_steps"] == 6
    rows = encode_task(load_task(spec.task), make_tokenizer(), "train")
    assert costs["train_tokens_seen"] == 2 * rows.counts["tokens"]
    assert not path.exists()
