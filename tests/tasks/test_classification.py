"""Rows with a label, class folders, heads and scores, without the command line."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf

from lorascope.core.errors import AdapterError, DataError, InputError, ModelError
from lorascope.tasks.classification import EncodedRows, load_labelled_texts, score_classifier
from lorascope.tasks.classifiers import Classes
from lorascope.tasks.files import split_rows
from lorascope.tasks.heads import class_outputs, count_classes
from lorascope.tasks.images import digest_images, load_labelled_images, number_folders
from lorascope.tasks.kinds import choose_kind
from lorascope.tasks.rows import TextRow
from tests.cli.classifiers import SMALL, write

ANIMALS = Classes(2, {"cat": 1, "dog": 0}, named=True)
UNNAMED = Classes(2, {"LABEL_0": 0, "LABEL_1": 1}, named=False)


def class_folders(folder: Path, *files: str) -> Path:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(file.encode())
    return folder


def test_rows_of_a_single_file_are_split_as_those_of_other_tasks(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [{"text": str(i), "label": i % 2} for i in range(23)])
    task = load_labelled_texts(str(file))
    by_index = split_rows([TextRow(str(i), "x") for i in range(23)])
    for split in ("train", "validation", "test"):
        assert [row.text for row in task.splits[split]] == [
            row.text for row in by_index[split] if isinstance(row, TextRow)
        ]
    assert len(task.rows("all")) == 23
    with pytest.raises(DataError, match="no split 'dev': it has train"):
        task.rows("dev")


def test_class_folders_are_numbered_by_name_or_by_alphabet(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "one", "dog/1.png", "cat/2.JPG", "cat/deep/3.webp", "cat/.hidden.png")
    task = load_labelled_images(str(folder))
    assert [row.path.name for row in task.rows("all")] == ["2.JPG", "3.webp", "1.png"]

    def indices(classes: Classes) -> list[int]:
        numbered = number_folders(task, classes)
        return [classes.index(row.label, row.where) for row in numbered.rows("all")]

    assert indices(ANIMALS) == [1, 1, 0]
    assert number_folders(task, ANIMALS).notes == ()
    assert indices(UNNAMED) == [0, 0, 1]
    assert "cat = 0, dog = 1" in number_folders(task, UNNAMED).notes[0]
    with pytest.raises(DataError, match=r"class folder 'cat' is no class of the model \(these are 'ant', 'bee'\)"):
        number_folders(task, Classes(2, {"ant": 0, "bee": 1}, named=True))
    with pytest.raises(DataError, match="there are 3, and 2 folders"):
        number_folders(task, Classes(3, {f"LABEL_{i}": i for i in range(3)}, named=False))


def test_a_class_without_images_in_one_split_keeps_its_number(tmp_path: Path) -> None:
    folder = class_folders(tmp_path, "train/cat/1.png", "train/dog/2.png", "test/dog/3.png")
    task = number_folders(load_labelled_images(str(folder)), UNNAMED)
    assert [row.label for row in task.rows("test")] == [1]
    assert set(task.splits) == {"train", "test"}


def test_the_hash_of_images_follows_their_content(tmp_path: Path) -> None:
    rows = load_labelled_images(str(class_folders(tmp_path, "cat/1.png", "dog/2.png"))).rows("all")
    before = digest_images(rows)
    (tmp_path / "cat" / "1.png").write_bytes(b"other")
    assert digest_images(rows) != before
    (tmp_path / "cat" / "1.png").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        digest_images(rows)


def test_labels_by_index_and_name() -> None:
    assert [ANIMALS.index(label, "x") for label in (0, 1, "cat", "dog")] == [0, 1, 1, 0]
    for label in (2, -1, "bird", "0"):
        with pytest.raises(DataError, match=r"f:1: label '?(2|-1|bird|0)'? is"):
            ANIMALS.index(label, "f:1")


@pytest.mark.parametrize(
    ("config", "auto", "outputs"),
    [
        (
            hf.BertConfig(**SMALL),
            hf.AutoModelForSequenceClassification,
            {"classifier.weight": 0, "classifier.bias": 0},
        ),
        (
            hf.RobertaConfig(**SMALL),
            hf.AutoModelForSequenceClassification,
            {"classifier.out_proj.weight": 0, "classifier.out_proj.bias": 0},
        ),
        (hf.LlamaConfig(**SMALL), hf.AutoModelForSequenceClassification, {"score.weight": 0}),
        (
            hf.ViTConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2),
            hf.AutoModelForImageClassification,
            {"classifier.weight": 0, "classifier.bias": 0},
        ),
    ],
)
def test_the_head_is_what_grows_with_the_classes(config: Any, auto: Any, outputs: dict[str, int]) -> None:
    labels = config.num_labels
    assert class_outputs(config, auto) == outputs
    assert config.num_labels == labels
    saved = {name: (7, 16) for name in outputs} | {"classifier.dense.weight": (16, 16)}
    assert count_classes(saved, outputs, "a") == 7
    assert count_classes({"x.lora_A.weight": (2, 16)}, outputs, "a") is None


def test_heads_that_disagree_are_refused() -> None:
    with pytest.raises(AdapterError, match="heads of 3 and 4 classes"):
        count_classes({"a.weight": (3, 5), "b.weight": (4, 5)}, {"a.weight": 0, "b.weight": 0}, "x")


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (hf.LlamaConfig(architectures=["LlamaForCausalLM"]), "causal"),
        (hf.GPT2Config(architectures=["GPT2LMHeadModel"]), "causal"),
        (hf.GPT2Config(architectures=["GPT2ForSequenceClassification"]), "sequence"),
        (hf.ViTConfig(architectures=["ViTForImageClassification"]), "image"),
        (hf.DeiTConfig(architectures=["DeiTForImageClassificationWithTeacher"]), "image"),
        (hf.ViTConfig(architectures=["ViTModel"]), "image"),  # as google/vit-base-patch16-224-in21k
    ],
)
def test_the_kind_of_a_base_model(tmp_path: Path, config: Any, kind: str) -> None:
    config.save_pretrained(tmp_path)
    assert choose_kind("a", None, str(tmp_path)) == kind
    assert choose_kind("a", None, str(tmp_path), "sequence") == "sequence"
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot load the configuration"):
        choose_kind("a", None, str(tmp_path))


class Fixed(torch.nn.Module):
    """A classifier whose logits are its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=x * self.weight)


