"""Runs on quantised bases and with elastic connections: from settings to a saved adapter, measured again by the shell."""

import json
import os
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.utils.loftq_utils import _low_rank_decomposition
from typer.testing import CliRunner

from lorascope.adapters import ElasticLoraConfig, attach_adapter, components, read_adapter_config, read_adapter_record
from lorascope.adapters.elastic import betas
from lorascope.adapters.loftq import leading_factors
from lorascope.cli import app
from lorascope.core.errors import AdapterError, InputError, ModelError
from lorascope.measuring import load_model_and_tokenizer
from lorascope.measuring.quantized import NAMES, is_quantised_model, quantization_config, quantization_facts
from lorascope.quantization import icq_layers
from lorascope.sweeps import SweepSpec, run_sweep
from lorascope.training import RunSpec, attach_lora, run
from lorascope.training.spec import QUANTIZATIONS, RESIDUAL_INITS

from .tiny import make_model, make_tokenizer

IDS = torch.arange(12)[None]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("LORASCOPE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def base(tmp_path):
    """A dense model on disk, with its tokenizer."""
    make_model().save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def settings(base, data):
    return {
        "model": str(base),
        "task": str(data),
        "rank": 4,
        "max_steps": 4,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "metrics": ["miub_js"],
        "save_steps": 2,
    }


def outputs(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_the_names_in_settings_are_the_names_that_load():
    assert {*NAMES, "loftq"} == set(QUANTIZATIONS)
    for name in NAMES:
        quantization_config(name)
    assert quantization_config("plain-int3").objective == "none"
    with pytest.raises(InputError, match="did you mean 'icq-nf4'"):
        quantization_config("icq-nf5")


@pytest.mark.parametrize("dora", [False, True])
def test_a_run_with_all_of_ir_qlora(settings, dora, tmp_path):
    values = settings | {"quantize": "icq-nf4", "elastic": True, "beta_learning_rate": 0.1, "use_dora": dora}
    record = run(RunSpec.from_mapping(values), tmp_path / "run", progress=False)
    facts = record.settings["quantization"]
    assert 4.2 < facts["bits_per_weight"] < 4.6 and 3 < facts["code_entropy_bits"] < 4 and facts["seconds"] > 0
    assert record.counts["model_parameters"] == sum(p.numel() for p in make_model().parameters())
    assert record.history[-1]["loss"] < record.history[0]["loss"]
    adapter = tmp_path / "run" / "adapter"
    assert isinstance(read_adapter_config(adapter), ElasticLoraConfig)
    assert read_adapter_record(adapter)["quantization_config"]["bits"] == 4
    assert "lorascope fold" in (adapter / "README.md").read_text()
    model, _ = load_model_and_tokenizer(settings["model"], quantize="icq-nf4")
    adapted = attach_adapter(model, adapter)
    strengths = [abs(beta.item()) for beta in betas(adapted).values()]
    assert len(strengths) == 28 and 0.05 < max(strengths) <= 0.5  # at 0.1 a step, and 1e-2 would give 0.04 at most


@pytest.mark.parametrize("quantize", ["icq-nf3", "nf4"])
def test_an_interrupted_run_goes_on_to_the_same_adapter(settings, quantize, tmp_path, monkeypatch):
    spec = RunSpec.from_mapping(settings | {"quantize": quantize, "elastic": "both"})
    whole = run(spec, tmp_path / "whole", progress=False)
    from lorascope.training.runner import CostKeeper

    kept = CostKeeper.on_save

    def stop(self, args, state, control, **kwargs):
        kept(self, args, state, control, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(CostKeeper, "on_save", stop)
    with pytest.raises(KeyboardInterrupt):
        run(spec, tmp_path / "part", progress=False)
    monkeypatch.setattr(CostKeeper, "on_save", kept)
    again = run(spec, tmp_path / "part", progress=False)
    assert again.totals == pytest.approx(whole.totals, rel=1e-5)
    assert [line["step"] for line in again.history if "loss" in line] == [1, 2, 3, 4]


def test_measure_makes_the_quantised_base_again(settings, tmp_path):
    spec = RunSpec.from_mapping(settings | {"quantize": "icq-nf2", "elastic": "u2"})
    record = run(spec, tmp_path / "run", progress=False)
    adapter = str(tmp_path / "run" / "adapter")
    command = [
        "measure",
        adapter,
        "--task",
        settings["task"],
        "--metrics",
        "miub_js",
        "--no-progress",
        "--json",
        "--no-score",
    ]
    said = CliRunner().invoke(app, command)
    found = json.loads(said.stdout)
    assert found["totals"]["miub_js"] == pytest.approx(record.totals["miub_js"], rel=1e-6)
    with pytest.warns(UserWarning, match="trained on ICQ nf2 .* used on weights that are not quantised"):
        dense = CliRunner().invoke(app, [*command, "--quantize", "none"])
    assert json.loads(dense.stdout)["totals"]["miub_js"] != pytest.approx(record.totals["miub_js"], rel=1e-3)


@pytest.mark.parametrize("quantize", ["icq-nf4", "nf4"])
def test_loftq_starts_from_what_quantising_lost(base, quantize):
    dense = outputs(make_model())
    model, _ = load_model_and_tokenizer(base, quantize=quantize)
    lost = (outputs(model) - dense).norm()
    from lorascope.training.inits import attach_initialised

    spec = RunSpec(model=str(base), quantize=quantize, init="loftq", rank=16, alpha=8)
    adapted, facts = attach_initialised(model, spec, [], lambda rows: {}, base.parent / "stage", progress=False)
    assert (outputs(adapted.eval()) - dense).norm() < 0.7 * lost
    assert facts["relative_error_started"] < 0.8 * facts["relative_error"]


def test_leading_factors_are_those_of_peft():
    for shape in ((12, 7), (7, 12)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        expected = _low_rank_decomposition(matrix, 3)
        a, b = leading_factors(matrix, 3)
        torch.testing.assert_close(b @ a, expected["L"] @ expected["R"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(a.norm(dim=1), expected["R"].norm(dim=1), rtol=1e-4, atol=1e-5)


def test_what_cannot_go_together_is_refused_in_one_line():
    for init in RESIDUAL_INITS:
        with pytest.raises(InputError, match=f"init '{init}' takes a part off the base weights"):
            RunSpec(quantize="icq-nf4", init=init)
        with pytest.raises(InputError, match="twice the rank"):
            RunSpec(elastic="both", init=init)
    cases = {
        "share weights": {"quantize": "nf4", "share": 2},
        "the base is dense": {"init": "loftq"},
        "start of its own": {"quantize": "loftq", "init": "fisher"},
        "no effect without connections": {"beta_learning_rate": 0.1},
        "unknown elastic connection 'u3'": {"elastic": "u3"},
    }
    for said, values in cases.items():
        with pytest.raises(InputError, match=said):
            RunSpec(**values)
    assert RunSpec(quantize="loftq") == RunSpec(quantize="nf4", init="loftq")


def test_models_that_do_not_fit_the_settings(base, settings, tmp_path):
    with pytest.raises(InputError, match="the model given is dense"):
        run(
            RunSpec.from_mapping(settings | {"quantize": "icq-nf4"}),
            tmp_path / "run",
            model=make_model(),
            tokenizer=make_tokenizer(),
        )
    model, tokenizer = load_model_and_tokenizer(base, quantize="icq-nf4")
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert is_quantised_model(tmp_path / "saved") and not is_quantised_model(base)
    with pytest.raises(ModelError, match="is quantised already"):
        load_model_and_tokenizer(tmp_path / "saved", quantize="icq-nf4")
    # A base that was saved quantised trains like any other.
    record = run(RunSpec.from_mapping(settings | {"model": str(tmp_path / "saved")}), tmp_path / "run2", progress=False)
    assert record.settings["quantization"]["config"]["bits"] == 4
    with pytest.raises(AdapterError, match=r"takes a part off the base weight|is quantised"):
        run(
            RunSpec.from_mapping(settings | {"model": str(tmp_path / "saved"), "init": "pissa"}),
            tmp_path / "run3",
            progress=False,
        )


def test_a_fisher_start_on_codes_with_connections(settings, tmp_path):
    spec = RunSpec.from_mapping(settings | {"quantize": "icq-nf4", "elastic": "both", "init": "fisher", "init_rows": 4})
    record = run(spec, tmp_path / "run", progress=False)
    assert record.settings["init"]["init"] == "fisher" and record.totals["miub_js"] > 0


def test_sweeps_over_bases_and_connections(settings, tmp_path):
    settings = settings | {"max_steps": 1}
    sweep = SweepSpec(base=settings, grid={"quantize": [None, "plain-nf4"], "elastic": [None, "both"]})
    names = [cell.name for cell in sweep.expand()]
    assert len(set(names)) == 4 and any("plain-nf4-elastic-both" in name for name in names)
    done = run_sweep(sweep, tmp_path / "sweep", executor="local", workers=1)
    assert not done.failed
    table = done.table.set_index(["quantize", "elastic"])
    assert table["bits_per_weight"].notna().sum() == 2 and table["code_entropy_bits"].max() < 4
    assert (table["N"] == table["N"].iloc[0]).all()


def test_fold_from_the_shell_and_plain_peft(settings, tmp_path):
    run(
        RunSpec.from_mapping(settings | {"elastic": "both", "beta_learning_rate": 0.1}),
        tmp_path / "run",
        progress=False,
    )
    adapter = tmp_path / "run" / "adapter"
    said = CliRunner().invoke(app, ["fold", str(adapter), "--out", str(tmp_path / "plain")], catch_exceptions=False)
    assert "ordinary LoRA adapter of rank 4" in said.stdout
    card = (tmp_path / "plain" / "README.md").read_text()
    assert "It loads with plain PEFT" in card and card.startswith("---")
    plain = PeftModel.from_pretrained(make_model(), tmp_path / "plain").eval()
    elastic = attach_adapter(make_model(), adapter)
    torch.testing.assert_close(outputs(plain), outputs(elastic), rtol=1e-5, atol=1e-5)
    before = outputs(plain)
    torch.testing.assert_close(outputs(elastic.merge_and_unload()), before, rtol=1e-4, atol=1e-5)
    assert attach_adapter(make_model(), tmp_path / "plain").peft_config["default"].r == 4
    again = CliRunner().invoke(app, ["fold", str(adapter), "--out", str(tmp_path / "plain")])
    assert again.exit_code != 0 and "not empty" in str(again.exception)


def test_elastic_without_a_word_means_both(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        "lorascope.training.spec.RunSpec.from_mapping", lambda values, **_: seen.append(values) or 1 / 0
    )
    for words in (["--elastic", "--rank", "2"], ["--rank", "2", "--elastic"], ["--elastic", "u1", "--rank", "2"]):
        CliRunner().invoke(app, ["train", "--out", str(tmp_path), *words])
    assert [values["elastic"] for values in seen] == ["both", "both", "u1"]


def test_facts_of_a_quantised_base(base):
    model, _ = load_model_and_tokenizer(base, quantize="icq-int3")
    facts = quantization_facts(model)
    sizes = [layer.in_features * layer.out_features for layer in icq_layers(model).values()]
    assert facts["quantized_weights"] == sum(sizes) and facts["method"].startswith("ICQ int3")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        peft_model = attach_lora(model, RunSpec(rank=2))
    assert len(components(peft_model)) == len(sizes)
    assert 3 < facts["bits_per_weight"] < 3.7 and 2 < facts["code_entropy_bits"] < 3


@pytest.mark.parametrize("name", ["model.safetensors", "quantization.json"])
def test_a_damaged_cache_is_made_again(base, name):
    here = outputs(load_model_and_tokenizer(base, quantize="icq-nf4")[0])
    (file,) = (Path(os.environ["LORASCOPE_CACHE"]) / "quantized").glob(f"*/{name}")
    file.write_bytes(file.read_bytes()[:50])
    assert torch.equal(outputs(load_model_and_tokenizer(base, quantize="icq-nf4")[0]), here)
    assert file.stat().st_size > 50
