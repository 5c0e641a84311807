"""What every executor of sweeps must do: subclass `ExecutorConformance` under pytest and say how to make yours."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lorascope.core.seeds import preserved_random_state
from lorascope.results import RunRecord
from lorascope.sweeps import Event, Executor, Finished, SweepFolder, SweepSpec, run_sweep
from lorascope.training import run

_TOWNS = {"Oslo": "Norway", "Bergen": "Norway", "Lyon": "France", "Paris": "France", "Turin": "Italy", "Milan": "Italy"}


def write_tiny_model(folder: Path) -> Path:
    """A base model of two layers with a tokenizer of bytes, as a user's folder holds it; made in milliseconds."""
    vocabulary = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {"<pad>": len(vocabulary), "</s>": len(vocabulary) + 1}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    fast: Any = PreTrainedTokenizerFast
    tokenizer = fast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", model_max_length=128)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        pad_token_id=vocabulary["<pad>"],
        eos_token_id=vocabulary["</s>"],
        bos_token_id=None,
    )
    with preserved_random_state():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(folder: Path) -> Path:
    """A task of a few multiple-choice rows: the countries of six towns."""
    folder.mkdir(parents=True, exist_ok=True)
    choices = sorted(set(_TOWNS.values()))
    rows = [
        {"question": f"Where is {town}?", "choices": choices, "answer": choices.index(land)}
        for town, land in _TOWNS.items()
    ]
    for split, some in (("train", rows), ("test", rows[::2])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    return folder


def tiny_sweep(folder: Path, *, steps: int = 6, save_steps: int = 3, **grid: list[object]) -> SweepSpec:
    """A sweep over a tiny model and task, which are written into a folder.

    Args:
        folder: For the model and the rows.
        steps: Optimiser steps of a cell.
        save_steps: Steps between checkpoints.
        **grid: Setting -> values.

    Returns:
        The sweep.
    """
    base = {
        "model": str(write_tiny_model(folder / "tiny")),
        "task": str(write_rows(folder / "rows")),
        "max_steps": steps,
        "batch_size": 2,
        "learning_rate": 0.01,
        "save_steps": save_steps,
        "logging_steps": 1,
        "metrics": ["miub_js", "update_ratio"],
    }
    return SweepSpec(base=base, grid=dict(grid))


class ExecutorConformance:
    """Tests of an executor.

    Set ``stops`` to False if cells run inside `Executor.wait`, so that nobody can stop them.

    Example:
        >>> class TestMyExecutor(ExecutorConformance):
        ...     def make_executor(self):
        ...         return MyExecutor(workers=2)
    """

    stops: bool = True

    def make_executor(self) -> Executor:
        """A fresh executor, not started, that runs at most two cells at a time."""
        raise NotImplementedError("say how to make your executor: def make_executor(self)")

    def test_it_has_the_operations(self) -> None:
        """It is an `Executor` with room for at least one cell."""
        executor = self.make_executor()
        assert isinstance(executor, Executor)
        assert executor.slots >= 1

    def test_cells_end_with_their_records(self, tmp_path: Path) -> None:
        """A good cell has the numbers of a plain run, a bad one its reason, and a second call starts nothing."""
        spec = tiny_sweep(tmp_path, rank=[2], seed=[0, 1])
        spec.cells.append({"rank": 2, "learning_rate": 1e30})
        events: list[Event] = []
        outcome = run_sweep(spec, tmp_path / "sweep", executor=self.make_executor(), on_event=events.append)
        good, bad = (cell.name for cell in spec.expand() if cell.spec.seed == 0)
        assert list(outcome.failed) == [bad]
        assert "diverged" in outcome.failed[bad]
        assert len(outcome.done) == 2
        assert [event.settled for event in events if event.kind in ("done", "failed")] == [1, 2, 3]
        plain = run(spec.expand()[0].spec, tmp_path / good, progress=False)
        found = SweepFolder(tmp_path / "sweep").store.load(good)
        assert _differences(plain, found) == []
        second: list[Event] = []
        run_sweep(spec, tmp_path / "sweep", executor=self.make_executor(), retry=False, on_event=second.append)
        assert {event.kind for event in second} == {"before"}

    def test_a_stopped_cell_goes_on(self, tmp_path: Path) -> None:
        """Stopped in the middle, a cell leaves a checkpoint and ends, after a second call, as if nothing had been."""
        if not self.stops:
            return
        spec = tiny_sweep(tmp_path, steps=200, save_steps=10, rank=[2])
        (cell,) = spec.expand()
        place = SweepFolder(tmp_path / "sweep")
        place.claim(spec)
        executor = self.make_executor()
        executor.start()
        try:
            executor.submit(str(place.root), cell.name, 0)
            checkpoints = place.store.path(cell.name) / "checkpoints"
            _until(lambda: bool(list(checkpoints.glob("checkpoint-*/trainer_state.json"))))
            assert place.is_held(cell.name)
            executor.stop()
            ended: list[Finished] = []
            _until(lambda: bool(ended.extend(executor.wait(1.0)) or ended))  # type: ignore[func-returns-value]
        finally:
            executor.close()
        assert ended[0].name == cell.name
        assert ended[0].status != "done"
        assert not place.is_held(cell.name)
        assert not place.store.is_done(cell.name)
        run_sweep(spec, place.root, executor=self.make_executor())
        plain = run(cell.spec, tmp_path / cell.name, progress=False)
        assert _differences(plain, place.store.load(cell.name)) == []


def _differences(one: RunRecord, other: RunRecord) -> list[str]:
    """Metrics and steps that are not the same; threads may change the last digits."""
    near = {
        name: abs(value - other.totals.get(name, float("inf"))) <= 1e-5 * max(1.0, abs(value))
        for name, value in one.totals.items()
    }
    bad = [name for name, same in near.items() if not same]
    steps = [[line["step"] for line in record.history] for record in (one, other)]
    return bad if steps[0] == steps[1] else [*bad, "history"]


def _until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"nothing happened for {seconds:g} seconds"
        time.sleep(0.02)
