"""``lorascope measure`` on image classifiers; those that open images need Pillow."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers as hf
from peft import PeftModel
from PIL import Image

from lorascope.measuring import measure
from lorascope.results import AdapterMeasurement
from tests.cli.classifiers import save, save_adapter, write
from tests.cli.test_measure_classifiers import METRICS, Run, run, said_once  # noqa: F401

CLASSES = ("ant", "bee", "cow")
COUNT = 7


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    config = hf.ViTConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    config.num_labels = 2  # an earlier task; the adapter brings the head of this one
    with torch.random.fork_rng():
        torch.manual_seed(0)
        folder = save(hf.ViTForImageClassification(config), tmp_path / "vit", tokenizer=False)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture
def adapter(tmp_path: Path, vit: Path) -> Path:
    """As PEFT saves it for image models: without a task type."""
    with torch.random.fork_rng():
        model = hf.AutoModelForImageClassification.from_pretrained(vit, num_labels=3, ignore_mismatched_sizes=True)
        options = {"target_modules": ["q_proj", "v_proj", "fc1"], "modules_to_save": ["classifier"]}
        return save_adapter(model, tmp_path / "adapter", **options)


def pixels(index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Class folders of small images of the model's own size, so that nothing is lost by resizing."""
    for index in range(COUNT):
        folder = tmp_path / "images" / CLASSES[index % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(index)).save(folder / f"{index}.png")
    return tmp_path / "images"


def by_hand(vit: Path, adapter: Path) -> tuple[AdapterMeasurement, float, float]:
    base = hf.AutoModelForImageClassification.from_pretrained(vit, num_labels=3, ignore_mismatched_sizes=True)
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    batches, right, nats = [], 0, 0.0
    for index in range(COUNT):
        values = torch.from_numpy(pixels(index)).permute(2, 0, 1)[None].float() / 255 * 2 - 1
        with torch.no_grad():
            logits = model(pixel_values=values).logits[0].double()
        right += int(logits.argmax()) == index % 3
        nats -= float(logits.log_softmax(-1)[index % 3])
        batches.append({"pixel_values": values, "labels": torch.tensor([index % 3])})
    return measure(model, batches, metrics=METRICS, progress=False), right / COUNT, nats / COUNT


def test_class_folders(tmp_path: Path, vit: Path, adapter: Path, images: Path, run: Run) -> None:  # noqa: F811
    out = tmp_path / "out"
    (images / "ant" / "notes.txt").write_text("no image")
    code, printed, said = run(adapter, "--task", images, "--out", out, "--batch-size", 3)
    assert (code, said) == (0, "")
    assert "Accuracy" in printed and "Perplexity" not in printed
    result = AdapterMeasurement.load(out / "result.json")
    measured, accuracy, ce = by_hand(vit, adapter)
    assert result.totals["accuracy"] == pytest.approx(accuracy)
    assert result.totals["ce"] == pytest.approx(ce, rel=1e-4)
    for name in ("miub_js", "mi_joint", "update_ratio", "effective_rank"):
        assert result.totals[name] == pytest.approx(measured.totals[name], rel=1e-3)
    assert result.settings["kind"] == "image" and result.settings["classes"] == 3
    assert result.counts["samples"] == COUNT and result.counts["tokens"] == COUNT * (4 + 1)
    notes = " ".join(result.warnings)
    assert f"the {COUNT * 5} counted as tokens are rows" in notes and "patches" in notes
    assert "ant = 0, bee = 1, cow = 2" in notes and "notes.txt" in notes
    assert "patches" in (out / "report.html").read_text()


def test_rows_and_splits_agree_with_class_folders(tmp_path: Path, adapter: Path, images: Path, run: Run) -> None:  # noqa: F811
    wanted = json.loads(run(adapter, "--task", images, "--json")[1])["totals"]
    named = sorted((i % 3, i) for i in range(COUNT))
    rows = [{"image": f"{CLASSES[label]}/{index}.png", "label": label} for label, index in named]
    file = write(images / "rows.jsonl", rows)
    values = json.loads(run(adapter, "--task", file, "--json")[1])
    assert values["totals"] == pytest.approx(wanted, rel=1e-6)
    assert len(values["provenance"]["data_sha256"]) == 2
    held = [{"image": {"bytes": (images / r["image"]).read_bytes(), "path": None}, "label": r["label"]} for r in rows]
    pq.write_table(pa.Table.from_pylist(held), images / "held.parquet")
    values = json.loads(run(adapter, "--task", images / "held.parquet", "--json")[1])
    assert values["totals"] == pytest.approx(wanted, rel=1e-6)
    pq.write_table(pa.Table.from_pylist([{"image": b"no image", "label": 0}]), images / "held.parquet")
    code, _, said = run(adapter, "--task", images / "held.parquet")
    assert code == 2 and said_once(said) and "held.parquet:row 1: image 'in the row' cannot be read" in said
    (images / "held.parquet").unlink()
    split = tmp_path / "split"
    (split / "test").parent.mkdir()
    file.unlink()
    images.rename(split / "test")
    again = json.loads(run(adapter, "--task", split, "--json")[1])["totals"]
    assert again == pytest.approx(wanted, rel=1e-6)


