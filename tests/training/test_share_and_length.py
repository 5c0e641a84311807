from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import LlamaForCausalLM

from lorascope.adapters import attach_adapter, count_parameters, fingerprint, read_adapter_record, share_layers
from lorascope.core.errors import AdapterError, DataError, InputError, ModelError, OutputError
from lorascope.core.seeds import preserved_random_state
from lorascope.measuring import load_model_and_tokenizer, measure
from lorascope.tasks import evaluate_task, load_task, prompt_lengths, with_length
from lorascope.training import RunSpec, run, runner

from .test_run import forbid, numbers
from .tiny import make_model, make_tokenizer


def deep_model(layers: int = 6) -> LlamaForCausalLM:
    config = make_model().config
    config.num_hidden_layers = layers
    with preserved_random_state():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "deep-model"
    deep_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def spec(base: Path, data: Path) -> RunSpec:
    return RunSpec(
        model=str(base),
        task=str(data),
        rank=2,
        learning_rate=1e-2,
        batch_size=8,
        max_steps=4,
        save_steps=2,
        eval_batch_size=4,
        metrics=("miub_js", "update_ratio"),
    )


def stop(*args: Any, **kwargs: Any) -> None:
    raise KeyboardInterrupt


def test_a_run_on_shared_layers(spec: RunSpec, data: Path, tmp_path: Path) -> None:
    plain = run(dataclasses.replace(spec, max_steps=1), tmp_path / "plain", progress=False)
    spec = dataclasses.replace(spec, share=2)
    record = run(spec, tmp_path / "shared", progress=False)
    model = deep_model()
    info = share_layers(model, 2)
    assert (plain.counts["model_parameters"], record.counts["model_parameters"]) == (
        info.parameters_before,
        info.parameters,
    )
    assert record.counts["components"] == plain.counts["components"] == 6 * 7
    assert record.counts["adapter_parameters"] == plain.counts["adapter_parameters"] > 0
    assert record.provenance["base_fingerprint"] == fingerprint(model)
    assert record.settings["sharing"] == {"group": 2, "groups": [[3, 4], [5]]}
    assert record.spec["share"] == 2

    # the adapter comes back on the same shared base, and on no other
    adapter = tmp_path / "shared" / "adapter"
    known = read_adapter_record(adapter)
    assert (known["share"], known["length"], known["base_model"]) == (2, None, spec.model)
    loaded, tokenizer = load_model_and_tokenizer(known["base_model"], share=known["share"])
    found = evaluate_task(attach_adapter(loaded, adapter), tokenizer, load_task(str(data)), progress=False)
    assert found.metrics["ce"] == pytest.approx(record.totals["ce"], abs=1e-5)
    with pytest.raises(AdapterError, match=r"shared in groups of 2, and here .* groups of 1"):
        attach_adapter(load_model_and_tokenizer(spec.model)[0], adapter)
    # plain PEFT would put it on the unshared model: it finds no such model instead
    with pytest.raises(OSError, match="with layers shared in groups of 2 by lorascope"):
        AutoPeftModelForCausalLM.from_pretrained(adapter)
    card = (adapter / "README.md").read_text()
    assert "share_layers(model, 2)" in card
    assert "AutoPeft" not in card
    assert f"base_model: {spec.model}\n" in card


def test_a_group_of_one_and_no_sharing_give_the_same_run(spec: RunSpec, tmp_path: Path) -> None:
    one = run(dataclasses.replace(spec, share=1), tmp_path / "one" / "r", progress=False)
    none = run(spec, tmp_path / "none" / "r", progress=False)
    assert numbers(one) == numbers(none)
    assert AutoPeftModelForCausalLM.from_pretrained(tmp_path / "one" / "r" / "adapter") is not None


def test_a_lent_model_is_shared_and_comes_back_as_it_was(spec: RunSpec, tmp_path: Path) -> None:
    spec = dataclasses.replace(spec, share=4)
    model = deep_model()
    before = {name: (id(p), p.detach().clone()) for name, p in model.named_parameters()}
    record = run(spec, tmp_path / "lent" / "r", model=model, tokenizer=make_tokenizer(), progress=False)
    assert record.counts["model_parameters"] < count_parameters(model)
    assert {name: id(p) for name, p in model.named_parameters()} == {name: i for name, (i, _) in before.items()}
    assert all(torch.equal(p, before[name][1]) for name, p in model.named_parameters())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert "lorascope_layer_sharing" not in model.config.to_dict()
    assert numbers(run(spec, tmp_path / "loaded" / "r", progress=False)) == numbers(record)


