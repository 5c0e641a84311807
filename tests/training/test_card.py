from __future__ import annotations

import pytest
import yaml
from huggingface_hub import ModelCard

from lorascope.training import RunSpec
from lorascope.training.card import markdown, model_card

NASTY = "\"x\": [y]\n- <script>alert('1')</script> | **bold** `code` # head"


def test_front_matter_is_what_a_hub_reads() -> None:
    spec = RunSpec(model="owner/base", task="towns", rank=8)
    card = ModelCard(model_card(spec, steps=20, totals={"accuracy": 0.66, "miub_js": 0.5, "cka": float("nan")}))
    data = card.data.to_dict()
    assert (data["library_name"], data["base_model"]) == ("peft", "owner/base")
    assert {"lora", "lorascope"} <= set(data["tags"])
    assert data["metrics"] == ["accuracy", "miub_js"]
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {"accuracy": 0.66, "miub_js": 0.5}
    assert "20 steps of 32 rows" in card.text
    assert "| Accuracy | 0.66 | fraction |" in card.text


def test_before_measuring_there_are_no_results() -> None:
    text = model_card(RunSpec(), steps=3)
    assert "Measured" not in text
    assert "model-index" not in text


def test_embedded_model_is_named_and_its_weights_explained() -> None:
    text = model_card(RunSpec(model="smollm2"), steps=1)
    assert yaml.safe_load(text.split("---\n")[1])["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "Q4_1" in text
    assert "Q4_1" not in model_card(RunSpec(model="owner/base"), steps=1)


def test_what_the_user_gave_is_escaped() -> None:
    text = model_card(RunSpec(model=NASTY, task=NASTY, prompt=NASTY), steps=1, totals={"ce": 1.0})
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == NASTY
    assert yaml.safe_load(front)["model-index"][0]["results"][0]["dataset"]["name"] == NASTY
    assert "<script>" not in body
    assert "**bold**" not in body
    assert all(line.count("|") - line.count("\\|") == 3 for line in body.splitlines() if line.startswith("| Task"))


@pytest.mark.parametrize("text", ["plain", "a b"])
def test_plain_text_stays(text: str) -> None:
    assert markdown(text) == text
