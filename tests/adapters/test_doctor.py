"""What the doctor finds in adapters: each hazard made on purpose, and a sound adapter that has none."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from lorascope import initialize_lora_fisher
from lorascope.adapters import adapter_record, attach_adapter
from lorascope.adapters.doctor import examine_adapter, examine_libraries
from lorascope.adapters.load import RECORD_FILE
from lorascope.cli import main
from lorascope.core.environment import Finding, examine_environment, worst
from lorascope.core.errors import AdapterError
from lorascope.core.files import write_json
from tests.measuring.architectures import ARCHITECTURES, batch_for

Saved = Callable[..., Path]


def base(seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ARCHITECTURES["llama"].build()


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """An adapter in a folder: fresh, changed by ``edit``, saved."""

    def make(edit: Callable[[PeftModel], None] | None = None, name: str = "adapter", **lora: Any) -> Path:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            options = {"r": 4, "target_modules": "all-linear", **lora}
            model = get_peft_model(base(), LoraConfig(**options)).eval()
            if edit is not None:
                with torch.no_grad():
                    edit(model)
        folder = tmp_path / name
        model.save_pretrained(str(folder), save_embedding_layers=False)
        write_json(folder / RECORD_FILE, adapter_record(model))
        return folder

    return make


def trained(model: PeftModel) -> None:
    """Weights as training leaves them: both factors moved, in every layer."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


def found(findings: list[Finding], check: str) -> Finding:
    (one,) = (finding for finding in findings if finding.check == check)
    return one


def test_a_sound_adapter_has_nothing_bad(saved: Saved) -> None:
    first = saved(name="first")
    findings = examine_adapter(saved(trained), base=base(), initial=first)
    assert worst(findings) in ("good", "note")
    assert {f.check: f.severity for f in findings} | {"unused rank": "-"} == {
        "numbers": "good",
        "residual start": "good",
        "did nothing": "good",
        "base": "good",
        "unused rank": "-",
    }
    assert "fingerprint of those it was trained on" in found(findings, "base").evidence


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_a_start_that_changed_the_base(init: str, saved: Saved) -> None:
    findings = examine_adapter(saved(trained, init_lora_weights=init))
    one = found(findings, "residual start")
    assert one.severity == ("error" if "niter" in init else "warning")
    assert "disable_adapter() gives the residual model" in one.evidence
    assert "path_initial_model_for_weight_conversion" in one.remedy


def test_a_residual_adapter_is_named_where_it_is_measured(saved: Saved) -> None:
    with pytest.warns(UserWarning, match="started by pissa, which changes the base weights"):
        attach_adapter(base(), saved(trained, init_lora_weights="pissa"), any_base=True)


@pytest.mark.parametrize("init", ["corda", "lora_ga", "loftq"])
def test_starts_that_cannot_be_loaded_again(init: str, saved: Saved) -> None:
    folder = saved(trained)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "init_lora_weights": init}))
    one = found(examine_adapter(folder), "residual start")
    assert one.severity == ("warning" if init == "loftq" else "error")


def test_our_residual_modes_leave_an_ordinary_adapter(tmp_path: Path) -> None:
    model = get_peft_model(base(), LoraConfig(r=4, target_modules="all-linear")).eval()
    initialize_lora_fisher(model, [batch_for("llama")], "fisher_select", progress=False)
    with torch.no_grad():
        trained(model)
    model.save_pretrained(str(tmp_path / "out"), save_embedding_layers=False)
    findings = examine_adapter(tmp_path / "out", base=base())
    assert found(findings, "residual start").severity == "good"
    assert worst(findings) != "error"


def test_an_adapter_that_did_nothing(saved: Saved) -> None:
    one = found(examine_adapter(saved()), "did nothing")
    assert one.severity == "error" and "B is zero in all 14 layers" in one.evidence
    folder = saved(name="fresh")
    write_json(folder / RECORD_FILE, {"init": {"init": "fisher", "trained": False}})
    one = found(examine_adapter(folder), "did nothing")
    assert one.severity == "note", "a first adapter of lorascope init says so itself"


def test_layers_that_never_changed(saved: Saved) -> None:
    def partly(model: PeftModel) -> None:
        generator = torch.Generator().manual_seed(5)
        for name, parameter in model.named_parameters():
            if "lora_B" in name and "layers.0" in name:
                parameter += torch.randn(parameter.shape, generator=generator)

    folder = saved(partly)
    one = found(examine_adapter(folder), "never updated")
    assert one.severity == "warning" and "7 of 14 layers" in one.evidence and "layers.1" in one.evidence
    findings = examine_adapter(folder, initial=saved(name="first"))
    assert any("7 of 14 layers are exactly as they started" in f.evidence for f in findings)
    assert "A is exactly as it started in 7 of 14" in found(findings, "A as it started").evidence


