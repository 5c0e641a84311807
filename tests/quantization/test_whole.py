"""Whole models into folders: what is written, what is reported, and that nothing is left behind when it fails."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lorascope.core.errors import DataError, InputError, ModelError, OutputError
from lorascope.quantization import ICQConfig, QuantizationReport, icq_layers, quantize_icq, quantize_model


def gpt2(folder: Path) -> torch.nn.Module:
    options = {"n_embd": 48, "n_layer": 1, "n_head": 4, "vocab_size": 64, "n_positions": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **options))
    model.save_pretrained(folder)
    return model


def test_the_folder_holds_the_model_its_tokenizer_and_what_was_lost(tiny_model_dir, tmp_path):
    report = quantize_model(tiny_model_dir, tmp_path / "q", ICQConfig(n=5))
    dense = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "q")
    layers = icq_layers(again)
    assert {record["name"] for record in report.layers} == set(layers)
    for record in report.layers:
        weight = dense.get_submodule(record["name"]).weight.detach()
        expected = quantize_icq(weight, n=5)
        layer = layers[record["name"]]
        assert torch.equal(layer.dequantize(), expected.dequantize())
        lost = (expected.dequantize() - weight).norm() / weight.norm()
        assert record["relative_error"] == pytest.approx(float(lost), rel=1e-5)
        assert record["entropy_bits"] == pytest.approx(float(layer.block_entropy_bits().mean()))
        assert record["bits_per_weight"] == layer.bits_per_weight
        assert record["entropy_bits"] > record["entropy_bits_plain"]
    assert AutoTokenizer.from_pretrained(tmp_path / "q")("a b").input_ids == [4, 5]
    assert QuantizationReport.load(tmp_path / "q") == report
    assert set(report.kept) == {"model.embed_tokens", "lm_head"}
    assert report.kept["lm_head"].startswith("output head")
    # The bytes that are reported are the bytes that are stored, but for the buffers' alignment and each layer's format.
    stored = sum(t.numel() * t.element_size() for t in load_file(tmp_path / "q" / "model.safetensors").values())
    assert report.totals["bytes_after"] == pytest.approx(stored - 28 * len(layers), abs=len(layers) * 2)
    assert not list(tmp_path.glob(".q.*"))


def test_errors_are_weighted_by_squares(tmp_path):
    dense = gpt2(tmp_path / "dense")
    report = quantize_model(tmp_path / "dense", tmp_path / "q", ICQConfig(objective="none"), compare=False)
    quantised = AutoModelForCausalLM.from_pretrained(tmp_path / "q")
    lost = whole = 0.0
    for name, layer in icq_layers(quantised).items():
        weight = dense.get_submodule(name).weight.detach().T.double()
        lost += float((layer.dequantize(torch.float64) - weight).square().sum())
        whole += float(weight.square().sum())
    assert report.totals["relative_error"] == pytest.approx((lost / whole) ** 0.5, rel=1e-9)
    assert "entropy_bits_plain" not in report.totals


def test_a_weight_with_nan_is_named_and_nothing_is_written(tmp_path, capsys):
    dense = gpt2(tmp_path / "dense")
    dense.transformer.h[0].mlp.c_fc.weight.data[0, 0] = torch.nan
    dense.save_pretrained(tmp_path / "dense")
    with pytest.raises(InputError, match=r"c_fc\.weight: .*NaN or infinity in 1 of"):
        quantize_model(tmp_path / "dense", tmp_path / "q", ICQConfig(n=1))
    assert {path.name for path in tmp_path.iterdir()} == {"dense"}


def test_a_truncated_checkpoint_is_refused_and_nothing_is_written(tmp_path):
    gpt2(tmp_path / "dense")
    file = tmp_path / "dense" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot load the model"):
        quantize_model(tmp_path / "dense", tmp_path / "q", ICQConfig(n=1))
    assert {path.name for path in tmp_path.iterdir()} == {"dense"}


def test_a_quantised_model_and_a_full_folder_are_refused(tiny_model_dir, tmp_path):
    quantize_model(tiny_model_dir, tmp_path / "q", ICQConfig(n=1))
    with pytest.raises(ModelError, match="quantised already"):
        quantize_model(tmp_path / "q", tmp_path / "again", ICQConfig(n=1))
    with pytest.raises(OutputError, match="not empty"):
        quantize_model(tiny_model_dir, tmp_path / "q", ICQConfig(n=1))
    assert not (tmp_path / "again").exists()


def test_an_interrupted_write_leaves_nothing(tiny_model_dir, tmp_path, monkeypatch):
    from transformers import PreTrainedModel

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", stop)
    with pytest.raises(KeyboardInterrupt):
        quantize_model(tiny_model_dir, tmp_path / "q", ICQConfig(n=1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "run"}, "is not a report"),
        ({"kind": "quantization", "schema_version": 9}, "schema_version 9"),
        ({"kind": "quantization", "schema_version": 1}, "is missing"),
    ],
)
def test_foreign_reports_are_refused(values, said):
    with pytest.raises(DataError, match=said):
        QuantizationReport.from_dict(values)
