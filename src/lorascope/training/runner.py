"""From a spec to a record: train, measure, evaluate, each stage kept on disk so that nothing is done twice."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorascope.adapters import (
    adapter_record,
    attach_adapter,
    count_parameters,
    fingerprint,
    layers_shared,
    quantization_of,
    sharing_of,
)
from lorascope.adapters.checks import fingerprints
from lorascope.adapters.load import RECORD_FILE
from lorascope.adapters.residual import base_weights_kept
from lorascope.core.errors import InputError, ModelError
from lorascope.core.files import atomic_write_text, read_json, write_json
from lorascope.core.provenance import collect
from lorascope.core.seeds import preserved_random_state
from lorascope.measuring import load_model_and_tokenizer, measure
from lorascope.measuring.processes import device
from lorascope.measuring.quantized import quantization_facts
from lorascope.results import AdapterMeasurement, RunRecord, RunStore
from lorascope.tasks import (
    Encoded,
    PaddingCollator,
    Task,
    encode_task,
    evaluate_task,
    load_task,
    pad_token_id,
    with_length,
)
from lorascope.tasks.evaluate import allowed_length
from lorascope.training.card import base_model_note, model_card
from lorascope.training.checkpoints import safetensors_fault
from lorascope.training.costs import CostKeeper, Costs
from lorascope.training.fit import fit
from lorascope.training.folder import claim, tidy
from lorascope.training.inits import attach_initialised
from lorascope.training.lora import adapted, attach_lora
from lorascope.training.probes import HeldOutLoss
from lorascope.training.spec import RESIDUAL_INITS, RunSpec
from lorascope.training.writing import explain_save_errors, remove_tree

INIT_FILE = "init.json"
"""What an initialisation by data did, beside the adapter."""


def run(
    spec: RunSpec,
    out_dir: str | Path,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: bool = True,
    resume: bool = True,
) -> RunRecord:
    """Train an adapter, measure it and evaluate it; or go on where an earlier call was interrupted.

    The folder holds ``spec.yaml``, ``metrics.jsonl`` (the loss history), ``adapter/`` (plain PEFT, with a model card)
    and, at the end, ``result.json``, whose presence means done. While the run is under way there are also
    ``checkpoints/`` and ``stages/``. A done run is returned without work. Rank 0 measures and evaluates the base model
    through an update that is zero. ``settings["costs"]`` of the record says what the run cost: see
    `lorascope.training.costs.Costs`.

    Args:
        spec: What to do.
        out_dir: Folder of this run; its last part is the run's name.
        model: The base model, if it is loaded already; it is given back as it was.
        tokenizer: Its tokenizer; give both or neither.
        progress: Whether to show progress bars.
        resume: False refuses a folder that is not empty.

    Returns:
        The record that is also in ``result.json``.

    Raises:
        InputError: The loss diverged, or the spec cannot be used (`AdapterError`, `DataError`, `ModelError`).
        OutputError: The folder holds another run or foreign files, or the disk is full. Finished stages are kept.
        KeyboardInterrupt: Ctrl-C was pressed; the same call goes on from there.

    Example:
        >>> run(RunSpec.from_mapping({"preset": "quick", "rank": 4}), "out/rank-4")  # doctest: +SKIP
    """
    if (model is None) != (tokenizer is None):
        raise InputError("give both model and tokenizer, or neither")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "a run uses one process: start it without accelerate launch, or use InformationCallback in your own trainer"
        )
    started = time.perf_counter()
    folder = Path(out_dir).resolve()
    store, name = RunStore(folder.parent), folder.name
    task = load_task(spec.task, prompt=spec.prompt, data_dir=spec.data_dir, seed=spec.seed)
    claim(store, name, spec, dict(task.sources), resume=resume)
    if store.is_done(name):
        record = store.load(name)
        tidy(folder)
        return record
    with preserved_random_state():
        lent = model is not None
        if model is None or tokenizer is None:
            model, tokenizer = load_model_and_tokenizer(
                spec.model, device=device(), share=spec.share, quantize=spec.quantize
            )
        elif spec.quantize is not None and quantization_of(model) is None:
            raise InputError(
                f"quantize '{spec.quantize}' is asked for, and the model given is dense: load it with "
                f"load_model_and_tokenizer(..., quantize='{spec.quantize}'), or give none"
            )
        with layers_shared(model, spec.share if lent else None):
            record = _Run(spec, folder, store, model, tokenizer, task, progress, started).finish()
    tidy(folder)
    return record


class _Run:
    """One run in progress: where things are, and each stage."""

    def __init__(
        self,
        spec: RunSpec,
        folder: Path,
        store: RunStore,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        progress: bool,
        started: float,
    ) -> None:
        self.spec = spec
        self.folder = folder
        self.store = store
        self.name = folder.name
        self.base = model
        self.tokenizer = tokenizer
        self.progress = progress
        self.task, self.lengths = task, None
        if spec.length is not None:
            splits = ("train", "test") if spec.rank > 0 else ("test",)
            self.task, self.lengths = with_length(task, tokenizer, *spec.length, splits=splits)
        self.text = load_task(spec.text_task, seed=spec.seed) if spec.text_task is not None else None
        self.fingerprint = fingerprint(model)
        self.parameters = count_parameters(model)
        self.quantization = quantization_facts(model)
        self.pad_id = pad_token_id(tokenizer, spec.pad_token)
        self.costs = Costs(folder / "stages" / "costs.json", model.device, started)

    def finish(self) -> RunRecord:
        """Do every stage that is not done yet, and write the result."""
        with adapted(self.base, self.adapter) as model:
            measurement = self.measurement(model)
            evaluation = self.stage("evaluation", lambda: self.evaluation(model, self.task, self.spec.eval_limit))
            totals = {**measurement.totals, **evaluation["metrics"]}
            counts = {**measurement.counts, "questions": int(evaluation["counts"]["samples"])}
            settings = {**measurement.settings, "evaluation": _with_errors(evaluation)}
            if self.text is not None:
                text, limit = self.text, self.spec.text_limit
                found = self.stage("text", lambda: self.evaluation(model, text, limit))
                totals["text_ppl"] = found["metrics"]["ppl"]
                settings["text_evaluation"] = _with_errors(found)
            counts["model_parameters"] = self.parameters
            counts["adapter_parameters"] = count_parameters(model) - self.parameters if self.spec.rank > 0 else 0
        if self.spec.rank > 0:
            facts = read_json(self.folder / "adapter" / RECORD_FILE)
            counts.update({f"train_{key}": value for key, value in facts["train_counts"].items()})
            counts["adapter_parameters"] = facts.get("adapter_parameters", counts["adapter_parameters"])
            if (init := facts.get("init")) is not None:
                settings["init"] = {key: value for key, value in init.items() if key != "warnings"}
                measurement.warnings[:0] = init.get("warnings", [])
        if self.lengths is not None:
            settings["length"] = self.lengths.to_dict()
        if (sharing := sharing_of(self.base)) is not None:
            settings["sharing"] = sharing
        if self.quantization is not None:
            settings["quantization"] = self.quantization
        settings["costs"] = self.costs.to_dict()
        record = RunRecord(
            name=self.name,
            spec=json.loads(json.dumps(dataclasses.asdict(self.spec))),
            history=self.store.metrics(self.name),
            correct=evaluation["correct"],
            totals=totals,
            layers=measurement.layers,
            counts=counts,
            settings=settings,
            warnings=self.warnings(measurement),
            provenance=collect(
                seed=self.spec.seed,
                extra={
                    "model": self.spec.model,
                    "base_fingerprint": self.fingerprint,
                    "data_sha256": dict(self.task.sources),
                },
            ),
        )
        if self.spec.rank > 0:
            card = model_card(self.spec, steps=self.steps(), totals=totals)
            atomic_write_text(self.folder / "adapter" / "README.md", card)
        self.store.finish(record)
        return record

    def adapter(self, model: nn.Module) -> PeftModel:
        """The model with its adapter: zero for rank 0, loaded if it is there, else trained."""
        if self.spec.rank == 0:
            return attach_lora(model, self.spec, rank=1)
        target = self.folder / "adapter"
        whole = target.is_dir() and safetensors_fault(target / "adapter_model.safetensors") is None
        if whole and (target / RECORD_FILE).is_file():
            return attach_adapter(self.base, target)
        return self.train(model)

    def train(self, model: nn.Module) -> PeftModel:
        """Train a fresh adapter and save it."""
        rows = encode_task(
            self.task,
            self.tokenizer,
            "train",
            limit=self.spec.train_limit,
            max_length=self.longest(),
            overlong=self.spec.overlong,
            seed=self.spec.seed,
        )
        _check_vocabulary(rows.features, self.base, self.spec.model)
        if self.spec.init not in RESIDUAL_INITS:
            return self.train_rows(model, rows)
        with base_weights_kept(self.base):
            self.train_rows(model, rows).unload()
        # On the base as it was: what is measured against it is the whole update, also after an interruption.
        return attach_adapter(self.base, self.folder / "adapter")

    def train_rows(self, model: nn.Module, rows: Encoded) -> PeftModel:
        """Train a fresh adapter on encoded rows and save it."""
        prints, collate = fingerprints(model), PaddingCollator(self.pad_id)
        stage = self.folder / "stages"
        peft_model, started = attach_initialised(
            model, self.spec, rows.features, collate, stage, progress=self.progress
        )
        try:
            with self.costs.timing("training"):
                stop = fit(
                    peft_model,
                    rows.features,
                    collate,
                    self.spec,
                    self.folder / "checkpoints",
                    write=lambda line: self.store.append_metrics(self.name, line),
                    rewind=self.rewind,
                    callbacks=[CostKeeper(self.costs), *self.probes()],
                    label=f"{self.name}: training",
                    progress=self.progress,
                )
            self.save(peft_model, rows.counts, prints, started)
        except BaseException:
            peft_model.unload()
            raise
        if stop:
            peft_model.unload()
            raise KeyboardInterrupt
        return peft_model.eval()

    def probes(self) -> list[HeldOutLoss]:
        """What looks at held-out rows while training, if that was asked for."""
        if not self.spec.probe_steps:
            return []
        rows = encode_task(
            self.task,
            self.tokenizer,
            "validation",
            limit=self.spec.probe_limit,
            max_length=self.longest(),
            overlong=self.spec.overlong,
        )
        size, write = self.spec.eval_batch_size, lambda line: self.store.append_metrics(self.name, line)
        return [HeldOutLoss(rows.features, PaddingCollator(self.pad_id), size, self.spec.probe_steps, write)]

    def save(self, model: PeftModel, counts: dict[str, int], prints: dict[str, str], started: dict[str, Any]) -> None:
        """Save the adapter under another name and rename it, so that the folder is whole or not there."""
        target, work = self.folder / "adapter", self.folder / ".adapter.tmp"
        remove_tree(work)
        remove_tree(target)
        with explain_save_errors(target):
            model.peft_config["default"].base_model_name_or_path = base_model_note(self.spec)
            model.save_pretrained(str(work), save_embedding_layers=False)
            atomic_write_text(work / "README.md", model_card(self.spec, steps=self.steps()))
            facts: dict[str, Any] = {name: getattr(self.spec, name) for name in ("task", "prompt", "share", "length")}
            facts["base_model"] = self.spec.model
            facts |= {"quantize": self.spec.quantize, "elastic": self.spec.elastic}
            if started:
                facts["init"] = {key: value for key, value in started.items() if key != "layers"}
                write_json(work / INIT_FILE, started)
            facts["adapter_parameters"] = count_parameters(model) - self.parameters
            write_json(work / RECORD_FILE, {**adapter_record(model, **facts, train_counts=counts), **prints})
            work.rename(target)

    def measurement(self, model: PeftModel) -> AdapterMeasurement:
        """Measure the adapter on the test rows, or read what an interrupted run measured."""
        path = self.folder / "stages" / "measurement.json"
        if path.is_file():
            return AdapterMeasurement.load(path)
        with self.costs.timing("measuring"):
            found = measure(
                model,
                self.task,
                tokenizer=self.tokenizer,
                metrics=self.spec.metrics,
                variant=cast(Any, self.spec.variant),
                tokens=cast(Any, self.spec.tokens),
                batch_size=self.spec.eval_batch_size,
                split="test",
                limit=self.spec.measure_limit,
                max_length=self.longest(),
                overlong=cast(Any, self.spec.overlong),
                pad_token=self.spec.pad_token,
                seed=self.spec.seed,
                progress=self.progress,
            )
            found.save(path)
        return found

    def evaluation(self, model: PeftModel, task: Task, limit: int | None) -> dict[str, Any]:
        """Score the model on a task's test rows."""
        found = evaluate_task(
            model,
            self.tokenizer,
            task,
            limit=limit,
            batch_size=self.spec.eval_batch_size,
            max_length=self.spec.max_length,
            overlong=self.spec.overlong,
            progress=self.progress,
            pad_token=self.spec.pad_token,  # the sample of a limit is the same for every seed: runs stay comparable
        )
        correct = [row["choice"] == row["answer"] for row in found.per_example if "choice" in row]
        return {**found.to_dict(), "correct": correct}

    def stage(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The value of a stage, from disk if an interrupted run computed it."""
        path = self.folder / "stages" / f"{name}.json"
        if not path.is_file():
            with self.costs.timing("evaluating"):
                write_json(path, compute())
        value: dict[str, Any] = read_json(path)
        return value

    def longest(self) -> int | None:
        """Longest row in tokens: as asked, or the model's context; texts are cut into windows instead."""
        longest = allowed_length(self.base, self.tokenizer, self.spec.max_length)
        return self.spec.max_length if self.task.kind == "text" else longest

    def warnings(self, measurement: AdapterMeasurement) -> list[str]:
        """What a reader must know: of a filter by length, and that the base was measured through an idle update."""
        notes = [] if self.lengths is None else [self.lengths.sentence()]
        if self.spec.rank > 0:
            return [*notes, *measurement.warnings]
        notes.insert(0, "this is the base model, measured through an update of rank 1 that is zero")
        return [*notes, *(line for line in measurement.warnings if "changes nothing" not in line)]

    def rewind(self, step: int) -> None:
        """Drop the lines of the loss history behind the step that training goes on from."""
        lines = [line for line in self.store.metrics(self.name) if step and line.get("step", 0) <= step]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        atomic_write_text(self.folder / "metrics.jsonl", text)

    def steps(self) -> int:
        """Optimiser steps so far, from the loss history."""
        return max((int(line["step"]) for line in self.store.metrics(self.name)), default=0)


def _check_vocabulary(features: list[dict[str, Any]], model: PreTrainedModel, name: str) -> None:
    """Refuse rows with tokens that the model has no embedding for, at which torch would stop deep inside."""
    size = len(cast(Any, model.get_input_embeddings()).weight)
    largest = max((max(row["input_ids"]) for row in features), default=0)
    if largest >= size:
        raise ModelError(
            f"the tokenizer gives token {largest} and model '{name}' knows only {size}: give a model and a tokenizer that "
            "belong together"
        )


def _with_errors(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Settings of an evaluation, with the standard errors of its metrics."""
    return {**evaluation["settings"], "errors": evaluation["errors"]}
