"""Elastic adapters: the formula, what is trained first, saved and loaded again, refused by PEFT alone, and folded."""

import copy
import json
import math
import subprocess
import sys
import warnings

import pytest
import torch
from peft import EvaConfig, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    MixtralConfig,
)

from lorascope.adapters import (
    ElasticLoraConfig,
    attach_adapter,
    elastic_parameter_groups,
    fold_adapter,
    read_adapter_config,
    support_quantised,
)
from lorascope.adapters._elastic import add_pooling
from lorascope.adapters.elastic import betas
from lorascope.adapters.fold import fold_weights
from lorascope.core.errors import AdapterError, OutputError
from lorascope.quantization import ICQConfig, IcqLinear

pytestmark = pytest.mark.filterwarnings("ignore:Merge lora module to 4-bit")
SMALL = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
IDS = torch.arange(12)[None]
VARIANTS = [{}, {"use_rslora": True}, {"use_dora": True}, {"lora_dropout": 0.3}, {"r": 5}]


@pytest.fixture
def base():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(LlamaConfig(**SMALL, max_position_embeddings=32)).eval()


def elastic(model, seed=1, **options):
    """An elastic adapter whose every part is random."""
    config = ElasticLoraConfig(**({"r": 8, "target_modules": "all-linear"} | options))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
        adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return adapted.eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def by_definition(x, weight, beta):
    """x W^T + beta rep(mean(x)), from the words of the paper."""
    rows, columns = weight.shape
    groups = math.gcd(rows, columns)
    means = [
        sum(x[columns // groups * i + j] for j in range(columns // groups)) / (columns // groups) for i in range(groups)
    ]
    repeated = torch.stack([mean for mean in means for _ in range(rows // groups)])
    return weight @ x + beta * repeated


@pytest.mark.parametrize("shape", [(4, 12), (5, 48), (6, 9), (48, 8), (80, 5), (7, 7)])
def test_the_pooled_factor_is_the_connection(shape):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = torch.randn(shape[1], generator=generator, dtype=torch.float64)
    beta = torch.tensor(0.7, dtype=torch.float64)
    found = add_pooling(weight, beta) @ x
    torch.testing.assert_close(found, by_definition(x, weight, beta), rtol=0, atol=1e-13)


def test_a_new_adapter_changes_nothing_and_trains_b_and_beta2_first(base):
    before = logits(base)
    model = get_peft_model(base, ElasticLoraConfig(r=8, target_modules="all-linear"))
    assert torch.equal(logits(model.eval()), before)
    model(input_ids=IDS, labels=IDS).loss.backward()
    moving = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert len(moving) == 28 and all(".lora_B." in name for name in moving)
    assert sum(name.endswith("beta") for name in moving) == 14


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_save_and_load_again(base, options, tmp_path):
    model = elastic(copy.deepcopy(base), **options)
    here = logits(model)
    assert (here - logits(base)).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    assert isinstance(read_adapter_config(tmp_path), ElasticLoraConfig)
    for name in ("default", "other"):
        again = attach_adapter(copy.deepcopy(base), tmp_path, name=name)
        assert torch.equal(logits(again), here)
    assert len(betas(again)) == 28


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_folded_it_is_an_ordinary_adapter_with_the_same_outputs(base, options, tmp_path):
    model = elastic(copy.deepcopy(base), **options)
    model.save_pretrained(tmp_path / "elastic")
    fold_adapter(tmp_path / "elastic", tmp_path / "plain")
    config = LoraConfig.from_pretrained(tmp_path / "plain")
    assert type(config) is LoraConfig and config.r == model.peft_config["default"].r
    plain = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "plain").eval()
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-5, atol=1e-6)
    merged = copy.deepcopy(model).merge_and_unload()
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-4, atol=1e-5)


def test_folding_in_float64_is_exact(base, tmp_path):
    model = elastic(base.double(), r=6)
    model.save_pretrained(tmp_path)
    for module in [m for m in model.modules() if isinstance(m, LoraLinear)]:
        x = torch.randn(3, module.in_features, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        a, b = module.lora_A["default"], module.lora_B["default"]
        inner = torch.stack([by_definition(row, original(a), strength(a)) for row in x])
        outer = torch.stack([by_definition(row, original(b), strength(b)) for row in inner])
        assert (b(a(x)) - outer).abs().max() < 1e-13
    state = load_file(tmp_path / "adapter_model.safetensors")
    folded = fold_weights(state)
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_{}.weight"
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    update = folded[name.format("B")] @ folded[name.format("A")] * layer.scaling["default"]
    assert (update - layer.get_delta_weight("default")).abs().max() < 1e-10


def original(factor):
    return factor.parametrizations.weight.original


def strength(factor):
    return factor.parametrizations.weight[0].beta.reshape(())


def test_dropout_drops_only_what_goes_through_a(base):
    model = elastic(base, lora_dropout=0.5).train()
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    layer.lora_A["default"].parametrizations.weight.original.data.zero_()
    x = torch.randn(4, 48, generator=torch.Generator().manual_seed(0))
    model.eval()
    expected = layer(x)
    model.train()
    for _ in range(3):  # only the connection is left, and it drops nothing
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("dora", [False, True])
def test_dropout_changes_no_mean_and_leaves_the_connection_alone(dora):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(
            nn.Sequential(nn.Linear(12, 8)),
            ElasticLoraConfig(r=4, target_modules=["0"], use_dora=dora, lora_dropout=0.5),
        )
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.3 * torch.randn(parameter.shape))
        x = torch.randn(12, 12)  # as many rows as inputs: DoRA's own look at the weight has this shape too
        with torch.no_grad():
            outputs = torch.stack([model.train()(x) for _ in range(2000)]).double()
            expected = model.eval()(x)
    error = outputs.std(dim=0) / len(outputs) ** 0.5
    assert ((outputs.mean(dim=0) - expected).abs() / error.clamp_min(1e-6)).max() < 5


def test_plain_peft_refuses_it(base, tmp_path):
    base.save_pretrained(tmp_path / "base")
    elastic(base).save_pretrained(tmp_path / "adapter")
    script = (
        "import sys; from peft import PeftModel; from transformers import AutoModelForCausalLM\n"
        f"base = AutoModelForCausalLM.from_pretrained({str(tmp_path / 'base')!r})\n"
        "assert not any(name.startswith('lorascope') for name in sys.modules); print('base is there')\n"
        f"PeftModel.from_pretrained(base, {str(tmp_path / 'adapter')!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "base is there" in done.stdout and done.returncode != 0 and "LORASCOPE_ELASTIC_LORA" in done.stderr


@pytest.mark.parametrize("options", [{}, {"r": 1}, {"elastic_target": False}, {"elastic_source": False}])
def test_it_is_never_read_as_an_ordinary_adapter(base, options, tmp_path):
    made = elastic(copy.deepcopy(base), target_modules=TARGETS, **options)
    made.save_pretrained(tmp_path)
    ordinary = LoraConfig(r=options.get("r", 8), target_modules=TARGETS)
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, config=ordinary)


@pytest.mark.parametrize(("source", "target", "count"), [(True, False, 14), (False, True, 14), (True, True, 28)])
def test_one_connection_or_both(base, source, target, count, tmp_path):
    model = elastic(copy.deepcopy(base), elastic_source=source, elastic_target=target)
    assert len(betas(model)) == count
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(attach_adapter(base, tmp_path)), logits(model))


def test_strengths_learn_at_their_own_rate(base):
    model = elastic(base)
    groups = elastic_parameter_groups(model, learning_rate=1e-4, elastic_learning_rate=1e-2, weight_decay=0.1)
    assert [len(group["params"]) for group in groups] == [28, 28]
    before = [beta.item() for beta in betas(model).values()]
    optimizer = torch.optim.AdamW(groups)
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    moved = [abs(beta.item() - b) for beta, b in zip(betas(model).values(), before, strict=True)]
    assert all(abs(m - 1e-2) < 1e-3 for m in moved)


def test_gpt2_has_its_weights_the_other_way_round(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = GPT2LMHeadModel(GPT2Config(n_embd=48, n_layer=2, n_head=4, vocab_size=64, n_positions=32)).eval()
    model = elastic(copy.deepcopy(base), fan_in_fan_out=True)
    model.save_pretrained(tmp_path / "e")
    fold_adapter(tmp_path / "e", tmp_path / "p")
    plain = PeftModel.from_pretrained(base, tmp_path / "p").eval()
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-5, atol=1e-6)


@pytest.fixture
def quantised(base, tmp_path):
    base.save_pretrained(tmp_path / "dense")
    return AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=ICQConfig(n=2)).eval()


