"""lm-eval and our scoring give the same numbers for the same rows."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import lm_eval.tasks
import numpy as np
import pytest
import torch
import yaml
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from lorascope.core.errors import InputError, MissingDependencyError, ModelError
from lorascope.tasks import Task, evaluate_task, lm_eval_scores, load_task, task_to_lm_eval
from lorascope.tasks.bridge import require_lm_eval_tasks
from lorascope.tasks.hub import HUB_TASKS, convert_rows
from tests.tasks.conftest import QUESTIONS, make_tokenizer

SENTENCES = [
    {"question": "The trophy beat the cup, so the _ was proud.", "choices": ["trophy", "cup"], "answer": 0},
    {"question": "Ann thanked Beth, for _ had helped.", "choices": ["Ann", "Beth"], "answer": 1},
    {"question": "In the end _ won.", "choices": ["Theo", "the others"], "answer": 0},
]


def lm_eval_likelihoods(model, tokenizer, name: str, folder: Path) -> list[list[float]]:
    """Log-likelihoods by lm-eval, row by row."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    outcome = simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3), tasks=[name], task_manager=manager, bootstrap_iters=0
    )
    samples = sorted(outcome["samples"][name], key=lambda sample: sample["doc_id"])
    return [[score for score, _ in sample["filtered_resps"]] for sample in samples]


@pytest.mark.parametrize(
    ("name", "known", "rows", "prompt"),
    [
        ("llama", None, QUESTIONS, "main"),
        ("gpt2", None, QUESTIONS, "main"),
        ("llama", None, QUESTIONS, "prompt1"),
        ("llama", None, QUESTIONS, "prompt2"),
        ("llama", None, QUESTIONS, "prompt3"),
        ("llama", None, QUESTIONS, "plain"),
        ("llama", "hellaswag", QUESTIONS, "plain"),
        ("llama", "winogrande", SENTENCES, "plain"),
        ("llama", "winogrande", SENTENCES, "main"),
    ],
)
def test_multiple_choice_agrees_row_by_row(name, known, rows, prompt, make_model, tokenizer, write_rows, tmp_path):
    folder = write_rows(train=QUESTIONS, test=rows)
    task = load_task(known, data_dir=folder, prompt=prompt) if known else load_task(folder, prompt=prompt)
    model = make_model(name)
    ours = evaluate_task(model, tokenizer, task, progress=False)
    written = task_to_lm_eval(task, tmp_path / "lm")
    theirs = lm_eval_scores(model, tokenizer, [written], include_path=tmp_path / "lm", batch_size=2)[written]
    assert ours.metrics["accuracy"] == pytest.approx(theirs["acc"], abs=1e-12)
    assert ours.metrics["accuracy_norm"] == pytest.approx(theirs["acc_norm"], abs=1e-12)
    assert ours.errors["accuracy"] == pytest.approx(theirs["acc_stderr"], abs=1e-12)
    likelihoods = lm_eval_likelihoods(model, tokenizer, written, tmp_path / "lm")
    for record, expected in zip(ours.per_example, likelihoods, strict=True):
        assert record["log_likelihoods"] == pytest.approx(expected, abs=1e-4, rel=2e-6)


OFFICIAL = {"winogrande": "default.yaml"}
HUB_ROWS = {
    "piqa": [{"goal": "Open a jar", "sol1": "Twist the lid.", "sol2": "Bite it.", "label": 0}],
    "winogrande": [{"sentence": "Ann fed Bo as _ asked.", "option1": "Ann", "option2": "Bo", "answer": "2"}],
    "arc_easy": [
        {
            "id": "x",
            "question": "Ice is",
            "choices": {"text": ["hot", "cold", "dry"], "label": ["1", "2", "3"]},
            "answerKey": "2",
        }
    ],
    "hellaswag": [
        {
            "activity_label": "Cooking",
            "ctx_a": "A man [header] stirs.",
            "ctx_b": "then he",
            "endings": ["eats  it", "runs [substeps] away", "sings", "stops"],
            "label": "3",
        }
    ],
}


@pytest.mark.parametrize("name", HUB_ROWS)
def test_plain_prompt_is_the_official_template(name, make_model, tokenizer, tmp_path):
    """lm-eval's own task definitions, fed with rows in the hub's schema, give our likelihoods."""
    rows = HUB_ROWS[name]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    official = Path(lm_eval.tasks.__file__).parent / name.split("_")[0] / OFFICIAL.get(name, f"{name}.yaml")
    local = {
        "include": str(official),
        "task": f"local_{name}",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": dict.fromkeys(("train", "validation", "test"), str(data)),
            "cache_dir": str(tmp_path / "cache"),
        },
    }
    (tmp_path / "local.yaml").write_text(yaml.safe_dump(local))
    [expected] = lm_eval_likelihoods(make_model("llama"), tokenizer, f"local_{name}", tmp_path)
    scores = lm_eval_scores(make_model("llama"), tokenizer, [f"local_{name}"], include_path=tmp_path)[f"local_{name}"]
    converted = convert_rows(HUB_TASKS[name], rows, name)
    task = Task(name, "multiple_choice", {"test": converted}, prompt="plain", style=HUB_TASKS[name].style)
    ours = evaluate_task(make_model("llama"), tokenizer, task, progress=False)
    [record] = ours.per_example
    assert record["log_likelihoods"] == pytest.approx(expected, rel=2e-6)
    assert ours.metrics["accuracy"] == scores["acc"]
    if "acc_norm" in scores:
        assert ours.metrics["accuracy_norm"] == scores["acc_norm"]


