"""``lorascope measure`` on classifiers of texts and images, as a person types it, against measuring by hand."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import PeftModel
from safetensors.torch import load_file, save_file

from lorascope.cli import main
from lorascope.measuring import measure
from lorascope.results import AdapterMeasurement
from tests.cli.classifiers import (
    NAMES,
    SMALL,
    TEXTS,
    bert_adapter,
    llama_adapter,
    save,
    save_adapter,
    save_bert,
    save_llama,
    write,
)
from tests.conftest import make_tokenizer

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def typed(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lorascope", "measure", *map(str, arguments), "--no-progress"])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return typed


@pytest.fixture(autouse=True)
def _own_seed() -> Any:
    with torch.random.fork_rng():
        yield


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return save_bert(tmp_path / "bert")


@pytest.fixture
def adapter(tmp_path: Path, bert: Path) -> Path:
    return bert_adapter(bert, tmp_path / "adapter")


ROWS = [{"text": text, "label": i % 3 if i % 2 else NAMES[i % 3]} for i, text in enumerate(TEXTS)]
LABELS = [i % 3 for i in range(len(TEXTS))]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write(tmp_path / "rows" / "test.jsonl", ROWS).parent


def said_once(said: str) -> bool:
    return said.startswith("lorascope: ") and said.count("\n") == 1 and "Traceback" not in said


def by_hand(model: Any, texts: list[Any], labels: list[int], **options: Any) -> tuple[AdapterMeasurement, float, float]:
    """What `measure` gives on batches made by hand, and accuracy and cross-entropy by a plain loop, a row a time."""
    tokenizer = make_tokenizer()
    batches, right, nats = [], 0, 0.0
    for text, label in zip(texts, labels, strict=True):
        pair = text if isinstance(text, tuple) else (text,)
        batch = dict(tokenizer(*pair, return_tensors="pt"))
        with torch.no_grad():
            logits = model(**batch).logits[0].double()
        right += int(logits.argmax()) == label
        nats -= float(logits.log_softmax(-1)[label])
        batches.append({**batch, "labels": torch.tensor([label])})
    found = measure(model, batches, progress=False, **options)
    return found, right / len(labels), nats / len(labels)


def agrees(result: AdapterMeasurement, hand: tuple[AdapterMeasurement, float, float]) -> None:
    measured, accuracy, ce = hand
    assert result.totals["accuracy"] == pytest.approx(accuracy)
    assert result.totals["ce"] == pytest.approx(ce, rel=1e-5)
    for name in ("miub_js", "mi_joint", "update_ratio", "effective_rank"):
        assert result.totals[name] == pytest.approx(measured.totals[name], rel=1e-4)
        assert result.totals[name] > 0
    assert [layer["name"] for layer in result.layers] == [layer["name"] for layer in measured.layers]
    assert "ppl" not in result.totals
    assert any("perplexity is left out" in note for note in result.warnings)


METRICS = ("miub_js", "mi_joint", "update_ratio", "spectrum", "ce", "accuracy")


def test_a_text_classifier_with_names_for_its_classes(
    tmp_path: Path, bert: Path, adapter: Path, rows: Path, run: Run
) -> None:
    out = tmp_path / "out"
    code, printed, said = run(adapter, "--task", rows, "--out", out)
    assert (code, said) == (0, "")
    printed = " ".join(printed.split())  # a long path wraps the title
    assert "8 rows" in printed and "Accuracy" in printed and "Perplexity" not in printed
    result = AdapterMeasurement.load(out / "result.json")
    base = hf.AutoModelForSequenceClassification.from_pretrained(bert)
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    agrees(result, by_hand(model, TEXTS, LABELS, metrics=METRICS))
    assert result.counts["samples"] == result.counts["questions"] == 8
    assert result.counts["tokens"] == sum(len(text.split()) for text in TEXTS)
    assert result.settings["classes"] == 3 and result.settings["kind"] == "sequence"
    assert result.settings["evaluation"]["errors"]["accuracy"] > 0
    assert set(result.provenance["data_sha256"]) == {"test.jsonl"}
    page = (out / "report.html").read_text()
    assert "perplexity is left out" in page
    code, printed, _ = run(adapter, "--task", rows, "--json", "--limit", 4, "--score-limit", 2)
    values = json.loads(printed)
    assert (values["counts"]["samples"], values["counts"]["questions"]) == (4, 2)
    values = json.loads(run(adapter, "--task", rows, "--json", "--no-score", "--limit", 4)[1])
    assert values["counts"]["questions"] == 4 and 0 <= values["totals"]["accuracy"] <= 1


def test_a_decoder_with_a_head_takes_its_classes_from_the_adapter(tmp_path: Path, run: Run) -> None:
    base = save_llama(tmp_path / "llama")
    adapter = llama_adapter(base, tmp_path / "adapter")
    labels = [i % 4 for i in range(len(TEXTS))]
    file = write(tmp_path / "all.jsonl", [{"text": t, "label": y} for t, y in zip(TEXTS, labels, strict=True)])
    out = tmp_path / "out"
    code, _, said = run(adapter, "--task", file, "--out", out, "--batch-size", 3)
    assert (code, said) == (0, "")
    result = AdapterMeasurement.load(out / "result.json")
    assert result.settings["classes"] == 4
    loaded = hf.AutoModelForSequenceClassification.from_pretrained(base, num_labels=4)
    agrees(result, by_hand(PeftModel.from_pretrained(loaded, str(adapter)).eval(), TEXTS, labels, metrics=METRICS))
    code, _, said = run(adapter, "--task", write(tmp_path / "named.jsonl", [{"text": "a", "label": "good"}]))
    assert code == 2 and said_once(said)
    assert "named.jsonl:1: label 'good' is no class of the model: give its index" in said and "0 to 3" in said


def test_a_decoder_without_a_pad_token_is_told_where_the_padding_starts(tmp_path: Path, run: Run) -> None:
    base = save_llama(tmp_path / "llama", pad_token_id=None)
    loaded = hf.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    adapter = save_adapter(loaded, tmp_path / "adapter", task_type="SEQ_CLS", target_modules=["q_proj"])
    file = write(tmp_path / "all.jsonl", [{"text": t, "label": y} for t, y in zip(TEXTS, LABELS, strict=True)])
    plain = json.loads(run(adapter, "--task", file, "--json", "--batch-size", 1)[1])
    together = json.loads(run(adapter, "--task", file, "--json", "--batch-size", 8)[1])
    assert together["totals"] == pytest.approx(plain["totals"], rel=1e-4)
    bare = make_tokenizer()
    bare.pad_token = None
    bare.save_pretrained(base)
    code, _, said = run(adapter, "--task", file)
    assert code == 2 and said_once(said) and "no pad token" in said
    code, printed, _ = run(adapter, "--task", file, "--json", "--pad-token", "eos")
    assert code == 0
    assert json.loads(printed)["totals"]["ce"] == pytest.approx(plain["totals"]["ce"], rel=1e-4)


def test_pairs_of_texts_parquet_and_lengths(tmp_path: Path, bert: Path, adapter: Path, run: Run) -> None:
    import pandas as pd

    pairs = [("a b", "c"), ("d e f", "g h"), ("i", "j k l"), ("m n", "o p")]
    labels = [0, 1, 2, 0]
    folder = tmp_path / "pairs"
    folder.mkdir()
    table = pd.DataFrame({"text": [a for a, _ in pairs], "text_pair": [b for _, b in pairs], "label": labels})
    table.to_parquet(folder / "validation.parquet")
    common = [adapter, "--task", folder, "--split", "validation", "--json"]
    code, printed, _ = run(*common)
    assert code == 0
    base = hf.AutoModelForSequenceClassification.from_pretrained(bert)
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    agrees(AdapterMeasurement.from_dict(json.loads(printed)), by_hand(model, pairs, labels, metrics=METRICS))
    code, _, said = run(*common, "--max-length", 4)
    assert (
        code == 2 and said_once(said) and "validation.parquet:row 2: the text is 5 tokens, over the limit of 4" in said
    )
    code, printed, _ = run(*common, "--max-length", 4, "--overlong", "drop")
    values = json.loads(printed)
    assert values["counts"]["samples"] == 3 and values["counts"]["dropped"] == 1
    assert any("1 of the rows measured were left out" in note for note in values["warnings"])
    code, printed, _ = run(*common, "--max-length", 4, "--overlong", "truncate")
    assert json.loads(printed)["counts"]["truncated"] == 1


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "a", "label": 3}, "label 3 is outside the 3 classes"),
        ({"text": "a", "label": -1}, "label -1 is outside the 3 classes"),
        ({"text": "a", "label": "great"}, "label 'great' is no class of the model: give one of 'bad', 'fair', 'good'"),
        ({"text": "a", "label": True}, "label True is no class"),
        ({"text": "a", "label": 1.0}, "label 1.0 is no class"),
        ({"text": "a", "label": None}, "label null is no class"),
        ({"text": "a"}, "key 'label' is missing"),
        ({"label": 1}, "key 'text' is missing"),
        ({"text": " ", "label": 1}, "'text' is empty"),
        ({"text": "a", "text_pair": "", "label": 1}, "'text_pair' is empty"),
        ({"text": 5, "label": 1}, "'text' must be text, not int"),
        ({"image": "a.png", "label": 1}, "a row of an image, but the adapter is of a text classifier"),
        ("{", "not valid JSON"),
        ("", "empty line"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, adapter: Path, row: Any, words: str, run: Run) -> None:
    file = write(tmp_path / "bad.jsonl", [ROWS[0], row])
    out = tmp_path / "out"
    code, _, said = run(adapter, "--task", file, "--out", out)
    assert code == 2 and said_once(said)
    assert f"{file}:2: " in said and words in said
    assert not list(out.iterdir())


def test_bad_tasks_options_and_kinds(tmp_path: Path, bert: Path, adapter: Path, rows: Path, run: Run) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    for arguments, words in (
        ([], "give your rows with a label as --task PATH"),
        (["--task", "towns"], "task 'towns' is for language models"),
        (["--task", tmp_path / "none.jsonl"], "no file or folder"),
        (["--task", tmp_path / "empty.jsonl"], 'is empty: write one row a line, {"text", "label"}'),
        (["--task", tmp_path], 'rows are {"text", "label"}'),
        (["--task", rows, "--split", "train"], "has no split 'train': it has test"),
        (["--task", rows, "--prompt", "prompt1"], "--prompt does not apply to a text classifier"),
        (["--task", rows, "--lm-eval", "piqa"], "--lm-eval does not apply"),
        (["--task", rows, "--tokens", "completion"], "--tokens completion does not apply"),
        (["--task", rows, "--metrics", "ppl"], "a classifier has no ppl"),
        (["--task", rows, "--overlong", "cut"], "unknown overlong 'cut'"),
        (["--task", rows, "--max-length", 65], "over the model's context of 64"),
        (["--task", rows, "--dtype", "int8"], "unknown dtype 'int8'"),
        (["--task", rows, "--kind", "images"], "unknown kind 'images': did you mean 'image'?"),
        (["--task", rows, "--kind", "image"], "is for SEQ_CLS, not for --kind image"),
        (["--task", rows, "--kind", "causal"], "is for SEQ_CLS, not for --kind causal"),
        (["--task", rows, "--model", tmp_path / "nowhere"], "does not exist"),
    ):
        code, _, said = run(adapter, *arguments)
        assert code == 2 and said_once(said), (arguments, said)
        assert words in said


def set_config(adapter: Path, target: Path, **values: Any) -> Path:
    shutil.copytree(adapter, target)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps({**config, **values}))
    return target


@pytest.mark.parametrize("kind", ["SEQ_2_SEQ_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"])
def test_other_kinds_are_for_python(tmp_path: Path, adapter: Path, rows: Path, kind: str, run: Run) -> None:
    other = set_config(adapter, tmp_path / "other", task_type=kind)
    code, _, said = run(other, "--task", rows)
    assert code == 2 and said_once(said)
    assert f"is for {kind}" in said and "call lorascope.measure(model, batches) in Python" in said


def test_without_a_task_type_the_base_model_decides(
    tmp_path: Path, bert: Path, adapter: Path, rows: Path, run: Run
) -> None:
    bare = set_config(adapter, tmp_path / "bare", task_type=None, modules_to_save=["classifier"])
    with_type, without = (json.loads(run(a, "--task", rows, "--json")[1]) for a in (adapter, bare))
    assert without["settings"]["kind"] == "sequence"
    assert without["totals"] == pytest.approx(with_type["totals"], rel=1e-6)
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    code, _, said = run(bare, "--task", rows)
    assert code == 2 and said_once(said) and "give --kind causal or sequence" in said
    assert json.loads(run(bare, "--task", rows, "--json", "--kind", "sequence")[1])["totals"] == without["totals"]
    hf.BlipConfig().save_pretrained(tmp_path / "blip")
    code, _, said = run(bare, "--task", rows, "--model", tmp_path / "blip")
    assert code == 2 and said_once(said) and "no language model and no classifier" in said
    vit = hf.ViTConfig(architectures=["ViTForImageClassification"])
    vit.save_pretrained(tmp_path / "vit")
    code, _, said = run(bare, "--task", rows, "--model", tmp_path / "vit", "--kind", "sequence")
    assert code == 2 and said_once(said) and "type vit, of which transformers has no sequence classifier" in said


def without_head(adapter: Path, target: Path) -> Path:
    shutil.copytree(adapter, target)
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({k: v for k, v in weights.items() if ".lora_" in k}, target / "adapter_model.safetensors")
    return target


def test_a_missing_head_is_said(tmp_path: Path, bert: Path, adapter: Path, rows: Path, run: Run) -> None:
    lost = without_head(adapter, tmp_path / "lost")
    code, _, said = run(lost, "--task", rows)
    assert code == 2 and said_once(said)
    assert "'classifier' was trained whole" in said and "not saved completely" in said

    llama = save_llama(tmp_path / "llama")
    loaded = hf.AutoModelForSequenceClassification.from_pretrained(llama, num_labels=2)
    no_head = save_adapter(loaded, tmp_path / "none", target_modules=["q_proj"])
    two = write(tmp_path / "two.jsonl", [{"text": t, "label": i % 2} for i, t in enumerate(TEXTS)])
    common = [no_head, "--task", two, "--kind", "sequence"]
    code, _, said = run(*common)
    assert code == 2 and said_once(said)
    assert "classification head is missing" in said and "'score.weight'" in said and "--no-score" in said
    code, printed, _ = run(*common, "--no-score", "--json")
    values = json.loads(printed)
    assert code == 0 and values["totals"]["miub_js"] > 0
    assert "accuracy" not in values["totals"] and "ce" not in values["totals"]
    assert any("head has no trained weights" in note for note in values["warnings"])

    masked = save(hf.BertForMaskedLM(hf.BertConfig(**SMALL)), tmp_path / "masked")  # without BERT's pooler
    code, _, said = run(adapter, "--task", rows, "--model", masked)
    assert code == 2 and said_once(said) and "bert.pooler.dense" in said


def test_a_head_that_the_base_model_has_is_used(tmp_path: Path, bert: Path, rows: Path, run: Run) -> None:
    model = hf.AutoModelForSequenceClassification.from_pretrained(bert)
    adapter = save_adapter(model, tmp_path / "plain", target_modules=["query"])
    code, printed, _ = run(adapter, "--task", rows, "--json")
    assert code == 0
    base = hf.AutoModelForSequenceClassification.from_pretrained(bert)
    hand = by_hand(PeftModel.from_pretrained(base, str(adapter)).eval(), TEXTS, LABELS, metrics=METRICS)
    agrees(AdapterMeasurement.from_dict(json.loads(printed)), hand)


def test_the_adapters_head_may_have_other_classes_than_the_base(tmp_path: Path, bert: Path, run: Run) -> None:
    adapter = bert_adapter(bert, tmp_path / "five", labels=5)
    file = write(tmp_path / "five.jsonl", [{"text": t, "label": i % 5} for i, t in enumerate(TEXTS)])
    values = json.loads(run(adapter, "--task", file, "--json")[1])
    assert values["settings"]["classes"] == 5
    assert 0 < values["totals"]["ce"] < 10


def test_foreign_heads_and_other_problems_are_refused(
    tmp_path: Path, bert: Path, adapter: Path, rows: Path, run: Run
) -> None:
    foreign = tmp_path / "foreign"
    shutil.copytree(adapter, foreign)
    weights = load_file(adapter / "adapter_model.safetensors")
    names = {k: k.replace(".classifier.", ".score.") for k in weights}
    save_file({names[k]: v for k, v in weights.items()}, foreign / "adapter_model.safetensors")
    code, _, said = run(foreign, "--task", rows)
    assert code == 2 and said_once(said)
    assert "brings weights for 'score.bias', 'score.weight', which this base model does not have" in said
    for problem in ("regression", "multi_label_classification"):
        other = save_bert(tmp_path / problem, problem_type=problem)
        code, _, said = run(adapter, "--task", rows, "--model", other)
        assert code == 2 and said_once(said) and problem in said and "in Python" in said


def test_two_processes_give_the_numbers_of_one(tmp_path: Path, adapter: Path, rows: Path, run: Run) -> None:
    common = [adapter, "--task", rows, "--no-progress", "--batch-size", 2]
    out = tmp_path / "together"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = [sys.executable, *launch, "-m", "lorascope", "measure", *map(str, common), "--out", str(out)]
    subprocess.run(command, check=True, env=environment, timeout=300, capture_output=True)
    together = json.loads((out / "result.json").read_text())
    alone = json.loads(run(*common, "--json")[1])
    assert together["totals"] == pytest.approx(alone["totals"], rel=1e-6)
    assert together["counts"] == alone["counts"]
    assert math.isfinite(together["totals"]["ce"])