def test_grey_images_and_those_of_other_sizes_are_taken(adapter: Path, images: Path, run: Run) -> None:  # noqa: F811
    Image.fromarray(pixels(50)[..., 0]).resize((31, 17)).save(images / "bee" / "grey.png")
    assert json.loads(run(adapter, "--task", images, "--json")[1])["counts"]["samples"] == COUNT + 1


def test_broken_images_are_named(tmp_path: Path, adapter: Path, images: Path, run: Run) -> None:  # noqa: F811
    whole = (images / "ant" / "0.png").read_bytes()
    for content in (b"", b"not an image", whole[: len(whole) // 2]):
        (images / "bee" / "1.png").write_bytes(content)
        code, _, said = run(adapter, "--task", images)
        assert code == 2 and said_once(said)
        assert f"image '{images / 'bee' / '1.png'}' cannot be read" in said
    file = write(images / "rows.jsonl", [{"image": "ant/0.png", "label": 0}, {"image": "bee/1.png", "label": 1}])
    code, _, said = run(adapter, "--task", file)
    assert code == 2 and said_once(said) and f"{file}:2: image" in said


def test_a_processor_of_another_model_is_explained(vit: Path, adapter: Path, images: Path, run: Run) -> None:  # noqa: F811
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
    (vit / "preprocessor_config.json").write_text(json.dumps(processor))
    code, _, said = run(adapter, "--task", images)
    assert code == 2 and said_once(said) and "the model cannot take this row" in said
    (vit / "preprocessor_config.json").unlink()
    code, _, said = run(adapter, "--task", images)
    assert code == 2 and said_once(said) and "cannot load the image processor" in said


def test_class_folders_that_are_not_the_models(tmp_path: Path, adapter: Path, images: Path, run: Run) -> None:  # noqa: F811
    (images / "dog").mkdir()
    code, _, said = run(adapter, "--task", images)
    assert code == 2 and said_once(said)
    assert "class folder 'ant' is no class of the model (there are 3, and 4 folders)" in said


def test_without_pillow_it_says_so(
    tmp_path: Path,
    adapter: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,  # noqa: F811
) -> None:
    for name in [name for name in sys.modules if name == "PIL" or name.startswith("PIL.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "PIL", None)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").touch()
    code, _, said = run(adapter, "--task", tmp_path)
    assert code == 2 and said_once(said)
    assert "reading images needs 'PIL.Image': run pip install pillow" in said


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"image": "none.png", "label": 1}, "no image '"),
        ({"image": "", "label": 1}, "'image' is empty"),
        ({"image": {"bytes": "x"}, "label": 1}, "'image' must be text, not dict"),
        ({"image": "0.png"}, "key 'label' is missing"),
        ({"text": "a", "label": 1}, "a row of text, but the adapter is of an image classifier"),
    ],
)
def test_bad_rows_of_images(tmp_path: Path, adapter: Path, row: Any, words: str, run: Run) -> None:  # noqa: F811
    (tmp_path / "0.png").touch()
    file = write(tmp_path / "rows.jsonl", [{"image": "0.png", "label": 0}, row])
    code, _, said = run(adapter, "--task", file)
    assert code == 2 and said_once(said)
    assert f"{file}:2: " in said and words in said


def test_bad_folders_and_options_of_images(tmp_path: Path, adapter: Path, run: Run) -> None:  # noqa: F811
    empty = tmp_path / "empty"
    empty.mkdir()
    bare = tmp_path / "bare"
    (bare / "cat").mkdir(parents=True)
    for arguments, words in (
        (["--task", empty], "has no class folders"),
        (["--task", bare], "has no images in its class folders"),
        (["--task", "towns"], "task 'towns' is for language models"),
        (["--task", bare, "--max-length", 8], "--max-length does not apply to an image classifier"),
        (["--task", bare, "--overlong", "drop"], "--overlong does not apply"),
        (["--task", bare, "--pad-token", "eos"], "--pad-token does not apply"),
        (["--task", bare, "--tokens", "last"], "--tokens last does not apply"),
    ):
        code, _, said = run(adapter, *arguments)
        assert code == 2 and said_once(said), (arguments, said)
        assert words in said
