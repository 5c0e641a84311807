from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lorascope.core.errors import DataError, InputError
from lorascope.tasks import evaluate_task, load_task
from lorascope.training import RunSpec, run
from lorascope.training.probes import held_out_loss


@pytest.fixture
def spec(data: Path) -> RunSpec:
    (data / "validation.jsonl").write_text((data / "test.jsonl").read_text())
    return RunSpec(
        task=str(data),
        rank=2,
        learning_rate=1e-2,
        batch_size=4,
        max_steps=4,
        save_steps=2,
        measure_limit=2,
        metrics=("update_ratio",),
        probe_steps=(0, 1, 4),
        probe_limit=4,
    )


def losses(history: list[dict[str, Any]]) -> dict[int, float]:
    return {line["step"]: line["held_out_loss"] for line in history if "held_out_loss" in line}


def test_held_out_losses_are_those_of_an_evaluation(
    spec: RunSpec, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    base = evaluate_task(model, tokenizer, load_task(spec.task), split="validation", progress=False).metrics["ce"]
    record = run(spec, tmp_path / "a", model=model, tokenizer=tokenizer, progress=False)
    found = losses(record.history)
    assert sorted(found) == [0, 1, 4]
    assert found[0] == pytest.approx(base, rel=1e-5)
    assert found[4] == pytest.approx(record.totals["ce"], rel=1e-5)  # the test rows are the same here
    assert found[4] < found[0]


def test_looking_does_not_touch_training(
    spec: RunSpec, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    seen = run(spec, tmp_path / "a", model=model, tokenizer=tokenizer, progress=False)
    blind = run(
        dataclasses.replace(spec, probe_steps=()), tmp_path / "b", model=model, tokenizer=tokenizer, progress=False
    )
    assert [line for line in seen.history if "loss" in line] == blind.history
    assert seen.totals == blind.totals


def test_a_resumed_run_has_each_look_once(
    spec: RunSpec,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = run(spec, tmp_path / "a", model=model, tokenizer=tokenizer, progress=False)
    from lorascope.training.observers import LossHistory

    before = LossHistory.on_log

    def fail(self: Any, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.global_step == 2:
            raise KeyboardInterrupt
        before(self, args, state, control, logs, **kwargs)

    monkeypatch.setattr(LossHistory, "on_log", fail)
    with pytest.raises(KeyboardInterrupt):
        run(spec, tmp_path / "b", model=model, tokenizer=tokenizer, progress=False)
    monkeypatch.setattr(LossHistory, "on_log", before)
    again = run(spec, tmp_path / "b", model=model, tokenizer=tokenizer, progress=False)
    assert again.history == whole.history


def test_bad_probes_are_refused(
    spec: RunSpec, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, data: Path
) -> None:
    with pytest.raises(InputError, match="probe_steps"):
        dataclasses.replace(spec, probe_steps=(-1,))
    with pytest.raises(InputError, match="no scored token"):
        held_out_loss(model, [])
    (data / "validation.jsonl").unlink()
    with pytest.raises(DataError, match="validation"):
        run(spec, tmp_path / "a", model=model, tokenizer=tokenizer, progress=False)
