"""What the cells of a sweep will cost, before any of them runs: a guess, and called one."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lorascope.adapters import layers_shared
from lorascope.adapters.sharing import count_parameters
from lorascope.core.errors import ModelError
from lorascope.sweeps.cells import Cell
from lorascope.tasks import encode_task, load_task, with_length
from lorascope.tasks.embedded import EMBEDDED_NAME, embedded_model_path
from lorascope.tasks.rows import ChoiceRow, Task
from lorascope.training.spec import RunSpec

_SAMPLE = 64
_EFFICIENCY = 0.5


@dataclass(frozen=True)
class CellGuess:
    """What a cell is expected to cost.

    Attributes:
        name: The cell.
        parameters: Distinct parameters of the base model.
        steps: Optimiser steps.
        flops: Operations of training, measuring and evaluating; a multiply and an add are two.
        seconds: ``flops`` over the speed of this machine.
    """

    name: str
    parameters: int
    steps: int
    flops: float
    seconds: float


def guess_costs(cells: Sequence[Cell], *, flops_per_second: float | None = None) -> list[CellGuess]:
    """Guess what cells cost.

    A token costs ``2 N`` operations in a forward pass and ``4 N`` in a training step, where the frozen weights need no
    gradient of their own. Lengths are the mean of a sample of rows. No weights are loaded.

    Args:
        cells: The cells.
        flops_per_second: Speed of the machine; by default half of what a matrix product reaches here.

    Returns:
        One guess a cell, in the same order.

    Raises:
        ModelError: A base model is not there.
        DataError: A task is not there, or has no rows of the length asked for.

    References:
        2 N operations a token: Kaplan et al., arXiv 2001.08361.
    """
    speed = flops_per_second or measured_speed() * _EFFICIENCY
    models: dict[tuple[str, int | None], int] = {}
    tasks: dict[tuple[Any, ...], dict[str, tuple[int, float]]] = {}
    found = []
    for cell in cells:
        spec = cell.spec
        model_key = (spec.model, spec.share)
        if model_key not in models:
            models[model_key] = base_parameters(spec)
        task_key = (spec.model, spec.task, spec.data_dir, spec.prompt, spec.length)
        if task_key not in tasks:
            tasks[task_key] = _rows_and_tokens(spec)
        parameters, data = models[model_key], tasks[task_key]
        rows, tokens = data["train"]
        rows = min(rows, spec.train_limit or rows)
        steps = 0 if spec.rank == 0 else spec.max_steps or math.ceil(math.ceil(rows / spec.batch_size) * spec.epochs)
        flops = 4.0 * parameters * tokens * steps * spec.batch_size
        for split, limit in (("test", spec.measure_limit), ("scored", spec.eval_limit)):
            count, length = data[split]
            flops += 2.0 * parameters * length * min(count, limit or count)
        found.append(CellGuess(cell.name, parameters, steps, flops, flops / speed))
    return found


def base_parameters(spec: RunSpec) -> int:
    """Distinct parameters of a run's base model, counted without loading a weight.

    Raises:
        ModelError: The model is not there, or is none that lorascope can train.
    """
    with torch.device("meta"):
        try:
            auto: Any = AutoModelForCausalLM
            model = auto.from_config(AutoConfig.from_pretrained(_source(spec.model)))
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise ModelError(f"model '{spec.model}' cannot be read: {reason[:200]}") from error
        with layers_shared(model, spec.share):
            return count_parameters(model)


def measured_speed(seconds: float = 0.2) -> float:
    """Operations a second of a float32 matrix product on the device that runs use."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    left, right = torch.ones(512, 1024, device=device), torch.ones(1024, 1024, device=device)
    rates: list[float] = []
    end = time.perf_counter() + seconds
    while len(rates) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        (left @ right).sum().item()
        rates.append(2.0 * 512 * 1024 * 1024 / (time.perf_counter() - start))
    return statistics.median(rates)


def _rows_and_tokens(spec: RunSpec) -> dict[str, tuple[int, float]]:
    """Rows and mean tokens of a row: train, test, and test with every choice scored."""
    task = load_task(spec.task, prompt=spec.prompt, data_dir=spec.data_dir, seed=spec.seed)
    tokenizer = AutoTokenizer.from_pretrained(_source(spec.model))
    if spec.length is not None:
        task, _ = with_length(task, tokenizer, *spec.length, splits=("train", "test"))
    found = {split: (len(task.splits[split]), _tokens(task, tokenizer, split)) for split in ("train", "test")}
    rows, tokens = found["test"]
    first = task.splits["test"][0]
    found["scored"] = (rows, tokens * (len(first.choices) if isinstance(first, ChoiceRow) else 1))
    return found


def _tokens(task: Task, tokenizer: Any, split: str) -> float:
    encoded = encode_task(task, tokenizer, split, limit=_SAMPLE)
    return encoded.counts["tokens"] / encoded.counts["samples"]


def _source(model: str) -> str:
    return str(embedded_model_path()) if model == EMBEDDED_NAME else model