TARGETS = ["q_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize("kind", [LoraConfig, ElasticLoraConfig])
@pytest.mark.parametrize("variant", [{"use_rslora": True}, {"use_dora": True}, {"use_dora": True, "lora_dropout": 0.1}])
def test_on_a_base_quantised_by_icq(quantised, kind, variant, tmp_path):
    before = logits(quantised)
    config = kind(r=8, target_modules=TARGETS, **variant)
    config = config if kind is ElasticLoraConfig else support_quantised(config)
    model = get_peft_model(copy.deepcopy(quantised), config).eval()
    assert torch.equal(logits(model), before)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(6):
        loss = model(input_ids=IDS, labels=IDS).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.05
    assert sum(isinstance(m, IcqLinear) for m in model.modules()) == 14
    here = logits(model.eval())
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(attach_adapter(copy.deepcopy(quantised), tmp_path / "adapter")), here)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    with pytest.raises(AdapterError, match="cannot be merged into quantised weights"):
        model.merge_adapter()
    dense = attach_adapter(quantised.dequantize(), tmp_path / "adapter", any_base=True)
    torch.testing.assert_close(logits(dense.merge_and_unload()), here, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_on_a_base_quantised_by_bitsandbytes(dora, tmp_path):
    # On processors with bfloat16 instructions bitsandbytes takes only widths that are multiples of 64.
    config = LlamaConfig(**SMALL | {"hidden_size": 64, "intermediate_size": 128}, max_position_embeddings=32)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    small = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config).eval()
    before = logits(small)
    model = elastic(small, target_modules=["up_proj"], use_dora=dora)
    assert len(betas(model)) == 4 and (logits(model) - before).abs().max() > 1e-4
    assert type(model.base_model.model.model.layers[0].mlp.up_proj).__name__ == "ElasticLinear4bit"


