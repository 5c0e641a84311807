"""Training an adapter with transformers' Trainer, so that it can be interrupted at any time."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from lorascope.adapters import elastic_parameter_groups
from lorascope.adapters.elastic import betas
from lorascope.adapters.residual import save_residual
from lorascope.core.errors import InputError, unknown_name
from lorascope.core.seeds import preserved_random_state
from lorascope.measuring.processes import device
from lorascope.training.checkpoints import find_resume
from lorascope.training.observers import Interrupt, LossHistory, Progress, quiet_transformers
from lorascope.training.spec import RunSpec
from lorascope.training.writing import explain_save_errors


class AdapterTrainer(Trainer):
    """A Trainer whose checkpoints hold the adapter only, and which never asks a hub about the base model.

    Attributes:
        beta_learning_rate: Step size of the strengths of elastic connections; None is that of the rest.
    """

    beta_learning_rate: float | None = None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the adapter as safetensors.

        PEFT would otherwise look for the base model's configuration on the hub at every checkpoint, and the Trainer
        would add a pickled copy of its arguments.
        """
        if self.args.should_save:
            model: Any = self.model
            save_residual(model, output_dir or str(self.args.output_dir), save_embedding_layers=False)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The optimiser; the strengths of elastic connections have a group of their own, without weight decay."""
        model: Any = self.model
        if self.optimizer is None and betas(model):
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            rate = self.args.learning_rate
            groups = elastic_parameter_groups(
                model,
                learning_rate=rate,
                elastic_learning_rate=rate if self.beta_learning_rate is None else self.beta_learning_rate,
                weight_decay=self.args.weight_decay,
            )
            self.optimizer = kind(groups, **options)
        return super().create_optimizer(*args, **kwargs)


def training_arguments(spec: RunSpec, rows: int, folder: Path) -> TrainingArguments:
    """The Trainer's arguments for a spec.

    Args:
        spec: The run.
        rows: Training rows, to place checkpoints and log lines.
        folder: Where the checkpoints go.

    Returns:
        Arguments for one device.

    Raises:
        InputError: transformers knows no tracker of that name.
    """
    if spec.report_to not in ("none", *INTEGRATION_TO_CALLBACK):
        raise unknown_name("tracker in report_to", spec.report_to, ["none", *INTEGRATION_TO_CALLBACK])
    steps = spec.max_steps or math.ceil(math.ceil(rows / spec.batch_size) * spec.epochs)
    micro = spec.micro_batch_size or spec.batch_size
    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=spec.batch_size // micro,
        max_steps=spec.max_steps or -1,
        num_train_epochs=float(spec.epochs),
        learning_rate=float(spec.learning_rate),
        lr_scheduler_type=spec.schedule,
        warmup_steps=spec.warmup_steps,
        optim=spec.optimizer,
        weight_decay=float(spec.weight_decay),
        max_grad_norm=float(spec.max_grad_norm),
        seed=spec.seed,
        save_strategy="steps",
        save_steps=spec.save_steps or max(1, min(500, math.ceil(steps / 4))),
        save_total_limit=2,
        logging_steps=spec.logging_steps or max(1, steps // 200),
        logging_nan_inf_filter=False,
        report_to=spec.report_to,
        include_num_input_tokens_seen="non_padding",
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=device().type == "cpu",
    )
    if args.n_gpu > 1:
        args._n_gpu = 1  # one device: DataParallel would multiply the batch size
    return args


def fit(
    model: PeftModel,
    features: Sequence[dict[str, Any]],
    collate: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]],
    spec: RunSpec,
    folder: Path,
    *,
    write: Callable[[dict[str, Any]], None],
    rewind: Callable[[int], None],
    callbacks: Sequence[TrainerCallback] = (),
    label: str = "training",
    progress: bool = True,
) -> bool:
    """Train an adapter in place, going on from the newest whole checkpoint in ``folder``.

    A run that was interrupted and resumed gives the numbers of an undisturbed one: the Trainer restores optimiser,
    schedule and random state, and skips the rows that were seen.

    Args:
        model: PEFT model with the fresh adapter.
        features: Encoded training rows.
        collate: Makes a batch of rows.
        spec: The run.
        folder: Where the checkpoints go.
        write: Called with every line of the loss history.
        rewind: Called once with the step training starts from, so that later lines of the history can be dropped.
        callbacks: Further callbacks of the Trainer.
        label: Text before the progress bar.
        progress: Whether to show it.

    Returns:
        Whether Ctrl-C was pressed during the last step: training is done, and the caller should stop when it is saved.

    Raises:
        InputError: The loss is not finite any more.
        OutputError: The disk is full.
        KeyboardInterrupt: Ctrl-C was pressed; the steps so far are saved.
    """
    resume = find_resume(folder, discard=True)
    for sentence in resume.skipped:
        sys.stderr.write(f"{sentence}\n")
    interrupt = Interrupt()
    bar = Progress(label)
    with preserved_random_state(), quiet_transformers(), explain_save_errors(folder):
        rewind(resume.step)
        arguments = training_arguments(spec, len(features), folder)
        try:
            trainer = AdapterTrainer(
                model=model,
                args=arguments,
                train_dataset=features,
                data_collator=collate,
                callbacks=[LossHistory(write), *([bar] if progress else []), interrupt, *callbacks],
            )
        except (RuntimeError, ImportError, ValueError) as error:
            if spec.report_to == "none":
                raise
            reason = " ".join(str(error).split())
            raise InputError(f"report_to '{spec.report_to}' cannot be used: {reason}") from error
        trainer.remove_callback(PrinterCallback)
        trainer.beta_learning_rate = None if spec.beta_learning_rate is None else float(spec.beta_learning_rate)
        try:
            with interrupt.listening():
                trainer.train(resume_from_checkpoint=None if resume.checkpoint is None else str(resume.checkpoint))
        finally:
            bar.close()
        finished = trainer.state.global_step >= trainer.state.max_steps
    if interrupt.asked and not finished:
        raise KeyboardInterrupt
    return interrupt.asked
