from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import LoraConfig, PeftModel, get_peft_model

from lorascope.adapters import (
    adapter_record,
    attach_adapter,
    components,
    count_parameters,
    fingerprint,
    layers_shared,
    load_shared,
    retie,
    share_layers,
    sharing_of,
    unshare_layers,
)
from lorascope.adapters.sharing import CONFIG_KEY, is_shared_folder
from lorascope.core.errors import AdapterError, InputError, ModelError, OutputError
from lorascope.core.files import write_json
from lorascope.core.seeds import preserved_random_state
from lorascope.measuring import load_model_and_tokenizer

from ..measuring.architectures import ARCHITECTURES, SMALL
from ..training.tiny import make_tokenizer

DECODERS = [name for name, architecture in ARCHITECTURES.items() if architecture.kind == "causal"]
IDS = torch.arange(3, 15)[None]


def decoder(name: str = "llama", layers: int = 6, **changes: Any) -> hf.PreTrainedModel:
    """A tiny decoder with more layers, none of them like another in its weights."""
    config = copy.deepcopy(ARCHITECTURES[name].build().config)
    if getattr(config, "layer_types", None):
        config.layer_types = (config.layer_types * layers)[:layers]
    config.num_hidden_layers = layers
    for key, value in changes.items():
        setattr(config, key, value)
    with preserved_random_state():
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.train(False)


def numbers_of(layer: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters())


def stored_numbers(folder: Path) -> int:
    """Numbers in the weights files of a folder, from their headers."""
    total = 0
    for path in folder.glob("*.safetensors"):
        raw = path.read_bytes()
        (size,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + size])
        header.pop("__metadata__", None)
        begins = [entry["data_offsets"] for entry in header.values()]
        assert sum(end - begin for begin, end in begins) == len(raw) - 8 - size
        total += (len(raw) - 8 - size) // 4
    return total


