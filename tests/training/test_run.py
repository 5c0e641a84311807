from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from lorascope.core.errors import AdapterError, InputError, ModelError, OutputError
from lorascope.measuring import measure
from lorascope.results import RunRecord
from lorascope.tasks import evaluate_task, load_task
from lorascope.training import RunSpec, run, runner
from lorascope.training.observers import LossHistory

from .tiny import make_model, make_tokenizer


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base-model"
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def spec(base: Path, data: Path) -> RunSpec:
    return RunSpec(
        model=str(base),
        task=str(data),
        rank=4,
        learning_rate=1e-2,
        batch_size=8,
        max_steps=6,
        save_steps=2,
        eval_batch_size=4,
        metrics=("miub_js", "update_ratio", "spectrum"),
    )


def forbid(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:

        def refuse(*args: Any, **kwargs: Any) -> None:
            raise AssertionError("done a second time")

        monkeypatch.setattr(runner, name, refuse)


def numbers(record: RunRecord) -> dict[str, Any]:
    values = record.to_dict()
    costs = values["settings"]["costs"]  # seconds and bytes are never the same twice
    values["settings"]["costs"] = {name: costs[name] for name in ("train_steps", "train_tokens_seen")}
    return {name: values[name] for name in ("totals", "layers", "history", "correct", "counts", "settings")}


def test_a_run_trains_measures_evaluates_and_keeps_it(spec: RunSpec, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "rank-4"
    record = run(dataclasses.replace(spec, text_task=str(data), text_limit=2), folder, progress=False)
    kept = {"spec.yaml", "data.json", "metrics.jsonl", "result.json", "adapter"}
    assert {path.name for path in folder.iterdir()} == kept
    assert record.name == "rank-4"
    assert [line["step"] for line in record.history] == list(range(1, 7))
    assert record.history[-1]["loss"] < record.history[0]["loss"] - 0.1
    assert record.totals["miub_js"] > 0
    assert {"accuracy", "accuracy_norm", "ce", "ppl", "text_ppl", "effective_rank"} <= set(record.totals)
    assert (record.counts["questions"], record.counts["train_samples"], record.counts["components"]) == (4, 24, 14)
    assert len(record.correct) == 4
    assert sum(record.correct) / 4 == record.totals["accuracy"]
    assert record.spec["rank"] == 4
    assert record.provenance["seed"] == 0
    assert numbers(RunRecord.load(folder / "result.json")) == numbers(record)
    assert yaml.safe_load((folder / "spec.yaml").read_text())["learning_rate"] == 1e-2


def test_the_adapter_is_plain_peft_and_gives_the_recorded_numbers(spec: RunSpec, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "r"
    record = run(spec, folder, progress=False)
    adapter = folder / "adapter"
    names = {path.name for path in adapter.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "README.md", "lorascope.json"}
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == spec.model
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    assert json.loads((adapter / "lorascope.json").read_text())["base_fingerprint"]
    model = AutoPeftModelForCausalLM.from_pretrained(adapter)
    task, tokenizer = load_task(str(data)), make_tokenizer()
    assert evaluate_task(model, tokenizer, task, progress=False).metrics["ce"] == pytest.approx(
        record.totals["ce"], abs=1e-5
    )
    found = measure(model, task, tokenizer=tokenizer, metrics=("miub_js",), progress=False)
    assert found.totals["miub_js"] == pytest.approx(record.totals["miub_js"], rel=1e-4)


def test_same_seed_same_record(spec: RunSpec, tmp_path: Path) -> None:
    first, second = (run(spec, tmp_path / name / "r", progress=False) for name in ("a", "b"))
    assert numbers(first) == numbers(second)


def test_done_runs_are_read_not_repeated(spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(spec, tmp_path / "r", progress=False)
    forbid(monkeypatch, "fit", "measure", "evaluate_task", "load_model_and_tokenizer")
    assert numbers(run(spec, tmp_path / "r", progress=False)) == numbers(first)


@pytest.mark.parametrize(
    ("stage", "done"),
    [("measure", ("fit",)), ("evaluate_task", ("fit", "measure")), ("collect", ("fit", "measure", "evaluate_task"))],
)
def test_interruption_between_stages_repeats_nothing(
    spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, done: tuple[str, ...]
) -> None:
    whole = run(spec, tmp_path / "whole" / "r", progress=False)

    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner, stage, stop)
        with pytest.raises(KeyboardInterrupt):
            run(spec, tmp_path / "cut" / "r", progress=False)
    assert not (tmp_path / "cut" / "r" / "result.json").exists()
    forbid(monkeypatch, *done)
    again = run(spec, tmp_path / "cut" / "r", progress=False)
    assert again.totals == pytest.approx(whole.totals, abs=1e-5)
    assert again.history == whole.history


def test_crash_in_training_goes_on_with_a_clean_history(
    spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(spec, tmp_path / "whole" / "r", progress=False)
    append = runner.RunStore.append_metrics

    def crash(self: Any, name: str, line: dict[str, Any]) -> None:
        append(self, name, line)
        if line["step"] == 5:
            raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(runner.RunStore, "append_metrics", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            run(spec, tmp_path / "cut" / "r", progress=False)
    again = run(spec, tmp_path / "cut" / "r", progress=False)
    assert [line["step"] for line in again.history] == list(range(1, 7))
    assert again.totals == pytest.approx(whole.totals, abs=1e-5)


def test_half_written_adapter_is_trained_again(spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(spec, tmp_path / "whole" / "r", progress=False)

    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner, "measure", stop)
        with pytest.raises(KeyboardInterrupt):
            run(spec, tmp_path / "r", progress=False)
    weights = tmp_path / "r" / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert run(spec, tmp_path / "r", progress=False).totals == pytest.approx(whole.totals, abs=1e-5)


def test_base_run_measures_zero_and_leaves_no_adapter(spec: RunSpec, data: Path, tmp_path: Path) -> None:
    record = run(dataclasses.replace(spec, rank=0), tmp_path / "base", progress=False)
    assert record.totals["miub_js"] == 0
    assert record.totals["update_ratio"] == 0
    assert record.is_base
    assert record.history == []
    assert record.warnings == ["this is the base model, measured through an update of rank 1 that is zero"]
    assert record.counts["components"] == 14
    plain = evaluate_task(make_model(), make_tokenizer(), load_task(str(data)), progress=False)
    assert record.totals["ce"] == pytest.approx(plain.metrics["ce"], abs=1e-6)
    assert not (tmp_path / "base" / "adapter").exists()


def test_lent_model_comes_back_as_it_was(
    spec: RunSpec, tmp_path: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    names = [name for name, _ in model.named_modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = torch.arange(20)[None]
    logits = model(ids).logits.detach()
    state = torch.get_rng_state()
    first = run(spec, tmp_path / "a" / "r", model=model, tokenizer=tokenizer, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert [name for name, _ in model.named_modules()] == names
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not model.training
    assert model.config.use_cache
    assert torch.equal(model(ids).logits, logits)
    again = run(spec, tmp_path / "b" / "r", model=model, tokenizer=tokenizer, progress=False)
    assert numbers(first) == numbers(again)


def test_other_spec_in_the_folder_is_refused(spec: RunSpec, tmp_path: Path) -> None:
    run(spec, tmp_path / "r", progress=False)
    with pytest.raises(OutputError, match=r"holds another run \(rank is 4 there, 8 here\): choose another --out"):
        run(dataclasses.replace(spec, rank=8), tmp_path / "r", progress=False)
    with pytest.raises(OutputError, match="not empty"):
        run(spec, tmp_path / "r", progress=False, resume=False)


def test_foreign_folder_is_refused_and_left_alone(spec: RunSpec, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("important")
    with pytest.raises(OutputError, match="not empty: choose another --out"):
        run(spec, tmp_path / "thesis", progress=False)
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]


def test_rank_over_the_layer_names_layer_and_sizes(spec: RunSpec, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"rank 64 .*32.*layers\.0\.self_attn\.q_proj.*32 -> 32"):
        run(dataclasses.replace(spec, rank=64), tmp_path / "r", progress=False)


def test_unknown_layers_are_named(spec: RunSpec, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"target_modules .*'nothing'"):
        run(dataclasses.replace(spec, target_modules=("nothing",)), tmp_path / "r", progress=False)


def test_a_tokenizer_of_another_model_is_refused_before_training(
    spec: RunSpec, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    small = LlamaForCausalLM(LlamaConfig(**{**make_model().config.to_dict(), "vocab_size": 90, "pad_token_id": None}))
    with pytest.raises(ModelError, match=r"token \d+ and model '.*' knows only 90"):
        run(spec, tmp_path / "r", model=small, tokenizer=tokenizer, progress=False)


def test_model_without_tokenizer_is_refused(spec: RunSpec, tmp_path: Path, model: LlamaForCausalLM) -> None:
    with pytest.raises(InputError, match="both model and tokenizer"):
        run(spec, tmp_path / "r", model=model)


def test_several_processes_are_refused(spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="a run uses one process"):
        run(spec, tmp_path / "r")


def test_divergence_keeps_no_result(spec: RunSpec, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="training diverged"):
        run(dataclasses.replace(spec, learning_rate=1e30, max_grad_norm=0), tmp_path / "r", progress=False)
    assert not (tmp_path / "r" / "result.json").exists()


def test_weights_that_the_last_step_broke_are_said(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1)
    arguments, state = TrainingArguments(output_dir=str(tmp_path)), TrainerState(global_step=3)
    history = LossHistory(lambda _: None)
    history.on_train_end(arguments, state, TrainerControl(), model=model)
    torch.nn.init.constant_(model.bias, torch.inf)
    with pytest.raises(InputError, match=r"'bias' is not finite after step 3 .*training diverged"):
        history.on_train_end(arguments, state, TrainerControl(), model=model)


def test_full_disk_while_saving_the_adapter_keeps_the_checkpoints(
    spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = PeftModel.save_pretrained

    def full(self: PeftModel, folder: str, **kwargs: Any) -> None:
        save(self, folder, **kwargs)
        if ".adapter.tmp" in str(folder):
            torch.save({"a": torch.zeros(10**6)}, "/dev/full")

    with monkeypatch.context() as patch:
        patch.setattr(PeftModel, "save_pretrained", full)
        with pytest.raises(OutputError, match=r"disk full.*run the same command again"):
            run(spec, tmp_path / "r", progress=False)
    assert (tmp_path / "r" / "checkpoints" / "checkpoint-4").is_dir()
    assert not (tmp_path / "r" / "adapter").exists()
    assert run(spec, tmp_path / "r", progress=False).totals["miub_js"] > 0


def test_progress_bar_shows_loss_and_time_left(
    spec: RunSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(spec, tmp_path / "rank-4", progress=True)
    shown = capsys.readouterr()
    assert "rank-4: training" in shown.err
    assert "6/6" in shown.err
    assert "loss" in shown.err
    assert shown.out == ""


def test_quiet_run_says_nothing(spec: RunSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(spec, tmp_path / "r", progress=False)
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")
