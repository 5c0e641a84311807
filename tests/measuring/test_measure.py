"""What `measure` takes, counts, gives back and refuses."""

from __future__ import annotations

import json
import math

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

import lorascope
from lorascope.adapters import Component
from lorascope.core import InputError, ModelError
from lorascope.core.metrics import METRICS
from lorascope.information import mutual_information_bounds
from lorascope.measuring import measure
from lorascope.measuring.selection import Selection, select_tokens
from lorascope.measuring.state import LayerState, Options
from lorascope.results import AdapterMeasurement
from tests.measuring.architectures import adapted, batch_for
from tests.measuring.reference import js_rows, outputs_again


def features(count: int = 5) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(3)
    rows = []
    for i in range(count):
        ids = torch.randint(3, 64, (4 + i,), generator=generator).tolist()
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100, -100, *ids[2:]]})
    return rows


def same(a: AdapterMeasurement, b: AdapterMeasurement) -> bool:
    return a.totals == pytest.approx(b.totals, rel=1e-5) and a.counts == b.counts


def test_the_public_name_is_the_function() -> None:
    assert lorascope.measure is measure
    assert not hasattr(lorascope.measure, "__path__")  # a folder of that name would hide the function


def test_every_form_of_data_gives_the_same(tiny_tokenizer) -> None:
    model, rows = adapted("llama"), features()
    batches = [{key: torch.tensor([row[key]]) for key in ("input_ids", "attention_mask", "labels")} for row in rows]
    wanted = measure(model, batches, progress=False)
    assert wanted.counts == {"samples": 5, "tokens": 30, "components": 14}
    forms = [
        (batch for batch in batches),
        DataLoader(batches, batch_size=None),
        rows,
        Dataset.from_list(rows),
        Dataset.from_list(rows).with_format("torch"),
    ]
    for form in forms:
        got = measure(model, form, tokenizer=tiny_tokenizer, batch_size=2, progress=False)
        assert same(got, wanted)


def test_texts_rows_and_tasks_need_a_tokenizer_and_agree(tiny_tokenizer) -> None:
    model = adapted("llama")
    texts = ["a b c d", "b c", "d d d a b"]
    wanted = measure(model, texts, tokenizer=tiny_tokenizer, progress=False)
    rows = measure(model, [{"text": text} for text in texts], tokenizer=tiny_tokenizer, progress=False)
    assert same(rows, wanted)
    assert wanted.counts["samples"] == 3
    with pytest.raises(InputError, match="need a tokenizer"):
        measure(model, texts, progress=False)


@pytest.mark.parametrize("data", [[], "text", 3, {"input_ids": 1}, [3, 4]])
def test_data_that_is_none_is_refused(data: object) -> None:
    with pytest.raises(InputError):
        measure(adapted("llama"), data, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["miub"]}, "unknown metric 'miub'.*miub_js"),
        ({"metrics": []}, "no metric"),
        ({"variant": "both"}, "variant='both'.*local, base"),
        ({"tokens": "first"}, "tokens='first'"),
        ({"reduction": "max"}, "reduction='max'"),
        ({"components": "mean"}, "components='mean'"),
        ({"noise": 0.0}, "noise=0.0"),
        ({"joint_dim": 1}, "joint_dim=1"),
        ({"seed": True}, "seed=True: give a whole number"),
        ({"batch_size": True}, "batch_size=True"),
    ],
)
def test_options_are_checked(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure(adapted("llama"), [batch_for("llama")], progress=False, **options)


def test_inputs_that_the_model_cannot_take_are_explained() -> None:
    model, batch = adapted("gpt2"), batch_for("gpt2")
    for bad, words in (
        ({**batch, "input_ids": batch["input_ids"] + 60}, "outside its vocabulary"),
        ({**batch, "labels": batch["labels"] + 1000}, "label"),
        ({**batch, "labels": batch["labels"][:, 1:]}, "labels have shape"),
        ({**batch, "attention_mask": batch["attention_mask"][:, 1:]}, "attention_mask has shape"),
        ({**batch, "input_ids": batch["input_ids"].float()}, "input_ids of shape .* and type torch.float32"),
        ({"input_ids": batch["input_ids"].numpy()}, "input_ids of a row have 2 dimensions"),
    ):
        with pytest.raises(InputError, match=words):
            measure(model, [bad], progress=False)
    with pytest.raises(InputError, match="max_length=65 is over the model's context of 64"):
        measure(model, [batch], max_length=65, progress=False)
    with pytest.raises(InputError, match="limit=0"):
        measure(model, features(), limit=0, progress=False)
    with pytest.raises(InputError, match="batches of type list"):
        measure(model, DataLoader(torch.utils.data.TensorDataset(batch["input_ids"])), progress=False)


def test_encoder_decoders_are_refused() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0)
    model = get_peft_model(T5ForConditionalGeneration(config), LoraConfig(r=2, target_modules=["q"]))
    with pytest.raises(InputError, match="encoder-decoder"):
        measure(model, [batch_for("llama")], progress=False)