def test_text_agrees_where_a_document_fits_one_window(make_model, tokenizer, write_rows, tmp_path):
    texts = ["The weather there is fine.", "Heute ist es schön.", "One more line of text, the third."]
    task = load_task(write_rows(test=[{"text": text} for text in texts]))
    model = make_model("llama")
    ours = evaluate_task(model, tokenizer, task, progress=False)
    written = task_to_lm_eval(task, tmp_path / "lm")
    theirs = lm_eval_scores(model, tokenizer, [written], include_path=tmp_path / "lm")[written]
    nats = ours.metrics["ce"] * ours.counts["scored_tokens"]
    size = sum(len(text.encode()) for text in texts)
    assert nats / size / math.log(2) == pytest.approx(theirs["bits_per_byte"], rel=1e-6)


def test_the_same_sample_is_written(make_model, tokenizer, write_rows, tmp_path):
    task = load_task(write_rows(test=QUESTIONS))
    written = task_to_lm_eval(task, tmp_path / "lm", limit=3, seed=4)
    ours = evaluate_task(make_model("gpt2"), tokenizer, task, progress=False, limit=3, seed=4)
    likelihoods = lm_eval_likelihoods(make_model("gpt2"), tokenizer, written, tmp_path / "lm")
    assert len(likelihoods) == 3
    assert [record["log_likelihoods"] for record in ours.per_example] == [
        pytest.approx(row, abs=1e-4, rel=2e-6) for row in likelihoods
    ]


def test_global_seeds_survive_lm_eval(make_model, tokenizer, write_rows, tmp_path):
    # Python's own generator is drawn from by the checker of types, so only the other two can be compared here.
    written = task_to_lm_eval(load_task(write_rows(test=QUESTIONS)), tmp_path / "lm")
    model = make_model("gpt2")
    np.random.seed(11)  # noqa: NPY002
    torch.manual_seed(11)
    before = (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
    lm_eval_scores(model, tokenizer, [written], include_path=tmp_path / "lm")
    after = (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
    assert before == after


def test_clear_errors(make_model, tokenizer, write_rows, tmp_path):
    chat = load_task(write_rows(test=[{"prompt": "a", "completion": " b"}]))
    with pytest.raises(InputError, match="has completion rows: lm-eval scores multiple choice and text"):
        task_to_lm_eval(chat, tmp_path)
    task_to_lm_eval(load_task(write_rows(test=QUESTIONS)), tmp_path / "lm")
    with pytest.raises(InputError, match=r"unknown lm-eval task 'lorascope_row'.*lorascope_rows_main_test"):
        lm_eval_scores(make_model("gpt2"), tokenizer, ["lorascope_row"], include_path=tmp_path / "lm")
    with pytest.raises(ModelError, match="bos or eos"):
        lm_eval_scores(make_model("gpt2"), make_tokenizer(eos_token=None), ["x"], include_path=tmp_path / "lm")


def test_names_are_checked_before_any_work(tmp_path, tokenizer, write_rows):
    written = task_to_lm_eval(load_task(write_rows(test=QUESTIONS)), tmp_path / "lm")
    require_lm_eval_tasks([written], include_path=tmp_path / "lm", tokenizer=tokenizer)
    require_lm_eval_tasks(["piqa", "arc_easy", "mmlu"])
    for names, message in (
        (["piqa", "piqua"], "unknown lm-eval task 'piqua': did you mean 'piqa'"),
        (["arc_nonsense"], "unknown lm-eval task 'arc_nonsense'.* arc_easy"),
        (["piqa", ""], "unknown lm-eval task ''"),
        ([], "no lm-eval task is named"),
    ):
        with pytest.raises(InputError, match=message) as error:
            require_lm_eval_tasks(names)
        assert "\n" not in str(error.value) and len(str(error.value)) < 400
    with pytest.raises(InputError, match="unknown lm-eval task 'piqa'"):
        require_lm_eval_tasks(["piqa"], include_path=tmp_path / "lm")
    with pytest.raises(ModelError, match="bos or eos"):
        require_lm_eval_tasks(["piqa"], tokenizer=make_tokenizer(eos_token=None))


def test_lm_eval_that_is_missing_is_said_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)
    with pytest.raises(MissingDependencyError, match=r"lorascope\[eval\]"):
        require_lm_eval_tasks(["piqa"])
