from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorascope.bridge import BridgePlan, BridgeResult, bridge
from tests.training.tiny import LANDS, NAMES, make_model, make_tokenizer


@pytest.fixture(scope="session")
def tiny_bridge(tmp_path_factory: pytest.TempPathFactory) -> tuple[BridgePlan, Path, BridgeResult]:
    """A bridge of a tiny model, trained hard enough that its updates mean something."""
    folder = tmp_path_factory.mktemp("bridge")
    data = folder / "data"
    data.mkdir()
    choices = sorted(set(LANDS))
    rows = [
        {"question": f"Where is {name}?", "choices": choices, "answer": choices.index(land)}
        for name, land in zip(NAMES, LANDS, strict=True)
    ]
    for split, some in (("train", rows * 3), ("test", rows)):
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    make_model().save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    plan = BridgePlan(
        model=str(folder / "model"),
        task=str(data),
        rank=2,
        sizes=(8, 2),  # in any order
        seeds=(0, 1),
        steps=2,
        reference_rows=16,
        reference_steps=3,
        questions=6,
    )
    return plan, folder / "out", bridge(plan, folder / "out", samples=64, progress=False)