def test_rows_that_are_no_tokens_do_not_count() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    config = DebertaV2Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        relative_attention=True,
        max_relative_positions=8,
        pos_att_type="p2c|c2p",
        share_att_key=True,
        max_position_embeddings=32,
        num_labels=3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lora = LoraConfig(r=2, target_modules=["query_proj"], init_lora_weights=False)
        model = get_peft_model(DebertaV2ForSequenceClassification(config), lora).eval()
    result = measure(model, [batch_for("bert")], progress=False)
    assert any("rows that are no tokens" in note for note in result.warnings)
    module = model.base_model.model.deberta.encoder.layer[0].attention.self.query_proj
    calls: list[tuple[torch.Tensor, ...]] = []
    module.register_forward_hook(lambda m, args, out: calls.append((m.base_layer(args[0]), out)))
    with torch.no_grad():
        model(**batch_for("bert"))
    frozen, shifted = next(pair for pair in calls if pair[1].shape[:2] == (3, 7))
    mask = batch_for("bert")["attention_mask"].bool()
    wanted = js_rows(frozen[mask].numpy().astype(float), shifted[mask].numpy().astype(float)).mean()
    assert result.layers[0]["miub_js"] == pytest.approx(wanted, rel=1e-4)


def test_tokens_choose_rows() -> None:
    model, batch = adapted("llama"), batch_for("llama")
    frozen, shifted = outputs_again(model, batch)["model.layers.1.mlp.down_proj"]
    rows = js_rows(frozen, shifted).reshape(3, 7)
    real, labelled = batch["attention_mask"].bool().numpy(), (batch["labels"] != -100).numpy()
    wanted = {
        "all": rows[real].mean(),
        "prompt": rows[real & ~labelled].mean(),
        "completion": rows[real & labelled].mean(),
        "last": (rows[0, 6] + rows[1, 6] + rows[2, 3]) / 3,
    }
    for tokens, value in wanted.items():
        result = measure(model, [batch], tokens=tokens, progress=False)
        record = next(r for r in result.layers if r["name"] == "model.layers.1.mlp.down_proj")
        assert record["miub_js"] == pytest.approx(value, rel=1e-4)
    without = {key: value for key, value in batch.items() if key != "labels"}
    with pytest.raises(InputError, match="needs labels"):
        measure(model, [without], tokens="completion", progress=False)


def test_left_padding_has_its_last_token_at_the_end() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]])
    selection = select_tokens({"input_ids": torch.ones(3, 4, dtype=torch.long), "attention_mask": mask}, "last")
    assert selection.index.tolist() == [3, 7, 9]
    assert selection.sizes == (1, 1, 1)


def test_reductions_over_tokens_and_samples() -> None:
    model, batch = adapted("llama"), batch_for("llama")
    frozen, shifted = outputs_again(model, batch)["model.layers.0.mlp.up_proj"]
    rows, real = js_rows(frozen, shifted).reshape(3, 7), batch["attention_mask"].numpy()
    sums, sizes = (rows * real).sum(1), real.sum(1)
    for reduction, value in {
        "mean": sums.sum() / sizes.sum(),
        "sum": sums.mean(),
        "sample_mean": (sums / sizes).mean(),
    }.items():
        result = measure(model, [batch], reduction=reduction, progress=False)
        record = next(r for r in result.layers if r["name"] == "model.layers.0.mlp.up_proj")
        assert record["miub_js"] == pytest.approx(value, rel=1e-4)


def test_components_none_leaves_the_layers_alone() -> None:
    result = measure(adapted("llama"), [batch_for("llama")], components="none", progress=False)
    assert set(result.totals) == {"ce", "ppl"}
    assert all("miub_js" in record for record in result.layers)


def test_cross_entropy_is_the_models_own() -> None:
    model, batch = adapted("llama"), batch_for("llama")
    with torch.no_grad():
        loss = float(model(**batch).loss)
    result = measure(model, [batch], metrics=("ce", "ppl"), progress=False)
    assert result.totals["ce"] == pytest.approx(loss, rel=1e-5)
    assert result.totals["ppl"] == pytest.approx(math.exp(loss), rel=1e-5)


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_classifiers_have_accuracy(name: str) -> None:
    model, batch = adapted(name), batch_for(name)
    with torch.no_grad():
        outputs = model(**batch)
    result = measure(model, [batch], progress=False)
    assert result.totals["ce"] == pytest.approx(float(outputs.loss), rel=1e-5)
    assert result.totals["accuracy"] == pytest.approx(
        float((outputs.logits.argmax(-1) == batch["labels"]).double().mean())
    )