@pytest.mark.parametrize("name", DECODERS)
def test_every_architecture_shares_runs_learns_and_reloads(name: str, tmp_path: Path) -> None:
    model = decoder(name, layers=8)
    one_layer = numbers_of(model.get_decoder().layers[0] if name != "gpt2" else model.transformer.h[0])
    before, logits = count_parameters(model), model(IDS).logits
    info = share_layers(model, 2)
    alternating = name == "gemma2"
    assert info.groups == (((4, 6), (5, 7)) if alternating else ((4, 5), (6, 7)))
    assert (info.layers, info.parameters_before) == (8, before)
    assert info.parameters == count_parameters(model) == before - 2 * one_layer
    shared_logits = model(IDS).logits
    assert not torch.allclose(shared_logits, logits)

    # the same numbers as a model whose layers are copies
    twin = decoder(name, layers=8)
    layers, own = (m.get_decoder().layers if name != "gpt2" else m.transformer.h for m in (model, twin))
    for group in info.groups:
        for index in group:
            own[index].load_state_dict(own[group[0]].state_dict())
    assert count_parameters(twin) == before
    torch.testing.assert_close(twin(IDS).logits, shared_logits, rtol=0, atol=1e-6)
    assert len({id(layer) for layer in layers}) == 8

    # a key-value cache of its own for each layer
    answer = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with_cache, without = (model.generate(IDS, use_cache=use, **answer) for use in (True, False))
    assert torch.equal(with_cache, without)

    # stored once, read back, tied again
    model.save_pretrained(tmp_path)
    buffers = sum(value.numel() for key, value in model.state_dict().items() if key in dict(model.named_buffers()))
    assert stored_numbers(tmp_path) == info.parameters + buffers
    again = load_shared(tmp_path)
    assert torch.equal(again(IDS).logits, shared_logits)
    assert (count_parameters(again), fingerprint(again)) == (info.parameters, fingerprint(model))

    # an adapter for every layer, shared weights or not
    peft_model = get_peft_model(model, LoraConfig(r=2, **ARCHITECTURES[name].lora))
    names = [component.name for component in components(peft_model)]
    assert len({component.layer for component in components(peft_model) if component.layer is not None}) == 8
    optimizer = torch.optim.SGD([p for p in peft_model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        peft_model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    factors = {n: p.detach() for n, p in peft_model.named_parameters() if "lora_B" in n}
    assert len({id(p) for p in factors.values()}) == len(factors) >= len(names)
    for first, second in info.groups:
        pairs = [
            (p, factors[n.replace(f".{first}.", f".{second}.", 1)]) for n, p in factors.items() if f".{first}." in n
        ]
        assert pairs
        assert any(p.any() for p, _ in pairs)
        assert not any(torch.equal(p, q) for p, q in pairs if p.any() or q.any())
    assert count_parameters(peft_model.unload()) == info.parameters


@pytest.mark.parametrize(
    ("layers", "group", "groups"),
    [
        (8, 1, ((4,), (5,), (6,), (7,))),
        (8, 2, ((4, 5), (6, 7))),
        (8, 3, ((4, 5, 6), (7,))),
        (8, 4, ((4, 5, 6, 7),)),
        (8, 8, ((4, 5, 6, 7),)),
        (7, 2, ((4, 5), (6,))),
    ],
)
def test_groups_of_the_second_half(layers: int, group: int, groups: tuple[tuple[int, ...], ...]) -> None:
    model = decoder(layers=layers)
    before = count_parameters(model)
    size = numbers_of(model.model.layers[0])
    info = share_layers(model, group)
    assert info.groups == groups
    assert info.parameters == before - size * (layers // 2 - len(groups))


def test_a_group_of_one_is_the_plain_model(tmp_path: Path) -> None:
    model, plain = decoder(), decoder()
    share_layers(model, 1)
    assert torch.equal(model(IDS).logits, plain(IDS).logits)
    assert (fingerprint(model), sharing_of(model)) == (fingerprint(plain), None)
    model.save_pretrained(tmp_path)
    hf.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_gradients_of_a_shared_weight_are_the_sum_over_its_layers() -> None:
    model, twin = decoder(), decoder()
    (group,) = share_layers(model, 4).groups
    for index in group:
        twin.model.layers[index].load_state_dict(twin.model.layers[group[0]].state_dict())
    for each in (model, twin):
        each(input_ids=IDS, labels=IDS).loss.backward()
    found = model.model.layers[group[0]].mlp.up_proj.weight.grad
    parts = [twin.model.layers[index].mlp.up_proj.weight.grad for index in group]
    assert all(part.abs().max() > 0 for part in parts)
    torch.testing.assert_close(found, sum(parts))


def test_buffers_stay_their_own() -> None:
    model = decoder("gpt2")
    layers = model.transformer.h
    for layer in layers:
        layer.register_buffer("mark", torch.zeros(2))
    share_layers(model, 4)
    assert layers[4].mark.data_ptr() != layers[3].mark.data_ptr()
    assert layers[4].attn.c_attn.weight is layers[3].attn.c_attn.weight


def test_layers_of_other_shape_or_setting_share_among_themselves_only() -> None:
    model = decoder(layers=8)
    model.model.layers[5].mlp = hf.models.llama.modeling_llama.LlamaMLP(
        hf.LlamaConfig(**{**SMALL, "intermediate_size": 8})
    )
    model.model.layers[7].self_attn.scaling = 0.5
    assert share_layers(model, 4).groups == ((4, 6), (5,), (7,))
    other = decoder(layers=8)
    for index in (5, 7):
        other.model.layers[index].register_buffer("window", torch.ones(3))
        other.model.layers[index - 1].register_buffer("window", torch.zeros(3))
    assert share_layers(other, 4).groups == ((4, 6), (5, 7))


def test_dense_and_expert_layers_do_not_share() -> None:
    model = decoder("qwen2_moe", layers=8, mlp_only_layers=[5])
    assert share_layers(model, 4).groups == ((4, 6, 7), (5,))


@pytest.mark.parametrize("group", [0, -1, True])
def test_group_must_be_a_number_of_layers(group: int) -> None:
    with pytest.raises(InputError, match="whole number of at least 1"):
        share_layers(decoder(), group)


def test_models_that_cannot_share_are_refused() -> None:
    with pytest.raises(ModelError, match="no two of the 1 layers in the second half of LlamaForCausalLM are alike"):
        share_layers(decoder(layers=2), 8)
    with pytest.raises(ModelError, match="has an adapter: share layers first"):
        share_layers(get_peft_model(decoder(), LoraConfig(r=2, target_modules=["q_proj"])).base_model.model, 2)
    t5 = hf.T5ForConditionalGeneration(hf.T5Config(vocab_size=64, d_model=8, d_ff=8, d_kv=4, num_layers=2, num_heads=2))
    with pytest.raises(ModelError, match="encoder-decoder"):
        share_layers(t5, 2)
    with pytest.raises(ModelError, match="divides the weights of its later layers in place"):
        share_layers(hf.RwkvForCausalLM(hf.RwkvConfig(vocab_size=64, hidden_size=16, num_hidden_layers=4)), 2)
    quantised = decoder()
    quantised.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(ModelError, match="quantised: share the layers of the full model"):
        share_layers(quantised, 2)
    model = decoder(layers=8)
    share_layers(model, 2)
    with pytest.raises(ModelError, match="share in groups of 2 already: load the original to share in groups of 4"):
        share_layers(model, 4)
    assert share_layers(model, 2).groups == ((4, 5), (6, 7))


def test_a_lent_model_comes_back_as_it_was() -> None:
    model = decoder()
    parameters = {name: (id(p), p.detach().clone()) for name, p in model.named_parameters()}
    logits, config = model(IDS).logits, model.config.to_dict()
    with pytest.raises(RuntimeError, match="inside"), layers_shared(model, 4) as info:
        assert info is not None
        assert count_parameters(model) == info.parameters
        raise RuntimeError("inside")
    assert {name: id(p) for name, p in model.named_parameters()} == {name: i for name, (i, _) in parameters.items()}
    assert all(torch.equal(p, parameters[name][1]) for name, p in model.named_parameters())
    assert torch.equal(model(IDS).logits, logits)
    assert model.config.to_dict() == config
    assert "save_pretrained" not in vars(model)
    with layers_shared(model, None) as nothing:
        assert nothing is None


def test_a_shared_model_that_is_lent_stays_shared() -> None:
    model = decoder()
    info = share_layers(model, 4)
    with layers_shared(model, 4):
        pass
    assert count_parameters(model) == info.parameters
    assert sharing_of(model) == {"group": 4, "groups": [[3, 4, 5]]}


def test_unsharing_gives_each_layer_its_own_weights_to_merge_into(tmp_path: Path) -> None:
    model = decoder()
    share_layers(model, 4)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    logits = adapted(IDS).logits
    plain = adapted.unload()
    unshare_layers(plain)
    assert count_parameters(plain) == count_parameters(decoder())
    assert sharing_of(plain) is None
    merged = PeftModel.from_pretrained(plain, tmp_path / "adapter").merge_and_unload()
    torch.testing.assert_close(merged(IDS).logits, logits, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(again(IDS).logits, logits, rtol=1e-4, atol=1e-4)


def test_a_plain_load_finds_no_weights_instead_of_random_layers(tmp_path: Path) -> None:
    model = decoder()
    share_layers(model, 4)
    model.save_pretrained(tmp_path)
    for load in (hf.AutoModelForCausalLM, hf.LlamaForCausalLM, hf.AutoModel):
        with pytest.raises(OSError, match=r"no file named model\.safetensors"):
            load.from_pretrained(tmp_path)


def test_saving_over_another_models_weights_is_refused(tmp_path: Path) -> None:
    decoder().save_pretrained(tmp_path)
    model = decoder()
    share_layers(model, 4)
    with pytest.raises(OutputError, match=r"holds the weights of another model \(model\.safetensors\)"):
        model.save_pretrained(tmp_path)


def test_sharded_files_and_16_bits(tmp_path: Path) -> None:
    model = decoder()
    info = share_layers(model, 4)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert stored_numbers(tmp_path) == info.parameters
    assert torch.equal(load_shared(tmp_path)(IDS).logits, model(IDS).logits)
    half = load_shared(tmp_path, dtype=torch.bfloat16)
    assert (half.dtype, count_parameters(half)) == (torch.bfloat16, info.parameters)


def test_copies_and_casts_stay_shared(tmp_path: Path) -> None:
    model = decoder()
    info = share_layers(model, 4)
    copied = copy.deepcopy(model)
    pickled = pickle.loads(pickle.dumps(model))  # noqa: S301 - our own bytes
    for each in (copied, pickled, copy.deepcopy(model).to(torch.float64)):
        assert count_parameters(each) == info.parameters
    copied.model.layers[0].mlp.up_proj.weight.data.zero_()
    copied.save_pretrained(tmp_path)
    assert not load_shared(tmp_path).model.layers[0].mlp.up_proj.weight.any()


def test_loading_leaves_no_trace_and_missing_weights_are_named(tmp_path: Path) -> None:
    model = decoder()
    share_layers(model, 4)
    model.save_pretrained(tmp_path)
    state = torch.get_rng_state()
    load_shared(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    from safetensors.torch import load_file, save_file

    (path,) = tmp_path.glob("*.safetensors")
    weights = load_file(path)
    del weights["model.layers.3.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights, such as model\.layers\.3\.mlp\.up_proj\.weight"):
        load_shared(tmp_path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ModelError, match="cannot load the shared model"):
        load_shared(tmp_path)


@pytest.mark.parametrize("entry", [4, {"group": 4}, {"group": 2, "groups": [[6, 9]]}])
def test_a_damaged_configuration_is_refused(tmp_path: Path, entry: Any) -> None:
    model = decoder()
    share_layers(model, 4)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    write_json(tmp_path / "config.json", {**config, CONFIG_KEY: entry})
    with pytest.raises(ModelError, match=CONFIG_KEY):
        load_shared(tmp_path)


def test_the_loader_ties_again_and_shares_on_request(tmp_path: Path) -> None:
    plain, shared = tmp_path / "plain", tmp_path / "shared"
    model = decoder(vocab_size=260)
    model.save_pretrained(plain)
    info = share_layers(model, 4)
    model.save_pretrained(shared)
    for folder in (plain, shared):
        make_tokenizer().save_pretrained(folder)
    assert not is_shared_folder(plain)
    for loaded, _ in (load_model_and_tokenizer(shared), load_model_and_tokenizer(plain, share=4)):
        assert (count_parameters(loaded), fingerprint(loaded)) == (info.parameters, fingerprint(model))
        assert not loaded.training
        assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert load_model_and_tokenizer(plain)[0].config.to_dict().get(CONFIG_KEY) is None
    with pytest.raises(ModelError, match="share in groups of 4 already"):
        load_model_and_tokenizer(shared, share=2)
    with pytest.raises(InputError, match="unknown dtype 'int3'"):
        load_model_and_tokenizer(shared, dtype="int3")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (shared / name).unlink()
    with pytest.raises(ModelError, match="cannot load the tokenizer"):
        load_model_and_tokenizer(shared)


def test_retie_after_the_weights_were_replaced() -> None:
    model = decoder()
    info = share_layers(model, 4)
    layer = model.model.layers[4].mlp.up_proj
    layer.weight = torch.nn.Parameter(torch.zeros_like(layer.weight))
    assert count_parameters(model) > info.parameters
    found = retie(model)
    assert found is not None
    assert (found.parameters, found.groups) == (info.parameters, info.groups)
    assert retie(decoder()) is None


def test_adapter_of_a_shared_base_is_refused_on_another(tmp_path: Path) -> None:
    model = decoder()
    share_layers(model, 4)
    adapter = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapter.save_pretrained(tmp_path)
    write_json(tmp_path / "lorascope.json", adapter_record(adapter, share=4))
    logits = adapter(IDS).logits
    with pytest.raises(AdapterError, match=r"shared in groups of 4, and here .* groups of 1: call share_layers"):
        attach_adapter(decoder(), tmp_path)
    base = decoder()
    share_layers(base, 4)
    assert torch.equal(attach_adapter(base, tmp_path)(IDS).logits, logits)


def test_information_is_frozen() -> None:
    info = share_layers(decoder(), 4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.group = 2  # type: ignore[misc]