def test_what_changes_the_dense_weight_is_refused_on_codes(quantised):
    with pytest.raises(AdapterError, match="'pissa' takes a part off the base weight"):
        get_peft_model(quantised, support_quantised(LoraConfig(r=4, target_modules=TARGETS, init_lora_weights="pissa")))


def test_layers_without_two_matrices_are_refused(base):
    with pytest.raises(AdapterError, match="Embedding is none"):
        get_peft_model(base, ElasticLoraConfig(r=4, target_modules=["embed_tokens"]))
    with pytest.raises(AdapterError, match="leave out target_parameters"):
        ElasticLoraConfig(r=4, target_parameters=["mlp.experts.gate_up_proj"])


def test_a_second_adapter_of_the_other_kind(base):
    model = elastic(copy.deepcopy(base))
    model.add_adapter("plain", LoraConfig(r=4, target_modules="all-linear"))
    assert not any(".plain." in name for name in betas(model))
    other = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="unsupported variant"):
        other.add_adapter("elastic", ElasticLoraConfig(r=4, target_modules=["q_proj"]))


@pytest.mark.parametrize("combination_type", ["linear", "cat", "svd"])
def test_weighted_sums_with_peft(base, combination_type):
    model = elastic(base)
    model.add_adapter("plain", LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False))
    with pytest.raises(AdapterError, match="fold the adapters first"):
        model.add_weighted_adapter(["default", "plain"], [1.0, 0.0], "sum", combination_type=combination_type)
    assert set(model.peft_config) == {"default", "plain"}
    # A plain one first, and PEFT makes a plain one, from the elastic one's factors as they act.
    model.add_weighted_adapter(["plain", "default"], [0.0, 1.0], "sum", combination_type=combination_type)
    expected = logits(model)
    model.set_adapter("sum")
    assert not any(".sum." in name for name in betas(model))
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)


def test_bad_input(base, tmp_path):
    get_peft_model(copy.deepcopy(base), LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(tmp_path / "plain")
    with pytest.raises(AdapterError, match="nothing to fold"):
        fold_adapter(tmp_path / "plain", tmp_path / "out")
    elastic(base).save_pretrained(tmp_path / "elastic")
    with pytest.raises(OutputError, match="not empty"):
        fold_adapter(tmp_path / "elastic", tmp_path / "plain")
    with pytest.raises(AdapterError, match="no adapter at"):
        fold_adapter(tmp_path / "nothing", tmp_path / "out")
    weights = tmp_path / "elastic" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(AdapterError, match="interrupted or not safetensors"):
        fold_adapter(tmp_path / "elastic", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "elastic" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORASCOPE_ELASTIC_LORA", "r": "x"})
    )
    with pytest.raises(AdapterError):
        fold_adapter(tmp_path / "elastic", tmp_path / "out")


def test_the_doctor_reads_it_as_what_it_folds_into(base, tmp_path):
    from lorascope.adapters.doctor import examine_adapter

    model = elastic(copy.deepcopy(base))
    model.save_pretrained(tmp_path / "e")
    fold_adapter(tmp_path / "e", tmp_path / "p")
    found, plain = (examine_adapter(tmp_path / name) for name in "ep")
    assert [f for f in found if f.check == "unused rank"] == [f for f in plain if f.check == "unused rank"]
    assert [f.remedy for f in found if f.check == "kind"] == ["lorascope fold makes it ordinary"]
    assert not any(f.severity == "error" for f in found)


def test_another_base_than_the_one_it_was_trained_on(quantised, base, tmp_path):
    from lorascope.adapters import adapter_record

    model = get_peft_model(quantised, support_quantised(LoraConfig(r=4, target_modules=TARGETS)))
    model.save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "lorascope.json").write_text(json.dumps(adapter_record(model.unload())))
    with pytest.warns(UserWarning, match="trained on ICQ nf4 .* used on weights that are not quantised"):
        attach_adapter(base, tmp_path / "a")