def test_rows_without_a_class_do_not_count_and_strange_classes_are_refused() -> None:
    model, batch = adapted("bert"), batch_for("bert")
    few = {key: value[1:] for key, value in batch.items()}
    masked = {**batch, "labels": torch.cat([torch.tensor([-100]), few["labels"]])}
    wanted, found = (measure(model, [data], metrics=["ce", "accuracy"], progress=False) for data in (few, masked))
    assert found.totals == pytest.approx(wanted.totals, rel=1e-5)
    with pytest.raises(InputError, match="label 99 is none of the"):
        measure(model, [{**batch, "labels": torch.full_like(batch["labels"], 99)}], progress=False)


def test_rows_beyond_the_context_are_counted_and_said() -> None:
    model = adapted("llama")
    context = model.config.max_position_embeddings
    ids = torch.randint(3, 60, (2, context + 4))
    mask = torch.ones_like(ids)
    mask[1, context:] = 0
    result = measure(model, [{"input_ids": ids, "attention_mask": mask}], metrics="miub_js", progress=False)
    assert f"1 sample is longer than the model's context of {context} tokens" in result.warnings


def test_wide_layers_are_lumped_and_say_so() -> None:
    model, batch = adapted("llama"), batch_for("llama")
    full = measure(model, [batch], metrics="mi_joint", progress=False)
    lumped = measure(model, [batch], metrics="mi_joint", joint_dim=8, progress=False)
    assert any("lower bound of the full one" in note for note in lumped.warnings)
    assert {r["joint_groups"] for r in lumped.layers} == {None, 8}
    for a, b in zip(lumped.layers, full.layers, strict=True):
        assert a["mi_joint"] <= b["mi_joint"] * (1 + 1e-6)
    assert measure(model, [batch], metrics="mi_joint", joint_dim=8, progress=False).totals == lumped.totals
    other = measure(model, [batch], metrics="mi_joint", joint_dim=8, seed=1, progress=False)
    assert other.totals != lumped.totals


@pytest.mark.parametrize("target", ["all-linear", ["q_proj", "lm_head"]])
def test_logits_are_not_computed_where_nothing_reads_them(target: str | list[str]) -> None:
    model, batch = adapted("llama", target_modules=target), batch_for("llama")
    rows = []
    head = model.get_base_model().get_output_embeddings()
    head.register_forward_hook(lambda _module, _inputs, output: rows.append(output.shape[:-1].numel()))
    fast = measure(model, [batch], metrics=("miub_js", "mi_joint"), progress=False)
    full = measure(model, [batch], metrics=("miub_js", "mi_joint", "ce"), progress=False)
    tokens = batch["input_ids"].numel()
    assert rows == [0 if target == "all-linear" else tokens, tokens]
    assert fast.layers == full.layers
    assert {record["name"] for record in fast.layers if "lm_head" in record["name"]} == set(target) & {"lm_head"}


def test_saturated_outputs_do_not_disturb_the_joint() -> None:
    generator = torch.Generator().manual_seed(0)
    o = 60 * torch.randn(
        50, 600, generator=generator
    )  # most probabilities are far below what a float32 product can hold
    l = o + torch.randn(50, 600, generator=generator)  # noqa: E741
    options = Options(("mi_joint",), "mean", 1024, 8, 0.01, 0)
    layer = torch.nn.Linear(1, 600)
    state = LayerState(Component("a", 0, "a", 1, 1, 600, "default", layer, layer, False), options, torch.device("cpu"))
    state.update(o, l, Selection(1, 50, None, (50,)))
    record, exact = state.record(1, []), torch.softmax(o.double(), -1).T @ torch.softmax(l.double(), -1)
    bounds = mutual_information_bounds(exact)
    assert record["mi_joint"] == pytest.approx(bounds.mi, rel=2e-6)
    assert record["joint_js"] == pytest.approx(bounds.js, rel=2e-6)


def test_order_and_batching_do_not_matter() -> None:
    model = adapted("llama")
    batches = [batch_for("llama", seed=i) for i in range(4)]
    one = measure(model, batches, metrics="all", progress=False)
    other = measure(model, batches[::-1], metrics="all", progress=False)
    assert one.totals == pytest.approx(other.totals, rel=1e-5)


