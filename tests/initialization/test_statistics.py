from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.data import DataLoader
from transformers.modeling_outputs import SequenceClassifierOutput

from lorascope.core.errors import DataError, InputError, ModelError
from lorascope.initialization import NEEDS, SampleOptions, collect_statistics
from lorascope.initialization._loss import loss_terms
from lorascope.initialization.accumulators import SymmetricSum
from lorascope.initialization.spectrum import sketch_sharpness, spectrum_of_sketch
from tests.initialization.reference import matrices, reference, relative, summed


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit"])
def test_agrees_with_autograd(name: str, fresh: Any, batches: Any) -> None:
    data = batches(name)
    found = collect_statistics(fresh(name), data, need=NEEDS, progress=False)
    truth = reference(fresh(name), data, summed)
    assert found.layers.keys() == truth.keys()
    for layer, statistics in found.layers.items():
        assert statistics.tokens == int(truth[layer]["tokens"])
        for kind, matrix in matrices(statistics).items():
            assert relative(matrix, truth[layer][kind]) < 1e-5, (layer, kind)
        assert statistics.fisher_trace == pytest.approx(float(truth[layer]["input_fisher"].trace()), rel=1e-5)
        assert statistics.input_energy == pytest.approx(float(truth[layer]["input"].trace()), rel=1e-5)
        assert statistics.gradient_energy == pytest.approx(float(truth[layer]["output"].trace()), rel=1e-5)