def test_a_frozen_a_is_told_from_its_range_and_from_orthonormal_rows(tmp_path: Path, saved: Saved) -> None:
    def only_b(model: PeftModel) -> None:
        generator = torch.Generator().manual_seed(5)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += torch.randn(parameter.shape, generator=generator)

    model = get_peft_model(base(), LoraConfig(r=4, target_modules="all-linear")).eval()
    initialize_lora_fisher(model, [batch_for("llama")], progress=False)
    with torch.no_grad():
        only_b(model)
    model.save_pretrained(str(tmp_path / "ours"), save_embedding_layers=False)
    one = found(examine_adapter(tmp_path / "ours"), "A as it started")
    assert one.severity == "note" and "14 of 14" in one.evidence
    assert not [f for f in examine_adapter(saved(trained)) if f.check == "A as it started"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none(value: float, saved: Saved) -> None:
    def broken(model: PeftModel) -> None:
        trained(model)
        next(p for n, p in model.named_parameters() if "lora_B" in n)[0, 0] = value

    one = found(examine_adapter(saved(broken)), "numbers")
    assert one.severity == "error" and "in 1 of 28 tensors" in one.evidence


def test_the_wrong_base(saved: Saved) -> None:
    folder = saved(trained)
    one = found(examine_adapter(folder, base=base(seed=1)), "base")
    assert one.severity == "error" and "another fingerprint" in one.evidence
    with torch.random.fork_rng():
        other = ARCHITECTURES["gpt2"].build()
    one = found(examine_adapter(folder, base=other), "base")
    assert one.severity == "error" and "14 of 14 layers are not in this model" in one.evidence
    (folder / RECORD_FILE).unlink()
    assert "is not recorded" in found(examine_adapter(folder, base=base(seed=1)), "base").evidence
    config = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": "their/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    named = base(seed=1)
    named.config = copy.deepcopy(named.config)  # built models share theirs
    named.config._name_or_path = "my/other"
    one = found(examine_adapter(folder, base=named), "base")
    assert one.severity == "warning" and "made for 'their/base', and this is 'my/other'" in one.evidence
    assert "was not looked at" in found(examine_adapter(folder), "base").evidence or (
        found(examine_adapter(folder), "base").severity == "warning"
    )


def test_unused_rank(saved: Saved) -> None:
    def one_direction(model: PeftModel) -> None:
        generator = torch.Generator().manual_seed(5)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter[:, 0] = torch.randn(len(parameter), generator=generator)

    one = found(examine_adapter(saved(one_direction, r=8)), "unused rank")
    assert one.severity == "note" and "uses 1.0 of 8 directions" in one.evidence and "a rank of 1" in one.remedy


def test_files_that_are_damaged_or_do_not_fit(saved: Saved, tmp_path: Path) -> None:
    folder = saved(trained)
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(str(weights))
    key = next(name for name in tensors if "lora_A" in name)
    save_file({name: t for name, t in tensors.items() if name != key}, str(weights))
    assert "one factor only" in found(examine_adapter(folder), "shapes").evidence
    save_file({**tensors, key: tensors[key][:2].contiguous()}, str(weights))
    assert "ranks differ in 1 layers" in found(examine_adapter(folder), "shapes").evidence
    weights.write_bytes(weights.read_bytes()[:100])
    assert "cut short or damaged" in found(examine_adapter(folder), "file").evidence
    weights.unlink()
    assert found(examine_adapter(folder), "file").severity == "error"
    for place, said in ((tmp_path / "none", "no adapter at"), (tmp_path, "no adapter_config.json in")):
        with pytest.raises(AdapterError, match=said):
            examine_adapter(place)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "IA3"}))
    assert found(examine_adapter(folder), "kind").severity == "note"
    shutil.rmtree(folder)


def test_the_installation() -> None:
    findings = examine_environment()
    assert any(f.check == "packages" and f.severity == "good" and "peft" in f.evidence for f in findings)
    assert {f.check for f in findings} >= {"packages", "embedded model", "memory", "cache"}
    assert worst(examine_libraries()) == "good"


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["lorascope", "doctor", *map(str, arguments)])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_the_command(saved: Saved, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved()
    assert call(monkeypatch, folder) == 1
    said = capsys.readouterr().out
    assert "B is zero in all 14 layers" in " ".join(said.split())
    assert call(monkeypatch, saved(trained, name="good"), "--json") == 0
    values = json.loads(capsys.readouterr().out)
    assert values["kind"] == "diagnosis" and {f["check"] for f in values["findings"]} >= {"numbers", "base"}
    assert call(monkeypatch, "--initial", folder) == 2
    assert "name its folder first" in capsys.readouterr().err
    assert call(monkeypatch, folder / "nowhere") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert call(monkeypatch, "--json") == 0
    assert json.loads(capsys.readouterr().out)["worst"] != "error"


def test_what_else_than_factors_may_change_the_model_is_said(saved: Saved) -> None:
    def scale(model: PeftModel) -> None:
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1.5)

    one = found(examine_adapter(saved(scale, "dora", use_dora=True)), "did nothing")
    assert one.severity == "warning" and "only DoRA's magnitudes can change the model" in one.evidence
    one = found(examine_adapter(saved(name="head", modules_to_save=["lm_head"])), "did nothing")
    assert one.severity == "warning" and "only modules trained whole" in one.evidence


