"""The embedded SmolLM2-135M, against the slow way on a few of its layers."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model

from lorascope.measuring import measure
from lorascope.tasks import load_task
from lorascope.tasks.embedded import load_model_and_tokenizer
from tests.measuring.architectures import randomise
from tests.measuring.reference import joint_information, js_rows, outputs_again


@pytest.mark.real
def test_smollm2_layer_by_layer() -> None:
    model, tokenizer = load_model_and_tokenizer("smollm2")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        peft_model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear")).eval()
        randomise(peft_model, 0.01)
    encoded = tokenizer(["The capital of France is Paris."], return_tensors="pt")
    batch = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
    result = measure(peft_model, [batch], metrics=("miub_js", "mi_joint", "ce"), joint_dim=2048, progress=False)
    assert result.counts["components"] == 210
    assert {record["layer"] for record in result.layers} == set(range(30))
    assert result.totals["ce"] < 5
    records = {record["name"]: record for record in result.layers}
    again = outputs_again(peft_model, batch)
    for name in list(again)[::23]:
        o, l = again[name]  # noqa: E741
        assert records[name]["miub_js"] == pytest.approx(js_rows(o, l).mean(), rel=1e-3, abs=1e-10)
        assert records[name]["mi_joint"] == pytest.approx(joint_information(o, l), rel=1e-4, abs=1e-7)
    assert max(record["mi_joint"] for record in result.layers) <= math.log(result.counts["tokens"])

    lumped = measure(peft_model, [batch], metrics="mi_joint", progress=False)
    assert {record["joint_groups"] for record in lumped.layers} == {None, 1024}
    assert lumped.totals["mi_joint"] <= result.totals["mi_joint"]

    task = measure(peft_model, load_task("towns"), tokenizer=tokenizer, limit=4, progress=False)
    assert task.counts["samples"] == 4
    assert task.totals["miub_js"] > 0