def rows_of(logits: torch.Tensor, labels: list[int]) -> EncodedRows:
    features = [{"x": row, "labels": label} for row, label in zip(logits, labels, strict=True)]
    return EncodedRows(features, [f"f:{i}" for i in range(len(labels))], torch.utils.data.default_collate)


def test_scores_against_the_formulas() -> None:
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.2, 0.3, 0.5], [0.1, 0.8, 0.1]])
    labels = [0, 0, 2, 1]
    found = score_classifier(Fixed(), rows_of(probabilities.log(), labels), batch_size=3, progress=False)
    nats = [-math.log(p) for p in (0.7, 0.3, 0.5, 0.8)]
    mean = sum(nats) / 4
    assert found.metrics == pytest.approx({"accuracy": 0.75, "ce": mean})
    spread = math.sqrt(sum((x - mean) ** 2 for x in nats) / 3 / 4)
    assert found.errors == pytest.approx({"accuracy": math.sqrt(0.75 * 0.25 / 3), "ce": spread})
    assert [(r["where"], r["answer"], r["choice"]) for r in found.per_example] == [
        ("f:0", 0, 0),
        ("f:1", 0, 1),
        ("f:2", 2, 2),
        ("f:3", 1, 1),
    ]
    one = score_classifier(Fixed(), rows_of(probabilities[:1].log(), [0]), progress=False)
    assert one.errors == {} and one.counts == {"samples": 1}


def test_scores_of_broken_models_are_refused() -> None:
    with pytest.raises(ModelError, match="NaN or infinity"):
        score_classifier(Fixed(), rows_of(torch.tensor([[math.nan, 1.0]]), [0]), progress=False)
    with pytest.raises(InputError, match="no logits over classes"):
        score_classifier(Fixed(), rows_of(torch.zeros(1, 2, 2), [0]), progress=False)
