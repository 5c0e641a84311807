"""Runs that start otherwise: the same model at the first step, an ordinary adapter at the end, also after a stop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, initialize_lora_eva_weights
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lorascope.core.errors import AdapterError, InputError
from lorascope.core.files import read_json
from lorascope.training import RunSpec, inits, run
from lorascope.training.probes import HeldOutLoss
from lorascope.training.spec import INITS, RESIDUAL_INITS

from .tiny import make_model

Go = Callable[..., Any]


@pytest.fixture
def spec(data: Path) -> RunSpec:
    (data / "validation.jsonl").write_text((data / "test.jsonl").read_text())
    return RunSpec(
        task=str(data),
        rank=2,
        learning_rate=1e-2,
        batch_size=4,
        max_steps=2,
        save_steps=1,
        init_rows=8,
        eval_limit=4,
        measure_limit=2,
        metrics=("update_ratio",),
        probe_steps=(0, 2),
        probe_limit=4,
    )


def losses(record: Any) -> dict[int, float]:
    return {line["step"]: line["held_out_loss"] for line in record.history if "held_out_loss" in line}


@pytest.mark.parametrize("init", INITS)
def test_every_init_starts_at_the_base_and_ends_as_an_ordinary_adapter(
    init: str, spec: RunSpec, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    start = run(dataclasses.replace(spec, rank=0, probe_steps=()), tmp_path / "zero", model=model, tokenizer=tokenizer)
    record = run(dataclasses.replace(spec, init=init), tmp_path / "a", model=model, tokenizer=tokenizer, progress=False)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    found = losses(record)
    assert found[0] == pytest.approx(start.totals["ce"], abs=1e-5), "the model is the same before the first step"
    assert found[2] != pytest.approx(found[0], abs=1e-4)
    plain = PeftModel.from_pretrained(make_model(), str(tmp_path / "a" / "adapter")).eval()
    config = plain.peft_config["default"]
    assert config.init_lora_weights is True
    assert config.r == (4 if init in RESIDUAL_INITS else 2)
    again = run(
        dataclasses.replace(spec, init=init), tmp_path / "b", model=plain.unload(), tokenizer=tokenizer, progress=False
    )
    assert losses(again) == found, "the same seed does the same"
    # The saved adapter is the trained model: the loss of the test rows is that of the last look, being the same rows.
    assert record.totals["ce"] > 0
    if init == "default":
        return
    facts = record.settings["init"]
    assert facts["init"] == init and facts["rows"] == 8 and facts["seconds"] > 0
    assert any("took over a part of the base weight" in note for note in record.warnings) == (init in RESIDUAL_INITS)


@pytest.mark.parametrize("init", ["pissa", "lora-ga", "fisher_select"])
def test_the_saved_adapter_is_the_model_that_was_trained(
    init: str, spec: RunSpec, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    changed = dataclasses.replace(spec, init=init, eval_limit=4, max_steps=4, probe_steps=(4,))
    record = run(changed, tmp_path / "a", model=model, tokenizer=tokenizer, progress=False)
    assert losses(record)[4] == pytest.approx(record.totals["ce"], abs=2e-5)


@pytest.fixture
def go(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Go:
    """A run on the tiny model, by the name of its folder; stopped by Ctrl-C after so many steps, if asked."""

    def call(spec: RunSpec, name: str, *, stop: int | None = None) -> Any:
        if stop is None:
            return run(spec, tmp_path / name, model=model, tokenizer=tokenizer, progress=False)
        look = HeldOutLoss._look

        def interrupted(self: HeldOutLoss, state: Any, model: Any) -> None:
            look(self, state, model)
            if state.global_step == stop:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(HeldOutLoss, "_look", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(spec, tmp_path / name, model=model, tokenizer=tokenizer, progress=False)
        return None

    return call


@pytest.mark.parametrize("init", ["fisher", "pissa", "corda"])
def test_a_stopped_run_goes_on_from_the_same_start(init: str, spec: RunSpec, go: Go, tmp_path: Path) -> None:
    changed = dataclasses.replace(spec, init=init, max_steps=4, probe_steps=(2, 4))
    whole = go(changed, "whole")
    go(changed, "cut", stop=3)
    kept = read_json(tmp_path / "cut" / "stages" / "initial.json")
    record = go(changed, "cut")
    assert record.settings["init"]["seconds"] == kept["seconds"], "the init was not done again"
    assert losses(record) == pytest.approx(losses(whole), rel=1e-6)
    assert record.totals["ce"] == pytest.approx(whole.totals["ce"], rel=1e-6)


def test_a_start_that_was_kept_is_checked(spec: RunSpec, go: Go, model: LlamaForCausalLM, tmp_path: Path) -> None:
    changed = dataclasses.replace(spec, init="fisher", max_steps=2, probe_steps=(2,))
    whole = go(changed, "whole")
    go(changed, "cut", stop=1)
    weight = model.model.embed_tokens.weight
    before = weight.clone()
    with torch.no_grad():
        weight += 1.0
    with pytest.raises(AdapterError, match="has other weights than when this run began"):
        go(changed, "cut")
    with torch.no_grad():
        weight.copy_(before)
    for name in ("initial.safetensors", "initial.json"):
        path = tmp_path / "cut" / "stages" / name
        path.write_bytes(path.read_bytes()[:50])
    assert losses(go(changed, "cut")) == pytest.approx(losses(whole), rel=1e-6)


def test_what_cannot_be_started_so_is_refused(
    spec: RunSpec, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="did you mean 'fisher'"):
        dataclasses.replace(spec, init="fischer")
    with pytest.raises(InputError, match="does not go with use_dora"):
        dataclasses.replace(spec, init="fisher_select", use_dora=True)
    layers = model.model.layers
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    with pytest.raises(AdapterError, match="share one weight"):
        run(dataclasses.replace(spec, init="pissa"), tmp_path / "a", model=model, tokenizer=tokenizer, progress=False)
    assert not any("lora" in name for name, _ in model.named_modules()), "the model is given back without an adapter"


def test_eva_does_not_go_on_for_ever(
    spec: RunSpec,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = inits._at_most(1)
    monkeypatch.setattr(inits, "_at_most", lambda most: few)
    eva = dataclasses.replace(spec, init="eva")
    with pytest.raises(AdapterError, match="has not settled after 1 batches"):
        run(eva, tmp_path / "a", model=model, tokenizer=tokenizer, progress=False)
    assert not any("lora" in name for name, _ in model.named_parameters())
    with pytest.raises(AdapterError, match="at least as many rows as the rank of 9, and there are 8"):
        run(dataclasses.replace(eva, rank=9), tmp_path / "b", model=model, tokenizer=tokenizer, progress=False)


def test_eva_takes_short_rows_in_one_batch_as_many_unlike_ones_never_settle(
    spec: RunSpec,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []

    def spied(peft_model: Any, batches: Any, **options: Any) -> None:
        made.extend(len(batch["input_ids"]) for batch in batches)
        initialize_lora_eva_weights(peft_model, batches, **options)

    monkeypatch.setattr(inits, "initialize_lora_eva_weights", spied)
    record = run(
        dataclasses.replace(spec, init="eva"), tmp_path / "a", model=model, tokenizer=tokenizer, progress=False
    )
    assert record.settings["init"]["init"] == "eva"
    assert made == [8]