class Classifier(nn.Module):
    """Two layers without biases whose rows are samples, as an independent library knows them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 4, bias=False), nn.Linear(4, 3, bias=False)

    def forward(self, pixel_values: torch.Tensor) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=self.second(torch.tanh(self.first(pixel_values))))


class Plain(nn.Module):
    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x).logits


def small() -> tuple[Classifier, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Classifier()
    return model, torch.randn(12, 5, generator=generator), torch.randint(0, 3, (12,), generator=generator)


@pytest.mark.filterwarnings("ignore")
def test_agrees_with_curvlinops() -> None:
    import curvlinops  # its imports warn

    model, x, y = small()
    plain = Plain(model)
    params = [p for p in plain.parameters()]
    loss = nn.CrossEntropyLoss(reduction="sum")
    fisher = curvlinops.EFLinearOperator(plain.double(), loss, params, [(x.double(), y)], check_deterministic=False)
    full = torch.as_tensor(fisher @ torch.eye(fisher.shape[1], dtype=torch.float64)) / len(x)
    kfac = curvlinops.KFACLinearOperator(
        plain, loss, params, [(x.double(), y)], check_deterministic=False, fisher_type="empirical"
    )
    kfac.compute_kronecker_factors()
    plain.float()
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["first", "second"]))
    found = collect_statistics(adapted, [{"pixel_values": x, "labels": y}], need=NEEDS, progress=False)
    start = 0
    for name, rows, columns in (("first", 4, 5), ("second", 3, 4)):
        made = matrices(found.layers[name])
        size = rows * columns
        block = full[start : start + size, start : start + size].reshape(rows, columns, rows, columns)
        start += size
        assert relative(made["input_fisher"], torch.einsum("oioj->ij", block)) < 1e-5
        assert relative(made["output_fisher"], torch.einsum("oipi->op", block)) < 1e-5
        assert relative(made["input"], kfac._input_covariances[f"model.{name}"]) < 1e-5
        assert relative(made["output"], kfac._gradient_covariances[f"model.{name}"] / len(x)) < 1e-5


def test_true_fisher_approaches_the_expectation_over_the_models_labels() -> None:
    model, x, _ = small()
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["second"]))
    batch = {"pixel_values": x}
    draws = [batch] * 400
    found = collect_statistics(
        adapted,
        draws,
        need=("output", "mean_gradient"),
        fisher="true",
        generator=torch.Generator().manual_seed(3),
        progress=False,
    )
    with torch.no_grad():
        p = torch.softmax(model(x).logits, -1)
        truth = (torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)).mean(0)
    made = found.layers["second"]
    assert made.output is not None and made.mean_gradient is not None
    assert relative(made.output.sum / made.tokens, truth.double()) < 0.03
    assert float(made.mean_gradient.matrix(made.tokens).abs().max()) < 0.02


def test_drawn_labels_follow_the_generator_and_not_the_passes(fresh: Any, batches: Any) -> None:
    def once(seed: int, memory: int | None = None) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        found = collect_statistics(
            fresh(), batches(), fisher="true", generator=generator, max_memory=memory, progress=False
        )
        assert memory is None or found.counts["passes"] > 1
        return found.layers["model.layers.1.mlp.down_proj"].input_fisher.sum

    assert torch.equal(once(1), once(1))
    assert not torch.equal(once(1), once(2))
    assert torch.allclose(once(1), once(1, 20000), rtol=1e-6)


def test_shards_add_up_to_one_shot(fresh: Any, batches: Any) -> None:
    data = batches(count=4)
    model = fresh()
    whole = collect_statistics(model, data, need=NEEDS, progress=False)
    shards = [collect_statistics(model, part, need=NEEDS, progress=False) for part in (data[:1], data[1:])]
    for name, statistics in whole.layers.items():
        for kind in NEEDS:
            parts = [list(getattr(shard.layers[name], kind).tensors()) for shard in shards]
            for together, *apart in zip(getattr(statistics, kind).tensors(), *parts, strict=True):
                assert torch.allclose(together, sum(apart), rtol=1e-5, atol=1e-6 * float(together.abs().max()))


def test_layers_that_share_an_input_share_its_factor(fresh: Any, batches: Any) -> None:
    found = collect_statistics(fresh(), batches(), need=("input",), progress=False).layers
    q, k, v = (found[f"model.layers.0.self_attn.{p}_proj"].input for p in "qkv")
    gate, up = (found[f"model.layers.0.mlp.{p}_proj"].input for p in ("gate", "up"))
    assert q is k is v and gate is up and q is not gate


def test_padding_and_the_size_of_batches_do_not_count(fresh: Any, batches: Any) -> None:
    model = fresh()
    data = batches(count=2, padded=False)
    rows = {key: torch.cat([batch[key] for batch in data]) for key in data[0]}
    wide = {
        "input_ids": nn.functional.pad(rows["input_ids"], (0, 5), value=0),
        "attention_mask": nn.functional.pad(rows["attention_mask"], (0, 5), value=0),
        "labels": nn.functional.pad(rows["labels"], (0, 5), value=-100),
    }
    a = collect_statistics(model, data, need=NEEDS, progress=False)
    b = collect_statistics(model, [wide], need=NEEDS, progress=False)
    assert a.counts["tokens"] == b.counts["tokens"]
    for name in a.layers:
        for kind, matrix in matrices(a.layers[name]).items():
            assert torch.allclose(matrix, matrices(b.layers[name])[kind], rtol=1e-4, atol=1e-7)


def test_padding_on_the_left_counts_as_little_also_where_it_predicts_the_first_token(fresh: Any, batches: Any) -> None:
    """Whose label transformers would count, although nothing but padding says it."""
    model = fresh()
    (batch,) = batches(count=1, padded=False)
    plain = {**batch, "labels": batch["input_ids"]}
    left = {key: nn.functional.pad(value, (4, 0), value=-100 if key == "labels" else 0) for key, value in plain.items()}
    a = collect_statistics(model, [plain], need=NEEDS, progress=False)
    b = collect_statistics(model, [left], need=NEEDS, progress=False)
    assert a.counts["terms"] == b.counts["terms"]
    for name in a.layers:
        for kind, matrix in matrices(a.layers[name]).items():
            assert torch.allclose(matrix, matrices(b.layers[name])[kind], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:None of the inputs")
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_gradient_checkpointing_changes_nothing(reentrant: bool, fresh: Any, batches: Any) -> None:
    plain = collect_statistics(fresh(), batches(), need=NEEDS, progress=False)
    model = fresh()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.train()
    forwards = []
    layer = model.get_base_model().model.layers[0].mlp
    handle = layer.register_forward_pre_hook(lambda *_: forwards.append(1))
    found = collect_statistics(model, batches(), need=NEEDS, progress=False)
    handle.remove()
    assert len(forwards) == 6, "every layer runs again in the backward pass"
    assert model.training
    for name in plain.layers:
        for kind, matrix in matrices(plain.layers[name]).items():
            assert torch.allclose(matrix, matrices(found.layers[name])[kind], rtol=1e-5, atol=1e-9)


def test_the_model_is_left_as_it_was(fresh: Any, batches: Any) -> None:
    model = fresh(lora_dropout=0.5)
    model.train()
    model.get_base_model().model.layers[0].eval()
    frozen = next(p for n, p in model.named_parameters() if "lora_A" in n)
    frozen.requires_grad_(False)
    before = {n: (p.detach().clone(), p.requires_grad) for n, p in model.named_parameters()}
    modes = {n: m.training for n, m in model.named_modules()}
    state = torch.get_rng_state()
    collect_statistics(model, batches(), need=NEEDS, progress=False)
    assert {n: m.training for n, m in model.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0]) and parameter.requires_grad == before[name][1]
        assert parameter.grad is None
    assert not any(m._forward_hooks for m in model.modules())
    assert model.config.use_cache


def test_frozen_adapters_and_either_mode_give_the_same(fresh: Any, batches: Any) -> None:
    plain = collect_statistics(fresh(lora_dropout=0.3), batches(), progress=False)
    model = fresh(lora_dropout=0.3)
    model.requires_grad_(False).train()
    found = collect_statistics(model, batches(), progress=False)
    for name in plain.layers:
        assert torch.equal(plain.layers[name].input_fisher.sum, found.layers[name].input_fisher.sum)


def test_energy_of_samples(fresh: Any, batches: Any) -> None:
    data = batches(count=2)
    model = fresh()
    name = "model.layers.1.mlp.down_proj"
    v = torch.linalg.qr(torch.randn(24, 3, generator=torch.Generator().manual_seed(0))).Q
    found = collect_statistics(model, data, need=(), samples=SampleOptions(embedding=2500), progress=False)
    inside = collect_statistics(model, data, need=(), samples=SampleOptions(subspaces={name: v}), progress=False)
    assert found.samples is not None and inside.samples is not None
    assert inside.samples.layers == (name,) and found.samples.energy.shape == (6, 14)
    module = dict(model.named_modules())[f"base_model.model.{name}"]
    weight = module.base_layer.weight.requires_grad_()
    column = found.samples.layers.index(name)
    for row in range(6):
        one = {key: value[row % 3 : row % 3 + 1] for key, value in data[row // 3].items()}
        model.zero_grad()
        loss = summed(model, one)
        loss.backward()
        assert found.samples.energy[row, column] == pytest.approx(float(weight.grad.square().sum()), rel=1e-4)
        assert inside.samples.energy[row, 0] == pytest.approx(float((weight.grad @ v).square().sum()), rel=1e-4)
        assert found.samples.loss_nats[row] == pytest.approx(float(loss.detach()), rel=1e-5)
    truth, estimates = found.samples.energy.sum(1), []
    for seed in range(12):
        again = collect_statistics(
            model, data, need=(), samples=SampleOptions(embedding=2500), seed=seed, progress=False
        )
        assert again.samples is not None and again.samples.embedding is not None
        estimates.append(again.samples.embedding.double().square().sum(1))
    assert torch.allclose(torch.stack(estimates).mean(0), truth, rtol=0.25), "right on average over projections"


def test_bad_data_ends_in_one_line(fresh: Any, batches: Any) -> None:
    model = fresh()
    masked = [{**batch, "labels": torch.full_like(batch["labels"], -100)} for batch in batches()]
    cases: list[tuple[Any, type[Exception], str, dict[str, Any]]] = [
        ([], InputError, "no data", {}),
        (iter([]), InputError, "no data", {}),
        (masked, InputError, "no label counts", {}),
        ([torch.ones(2)], InputError, "batch 1 is of type Tensor", {}),
        ("towns", InputError, "data of type str", {}),
        ([{"input_ids": torch.tensor([[1, 999]])}], InputError, "outside its vocabulary", {}),
        (batches(), InputError, "unknown statistic 'inputs': did you mean 'input'", {"need": ("inputs",)}),
        (batches(), InputError, "unknown fisher", {"fisher": "mc"}),
        (batches(), InputError, "max_batches=0", {"max_batches": 0}),
        (batches(), InputError, "max_memory of 10 bytes is too little", {"max_memory": 10}),
        (batches(), InputError, "no amount of memory", {"max_memory": "3s"}),
        (batches(), InputError, "unknown layer", {"layers": ["nowhere"]}),
        (iter(batches()), InputError, "can be read once only", {"max_memory": 20000}),
        ([{**batches()[0], "labels": torch.full((3, 7), 70)}], InputError, "do not fit 64 classes", {}),
    ]
    for data, kind, text, options in cases:
        with pytest.raises(kind, match=text) as caught:
            collect_statistics(model, data, progress=False, **options)
        assert "\n" not in str(caught.value)


def test_nan_is_refused_by_name(fresh: Any, batches: Any) -> None:
    model = fresh()
    with torch.no_grad():
        model.get_base_model().model.layers[1].mlp.down_proj.base_layer.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="the loss of batch 1 is nan"):
        collect_statistics(model, batches(), progress=False)

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(_ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(_ctx: Any, g: torch.Tensor) -> torch.Tensor:
            return g * float("nan")

    model = fresh()
    layer = model.get_base_model().model.layers[1]
    layer.register_forward_hook(lambda _m, _a, output: Broken.apply(output))
    with pytest.raises(ModelError, match=r"gradients of layer 'model\.layers\.0\.self_attn\.q_proj' hold NaN"):
        collect_statistics(model, batches(), progress=False)


def test_part_of_the_data(fresh: Any, batches: Any) -> None:
    model, data = fresh(), batches()
    half = {**data[1], "labels": torch.full_like(data[1]["labels"], -100)}
    found = collect_statistics(model, [data[0], half], max_batches=5, progress=False)
    assert found.counts["batches"] == 1
    assert any("1 batches have no label" in note for note in found.warnings)
    assert any("ended after 2 batches of 5" in note for note in found.warnings)
    alone = collect_statistics(model, data[:1], progress=False)
    for name in alone.layers:
        assert torch.equal(alone.layers[name].input_fisher.sum, found.layers[name].input_fisher.sum)


def test_data_that_change_between_passes_are_refused(fresh: Any, batches: Any) -> None:
    data = batches(count=4)
    features = [{key: value[row] for key, value in batch.items()} for batch in data for row in range(3)]
    loader = DataLoader(features, batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(0))
    with pytest.raises(DataError, match="does not shuffle"):
        collect_statistics(fresh(), loader, max_memory=20000, progress=False)

    class Ending:
        def __init__(self) -> None:
            self.reads = 0

        def __iter__(self) -> Any:
            self.reads += 1
            return iter(data if self.reads < 3 else data[:2])

    with pytest.raises(DataError, match="ended after 2 batches"):
        collect_statistics(fresh(), Ending(), max_memory=20000, progress=False)


def test_sums_are_symmetric_and_not_negative() -> None:
    total = SymmetricSum(6, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(9, 6, generator=generator), torch.rand(9, generator=generator)
    total.update(x, w)
    assert torch.allclose(total.sum, total.sum.T)
    assert torch.allclose(total.sum, (x * w.unsqueeze(1)).T @ x, atol=1e-5)
    assert float(total.trace) == pytest.approx(float(total.sum.trace()), rel=1e-6)
    assert float(torch.linalg.eigvalsh(total.sum).min()) > -1e-5


@pytest.mark.parametrize(("slope", "shown", "held"), [(1.0, 0.93, 0.997), (0.5, 0.57, 0.91), (2.0, 1.0, 1.0)])
def test_what_a_sketch_shows_is_foretold_from_what_it_misses(slope: float, shown: float, held: float) -> None:
    values = torch.arange(1, 4097, dtype=torch.float64) ** -slope
    probe = torch.linalg.qr(torch.randn(4096, 256, generator=torch.Generator().manual_seed(1))).Q
    found = spectrum_of_sketch((values[:, None] * probe).float(), probe, trace=float(values.sum()))
    true = float(values[:16].sum())
    assert float(found.values[:16].sum()) / true == pytest.approx(shown, abs=0.02)
    assert sketch_sharpness(found, 16) == pytest.approx(shown, abs=0.06)
    vectors = found.vectors[:, :16].double()
    assert float((vectors.square() * values[:, None]).sum()) / true == pytest.approx(held, abs=0.01)


def test_numbers_to_predict_are_told_from_classes() -> None:
    logits, labels = (
        torch.tensor([[0.5, -1.0], [2.0, 0.0]]),
        torch.rand(2, 2, generator=torch.Generator().manual_seed(0)),
    )
    squares, _, _ = loss_terms(logits, labels, None, "regression")
    torch.testing.assert_close(squares, 0.5 * (logits - labels).square().sum(1))
    shares, _, _ = loss_terms(logits, labels, None)
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1)
    torch.testing.assert_close(shares, wanted)
    with pytest.raises(InputError, match="problem_type to 'regression'"):
        loss_terms(logits, labels + 1, None)
    with pytest.raises(InputError, match="give them as floats"):
        loss_terms(logits, torch.ones(2, 2, dtype=torch.long), None)
    one, _, _ = loss_terms(logits[:, :1], torch.tensor([1, 3]), None)
    torch.testing.assert_close(one, torch.tensor([0.125, 0.5]))
    yes, _, _ = loss_terms(logits[:, :1], torch.tensor([1, 0]), None, "multi_label_classification")
    torch.testing.assert_close(yes, torch.nn.functional.softplus(torch.tensor([-0.5, 2.0])))


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification", None])
def test_labels_that_are_drawn_are_of_the_models_kind_with_or_without_labels(problem: str | None) -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(5, dtype=torch.long) if problem is None else torch.zeros(5, 3)
    found = [loss_terms(logits, given, torch.Generator().manual_seed(1), problem)[0] for given in (labels, None)]
    torch.testing.assert_close(found[0], found[1])


def test_a_layer_that_a_part_of_the_tokens_is_sent_to_does_not_count_by_chance() -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.expert, self.dense = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 6)
            self.head = nn.Linear(6, 3)

        def forward(self, input_ids: torch.Tensor, **_: Any) -> SequenceClassifierOutput:
            x = self.dense(self.words(input_ids))
            chosen = input_ids == 7
            y = x.clone()
            y[chosen] = y[chosen] + self.expert(x[chosen])
            return SequenceClassifierOutput(logits=self.head(y.mean(1)))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(Routed(), LoraConfig(r=2, target_modules=["expert", "dense", "head"]))
    one = {"input_ids": torch.tensor([[7, 1, 2], [3, 4, 7]]), "labels": torch.tensor([0, 1])}  # as many as rows
    two = {"input_ids": torch.tensor([[7, 7, 2], [3, 4, 7]]), "labels": torch.tensor([0, 1])}
    found = collect_statistics(model, [one, two], progress=False)
    assert set(found.layers) == {"dense", "head"}
    assert any("1 adapted layers saw no token" in note for note in found.warnings)
    everything = {"input_ids": torch.full((2, 3), 7), "labels": torch.tensor([0, 1])}
    assert set(collect_statistics(model, [two, everything], progress=False).layers) == {"dense", "head"}
    assert len(collect_statistics(model, [everything], progress=False).layers) == 3
    with pytest.raises(ModelError, match="layer 'expert' gets a part of the tokens only"):
        collect_statistics(model, [one, two], samples=SampleOptions(), progress=False)