def test_save_load_table_and_plots(tmp_path) -> None:
    result = measure(adapted("llama"), [batch_for("llama")], metrics="all", progress=False)
    path = result.save(tmp_path / "deep" / "result.json")
    values = json.loads(path.read_text())
    assert {"schema_version", "totals", "layers"} <= set(values)
    assert AdapterMeasurement.load(path).to_dict() == result.to_dict()
    table = result.table()
    assert len(table) == 14
    assert {"name", "layer", "projection", "rank", "miub_js", "mi_joint"} <= set(table.columns)
    assert result.plot_layers().data
    assert result.plot_depth("mi_joint").data


def test_one_token_defines_some_metrics_and_says_which_it_does_not() -> None:
    batch = {"input_ids": torch.tensor([[5]]), "attention_mask": torch.tensor([[1]])}
    result = measure(adapted("llama"), [batch], metrics="all", progress=False)
    assert result.totals["miub_js"] > 0
    assert result.totals["mi_joint"] == pytest.approx(0.0, abs=1e-9)
    assert all(value == value for value in result.totals.values())


def test_broken_logits_are_refused() -> None:
    model = adapted("llama")
    with torch.no_grad():
        model.base_model.model.lm_head.weight[0] = math.nan
    with pytest.raises(ModelError, match="NaN"):
        measure(model, [batch_for("llama")], progress=False)


def test_a_silent_layer_has_no_size_of_update_and_the_result_says_so() -> None:
    model = adapted("llama")
    silent, name = model.base_model.model.model.layers[0].mlp.down_proj, "model.layers.0.mlp.down_proj"
    with torch.no_grad():
        silent.base_layer.weight.zero_()
        silent.lora_B["default"].weight.zero_()
    result = measure(model, [batch_for("llama")], progress=False)
    said = [line for line in result.warnings if name in line]
    assert len(said) == 1 and "update_ratio is not defined" in said[0] and "0 / 0" in said[0]
    ratios = [layer.get("update_ratio") for layer in result.layers]
    defined = [ratio for ratio in ratios if ratio is not None]
    assert ratios.count(None) == 1 and next(x for x in result.layers if x["name"] == name).get("update_ratio") is None
    mean = sum(defined) / len(defined) if METRICS["update_ratio"].reduce == "mean" else sum(defined)
    assert result.totals["update_ratio"] == pytest.approx(mean)


def padding_said(result: AdapterMeasurement) -> int:
    [*found] = [line for line in result.warnings if "look like padding" in line]
    assert len(found) < 2 and all("\n" not in line and "attention_mask" in line for line in found)
    return int(found[0].split()[0]) if found else 0


def test_padding_without_a_mask_is_counted_and_said() -> None:
    model = adapted("llama")  # pad 0, eos 2
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0], [0, 5, 6, 2]])
    plain, masked = {"input_ids": ids}, {"input_ids": ids, "attention_mask": (ids != 0).long()}
    result = measure(model, [plain, {"input_ids": ids[:2]}], progress=False)
    assert padding_said(result) == 5 and result.counts["tokens"] == 20
    assert padding_said(measure(model, [masked], progress=False)) == 0
    assert padding_said(measure(model, [{"input_ids": ids[:1]}], progress=False)) == 0
    # As rows: those that lorascope pads itself are right, those that were padded before are not.
    rows = [{"input_ids": row} for row in ids.tolist()]
    assert padding_said(measure(model, rows, progress=False)) == 3
    assert padding_said(measure(model, [{**row, "attention_mask": [1] * 4} for row in rows], progress=False)) == 0
    # Where only the labels count, padding without a label does not.
    labels = ids.masked_fill(ids == 0, -100)
    assert padding_said(measure(model, [{**plain, "labels": labels}], tokens="completion", progress=False)) == 0
    assert padding_said(measure(model, [{**plain, "labels": labels}], tokens="prompt", progress=False)) == 3


def test_a_pad_token_that_also_ends_texts_is_padding_where_it_repeats(tiny_tokenizer) -> None:
    tiny_tokenizer.pad_token = tiny_tokenizer.eos_token  # id 2
    model = adapted("llama")
    model.config.pad_token_id = None
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 2], [5, 2, 2, 2], [2, 2, 5, 6], [2, 5, 2, 2]])
    assert padding_said(measure(model, [{"input_ids": ids}], tokenizer=tiny_tokenizer, progress=False)) == 3
    model.config.pad_token_id, model.config.eos_token_id = 2, [2, 9]
    assert padding_said(measure(model, [{"input_ids": ids}], progress=False)) == 3
    model.config.pad_token_id = None
    assert padding_said(measure(model, [{"input_ids": ids}], progress=False)) == 0