@pytest.mark.parametrize("edit", ["alpha", "cancels", "tiny"])
def test_an_update_that_is_nothing_is_seen_for_what_it_is(saved: Saved, edit: str) -> None:
    folder = saved(trained)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(str(file))
    if edit == "alpha":
        change(folder, lora_alpha=0)
    for key, tensor in tensors.items():
        if edit == "tiny" and "lora_B" in key:
            tensors[key] = tensor * 1e-9
        if edit == "cancels":  # as a residual adapter that was exported before its first step
            tensors[key] = torch.cat([tensor, tensor]) if "lora_A" in key else torch.cat([tensor, -tensor], 1)
    if edit == "cancels":
        change(folder, r=8)
    save_file(tensors, str(file))
    one = found(examine_adapter(folder), "did nothing")
    wanted = {"alpha": "lora_alpha is 0", "cancels": "B A is zero", "tiny": "next to nothing"}
    assert wanted[edit] in one.evidence and one.severity == ("warning" if edit == "tiny" else "error")


def test_names_that_peft_would_not_load(saved: Saved) -> None:
    file = saved(trained) / "adapter_model.safetensors"
    save_file({k.removeprefix("base_model.model."): v for k, v in load_file(str(file)).items()}, str(file))
    assert "PEFT loads none" in found(examine_adapter(file.parent), "shapes").evidence


def test_a_start_off_the_base_is_seen_by_the_first_weights(saved: Saved) -> None:
    first, folder = saved(trained, "first"), saved(trained)
    one = found(examine_adapter(folder, initial=first), "residual start")
    assert one.severity == "warning" and "the first update is not zero in 14 layers" in one.evidence


def test_an_update_is_told_from_the_part_of_the_base_that_a_start_moved(saved: Saved) -> None:
    first, still = saved(name="first", init_lora_weights="pissa"), saved(init_lora_weights="pissa")
    findings = examine_adapter(still)
    one = found(findings, "did nothing")
    assert one.severity == "note" and "--initial" in one.remedy
    assert not any(finding.check == "unused rank" for finding in findings)
    one = found(examine_adapter(still, initial=first), "did nothing")
    assert one.severity == "error" and "B A is as it was in all 14 layers" in one.evidence

    def one_direction(model: PeftModel) -> None:
        generator = torch.Generator().manual_seed(5)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter[:, 0] += torch.randn(len(parameter), generator=generator)

    findings = examine_adapter(saved(one_direction, "moved", init_lora_weights="pissa"), initial=first)
    assert found(findings, "did nothing").severity == "good"
    assert "uses 1.0 of 8 directions" in found(findings, "unused rank").evidence
    assert "two directions for each" in found(findings, "unused rank").evidence


def test_an_update_that_is_huge(saved: Saved) -> None:
    def blown(model: PeftModel) -> None:
        trained(model)
        for name, parameter in model.named_parameters():
            if "lora_" in name and "layers.1.self_attn.q_proj" in name:
                parameter *= 1e20

    one = found(examine_adapter(saved(blown)), "size")
    assert one.severity == "error" and "model.layers.1.self_attn.q_proj" in one.evidence


def test_a_file_that_lacks_layers(saved: Saved) -> None:
    folder = saved(trained, target_modules=["q_proj", "v_proj"])
    (folder / RECORD_FILE).unlink()
    file = folder / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(str(file)).items() if "layers.0" in k}, str(file))
    one = found(examine_adapter(folder, base=base()), "base")
    assert one.severity == "warning" and "2 more linear layers" in one.evidence


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"peft_type": None}, "names no peft_type"),
        ({"r": None}, "None for a rank"),
        ({"r": "four"}, "'four' for a rank"),
        ({"rank_pattern": ["q"]}, "where a mapping belongs"),
        ({"rank_pattern": {"q": "x"}}, "'x' for a rank"),
        ({"rank_pattern": {"(": 3}}, "which is no pattern"),
        ({"lora_alpha": "much"}, "'much' for alpha"),
    ],
)
def test_a_configuration_that_nobody_wrote_so(saved: Saved, values: dict[str, Any], said: str) -> None:
    folder = saved(trained)
    change(folder, **values)
    with pytest.raises(AdapterError, match=re.escape(said)):
        examine_adapter(folder)


def test_first_weights_that_do_not_fit(saved: Saved) -> None:
    folder, first = saved(trained), saved(name="first", r=2)
    with pytest.raises(AdapterError, match="has it of another shape"):
        examine_adapter(folder, initial=first)
    file = first / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(AdapterError, match="cut short or damaged"):
        examine_adapter(folder, initial=first)


def change(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    write_json(path, {**json.loads(path.read_text()), **values})