@pytest.mark.parametrize("stage", ["measure", "evaluate_task", "collect"])
def test_an_interrupted_run_on_shared_layers_goes_on(
    spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    spec = dataclasses.replace(spec, share=2)
    whole = run(spec, tmp_path / "whole" / "r", progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(runner, stage, stop)
        with pytest.raises(KeyboardInterrupt):
            run(spec, tmp_path / "cut" / "r", progress=False)
    with pytest.raises(OutputError, match=r"another run \(share is 2 there, 4 here\)"):
        run(dataclasses.replace(spec, share=4), tmp_path / "cut" / "r", progress=False)
    forbid(monkeypatch, "fit")
    again = run(spec, tmp_path / "cut" / "r", progress=False)
    assert again.totals == pytest.approx(whole.totals, abs=1e-5)
    assert again.counts == whole.counts


def test_sharing_that_cannot_be_leaves_the_folder_free(spec: RunSpec, tmp_path: Path, data: Path) -> None:
    shallow = tmp_path / "shallow"
    deep_model(2).save_pretrained(shallow)
    make_tokenizer().save_pretrained(shallow)
    with pytest.raises(ModelError, match="no two of the 1 layers"):
        run(dataclasses.replace(spec, model=str(shallow), share=2), tmp_path / "r", progress=False)
    run(dataclasses.replace(spec, share=2), tmp_path / "r", progress=False)


def test_a_saved_shared_model_is_a_base_model(spec: RunSpec, tmp_path: Path) -> None:
    model = deep_model()
    share_layers(model, 2)
    model.save_pretrained(tmp_path / "saved")
    make_tokenizer().save_pretrained(tmp_path / "saved")
    saved = run(dataclasses.replace(spec, model=str(tmp_path / "saved")), tmp_path / "a", progress=False)
    shared = run(dataclasses.replace(spec, share=2), tmp_path / "b", progress=False)
    assert saved.totals == shared.totals
    assert saved.counts == shared.counts
    loaded, tokenizer = load_model_and_tokenizer(tmp_path / "saved")
    found = attach_adapter(loaded, tmp_path / "a" / "adapter")
    assert measure(found, load_task(spec.task), tokenizer=tokenizer, progress=False).totals["miub_js"] > 0


@pytest.fixture
def bins(tmp_path: Path) -> Path:
    """Questions of 60 to 79 bytes; every length occurs."""
    folder = tmp_path / "bins"
    folder.mkdir()
    for split, count in (("train", 40), ("test", 20)):
        rows = [
            {"question": "x" * (1 + index % 20), "choices": ["left", "right"], "answer": index % 2}
            for index in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_length_reaches_training_measuring_and_evaluating(
    spec: RunSpec, bins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, tokenizer = load_task(str(bins)), make_tokenizer()
    lengths = prompt_lengths(task, tokenizer, "train")
    low = min(lengths) + 5
    kept, _ = with_length(task, tokenizer, low, low + 3)
    seen: dict[str, list[int]] = {"train": [], "test": []}
    measuring = importlib.import_module("lorascope.measuring.measure")
    fit, make_batches = runner.fit, measuring.make_batches

    def watch_fit(model: Any, features: Any, *args: Any, **kwargs: Any) -> Any:
        seen["train"] = [sum(label == -100 for label in row["labels"]) for row in features]
        return fit(model, features, *args, **kwargs)

    def watch_batches(*args: Any, **kwargs: Any) -> Any:
        batches, counts = make_batches(*args, **kwargs)
        seen["test"] = [sum(label == -100 for label in row["labels"]) for row in batches.dataset]
        return batches, counts

    monkeypatch.setattr(runner, "fit", watch_fit)
    monkeypatch.setattr(measuring, "make_batches", watch_batches)
    spec = dataclasses.replace(spec, task=str(bins), length=(low, low + 3), prompt="main")
    record = run(spec, tmp_path / "r", progress=False)
    assert sorted(set(seen["train"])) == sorted(set(seen["test"])) == [low, low + 1, low + 2, low + 3]
    assert (record.counts["train_samples"], record.counts["samples"], record.counts["questions"]) == (8, 4, 4)
    assert record.settings["length"] == {
        "low": low,
        "high": low + 3,
        "kept": {"train": 8, "test": 4},
        "dropped": {"train": 32, "test": 16},
    }
    assert record.spec["length"] == [low, low + 3]
    sentence = f"only rows whose prompt has {low} to {low + 3} tokens count: 8 of 40 train, 4 of 20 test rows"
    assert sentence in record.warnings
    loaded, tokenizer = load_model_and_tokenizer(spec.model)
    again = evaluate_task(attach_adapter(loaded, tmp_path / "r" / "adapter"), tokenizer, kept, progress=False)
    assert again.metrics["ce"] == pytest.approx(record.totals["ce"], abs=1e-5)
    assert f"with prompts of {low} to {low + 3} tokens" in (tmp_path / "r" / "adapter" / "README.md").read_text()


def test_limits_count_within_the_bin_and_an_empty_bin_is_one_line(spec: RunSpec, bins: Path, tmp_path: Path) -> None:
    low = min(prompt_lengths(load_task(str(bins)), make_tokenizer(), "test"))
    spec = dataclasses.replace(spec, task=str(bins), length=(low, low + 9), train_limit=5, eval_limit=3)
    record = run(spec, tmp_path / "r", progress=False)
    assert (record.counts["train_samples"], record.counts["questions"]) == (5, 3)
    empty = dataclasses.replace(spec, length=(201, 300))
    with pytest.raises(DataError, match=r"no row of split 'train' has a prompt of 201 to 300 tokens \(they have "):
        run(empty, tmp_path / "empty", progress=False)
    with pytest.raises(DataError, match="no row of split 'test'"):
        run(dataclasses.replace(empty, rank=0), tmp_path / "empty", progress=False)
    with pytest.raises(OutputError, match=r"another run \(length is"):
        run(dataclasses.replace(spec, length=(low, low + 8)), tmp_path / "r", progress=False)


def test_command_line_reads_a_range() -> None:
    from lorascope.cli.train import _range

    assert (_range("101-200"), _range(None)) == ([101, 200], None)
    for text in ("100", "1-", "-5", "1-2-3", "a-b", "1..5", "1-٢0x"):
        with pytest.raises(InputError, match="give LOW-HIGH, such as 1-100"):
            _range(text)
