"""What watches the Trainer during a run: the progress bar, the loss history, and Ctrl-C."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging as transformers_logging

from lorascope.core.errors import InputError


class Progress(TrainerCallback):
    """One bar for the whole training, with the loss and the time left."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.bar: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar where the checkpoint left it."""
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc=self.label, unit="step", dynamic_ncols=True
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Show the loss beside the bar."""
        if self.bar is not None and logs and "loss" in logs:
            self.bar.set_postfix_str(f"loss {logs['loss']:.3f}")

    def close(self) -> None:
        """Close the bar, also after an error."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class LossHistory(TrainerCallback):
    """Hands each logged loss on, and stops a run whose loss is no longer a number.

    Args:
        write: Called with ``{"step", "epoch", "loss", "learning_rate", "grad_norm"}``.
    """

    def __init__(self, write: Callable[[dict[str, Any]], None]) -> None:
        self.write = write

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Pass the loss on.

        Raises:
            InputError: The loss is not finite.
        """
        if not logs or "loss" not in logs:
            return
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise InputError(
                f"the loss is {loss} at step {state.global_step} with learning_rate {args.learning_rate:g}: "
                "training diverged; use a smaller learning_rate, in a new output folder"
            )
        if state.is_world_process_zero:
            names = ("epoch", "loss", "learning_rate", "grad_norm")
            self.write({"step": state.global_step, **{name: float(logs[name]) for name in names if name in logs}})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Look at the weights once: the last step can break them, and no loss is computed after it.

        Raises:
            InputError: A trained weight is not finite.
        """
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
                raise InputError(
                    f"'{name}' is not finite after step {state.global_step} with learning_rate {args.learning_rate:g}: "
                    "training diverged; use a smaller learning_rate, in a new output folder"
                )


class Interrupt(TrainerCallback):
    """Ctrl-C that loses nothing: the first ends the step, saves and stops; the second stops at once.

    Also leaves out the checkpoint after the last step, since the adapter itself is saved then, and logs that step.

    Attributes:
        asked: Whether Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        self.asked = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Decide at the end of a step whether to save and stop."""
        last = state.global_step >= state.max_steps
        control.should_log = control.should_log or last
        control.should_save = not last and (control.should_save or self.asked)
        control.should_training_stop = control.should_training_stop or self.asked
        return control

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Signal handler.

        Raises:
            KeyboardInterrupt: At the second signal.
        """
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        sys.stderr.write("\nstopping after this step, which is then saved; press Ctrl-C again to stop at once\n")

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle Ctrl-C in here, and give it back afterwards. Does nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self.handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Let transformers report errors only, until the end of the block."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