def test_another_base_is_noticed_without_a_record(quantised, base, tmp_path):
    made = elastic(copy.deepcopy(quantised), target_modules=TARGETS)
    made.save_pretrained(tmp_path / "a")
    assert read_adapter_config(tmp_path / "a").elastic_base == "ICQ codes nf4 in blocks of 64"
    made.add_adapter("second", ElasticLoraConfig(r=4, target_modules=TARGETS))
    assert made.peft_config["second"].elastic_base == "ICQ codes nf4 in blocks of 64"
    here = logits(attach_adapter(copy.deepcopy(quantised), tmp_path / "a"))  # no warning: warnings are errors
    with pytest.warns(UserWarning, match="trained on ICQ codes nf4 in blocks of 64 and is used on dense weights"):
        attach_adapter(copy.deepcopy(base), tmp_path / "a")
    attach_adapter(copy.deepcopy(base), tmp_path / "a", any_base=True)
    fold_adapter(tmp_path / "a", tmp_path / "f")
    assert "elastic" not in (tmp_path / "f" / "adapter_config.json").read_text()
    torch.testing.assert_close(logits(attach_adapter(quantised, tmp_path / "f")), here, rtol=0, atol=1e-5)


def test_a_start_that_peft_writes_past_the_connection_is_refused():
    with pytest.raises(AdapterError, match="'eva' would leave the factors"):
        ElasticLoraConfig(r=4, init_lora_weights="eva", eva_config=EvaConfig())


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_a_start_that_moves_the_base_is_refused(start):
    with pytest.raises(AdapterError, match=f"'{start}' moves a part of the base"):
        ElasticLoraConfig(r=4, init_lora_weights=start)


def test_fused_experts_are_refused():
    config = MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=4, max_position_embeddings=32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    assert any(p.dim() == 3 for p in model.parameters())
    with pytest.raises(AdapterError, match="target_parameters"):
        get_peft_model(
            model, ElasticLoraConfig(r=4, target_modules=["q_proj"], target_parameters=["experts.down_proj"])
        )


def damage(folder, change):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t, key: t.pop(key.replace(".weight", ".elastic_beta")), "is missing in the file"),
        (lambda t, key: t.update({key: t[key].flatten()}), "the file is damaged"),
        (lambda t, key: t.pop(key.replace("_A", "_B")), "lora_A.weight' of rank 8 has no partner"),
        (lambda t, key: t.update({key: t[key][:, :7].clone()}), "has no partner of that rank"),
        (lambda t, key: t.update({key.replace(".weight", ".elastic_beta"): torch.ones(3)}), "3 strengths"),
    ],
)
def test_damaged_files_are_not_folded(base, change, said, tmp_path):
    elastic(base).save_pretrained(tmp_path / "e")
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    damage(tmp_path / "e", lambda tensors: change(tensors, key))
    with pytest.raises(AdapterError, match=said):
        fold_adapter(tmp_path / "e", tmp_path / "f")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e"]


def test_a_configuration_may_be_used_twice(quantised, base, tmp_path):
    config = ElasticLoraConfig(r=4, target_modules=TARGETS)
    get_peft_model(copy.deepcopy(base), config)
    get_peft_model(copy.deepcopy(quantised), config).save_pretrained(tmp_path)
    assert read_adapter_config(tmp_path).elastic_base == "ICQ codes nf4 in blocks of 64"
    attach_adapter(quantised, tmp_path)  # no warning: warnings are errors


@pytest.mark.parametrize("kind", ["dense", "codes"])
def test_other_values_of_the_same_kind_are_noticed(quantised, base, kind, tmp_path):
    made = quantised if kind == "codes" else base
    elastic(copy.deepcopy(made), target_modules=TARGETS).save_pretrained(tmp_path / "a")
    attach_adapter(copy.deepcopy(made), tmp_path / "a")
    if kind == "codes":
        other = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=ICQConfig(objective="mse"))
    else:
        other = copy.deepcopy(base)
        with torch.no_grad():
            other.model.layers[0].self_attn.q_proj.weight.add_(1.0)  # the first layer of several
    with pytest.warns(UserWarning, match="of other values: it corrects errors of another base"):
        attach_adapter(other, tmp_path / "a")


def test_betas_of_a_plain_module():
    assert betas(nn.Linear(2, 2)) == {}
