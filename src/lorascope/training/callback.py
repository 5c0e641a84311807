"""A callback that adds the information metrics to every evaluation of a transformers or TRL trainer."""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

from accelerate.utils import extract_model_from_parallel
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorascope.core.errors import InputError, unknown_name
from lorascope.core.metrics import resolve_groups
from lorascope.core.seeds import preserved_random_state
from lorascope.measuring import measure
from lorascope.training.spec import TOKENS, VARIANTS


class InformationCallback(TrainerCallback):
    """Measures the adapter at every evaluation, and logs the totals beside the evaluation's own numbers.

    The values go through ``trainer.log``, so they reach ``state.log_history`` and every tracker of ``report_to``, and
    into the dictionary that ``trainer.evaluate()`` returns, so that ``metric_for_best_model="eval_miub_js"`` works.
    Training itself is not touched: random state, gradients and the model's mode are as before. With several processes
    each must have the callback, as every callback of a trainer does.

    The callback needs the trainer, which transformers does not hand to callbacks; it finds the one that is calling it.

    Args:
        data: What to measure on: anything that `lorascope.measure` takes. By default the evaluation's own rows.
        metrics: Metric or group names.
        variant: ``local`` (one pass) or ``base`` (two passes).
        tokens: Which tokens count: ``all``, ``prompt``, ``completion`` or ``last``.
        max_samples: Most rows of the evaluation's own data; None means all. Ignored with ``data``.
        prefix: Put before the names; by default that of the evaluation: ``eval_``, or ``eval_NAME_`` if it has several
            sets.
        seed: For the metrics that draw at random.

    Raises:
        InputError: A metric is unknown, or ``max_samples`` is below 1.

    Example:
        >>> callback = InformationCallback(metrics=("miub_js",), max_samples=64)
        >>> # trainer = SFTTrainer(..., callbacks=[callback])
    """

    def __init__(
        self,
        data: Any = None,
        *,
        metrics: Iterable[str] = ("miub_js", "update_ratio"),
        variant: str = "local",
        tokens: str = "all",
        max_samples: int | None = 256,
        prefix: str | None = None,
        seed: int = 0,
    ) -> None:
        self.data = data
        self.metrics = resolve_groups(metrics)
        self.variant = variant
        self.tokens = tokens
        self.prefix = prefix
        self.seed = seed
        for kind, value, known in (("variant", variant, VARIANTS), ("tokens", tokens, TOKENS)):
            if value not in known:
                raise unknown_name(kind, value, known)
        if max_samples is not None and max_samples < 1:
            raise InputError(f"max_samples {max_samples} must be at least 1")
        self.max_samples = max_samples
        self._busy = False

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Measure, log, and add to ``metrics``."""
        if self._busy:
            return
        self._busy = True
        try:
            values = self._measure(args, metrics or {}, **kwargs)
        finally:
            self._busy = False
        if metrics is not None:
            metrics.update(values)
        trainer = find_trainer(self)
        if trainer is not None:
            trainer.log(dict(values))
        else:
            state.log_history.append({**values, "step": state.global_step})
            warnings.warn("InformationCallback was called by no Trainer: trackers do not get its values", stacklevel=2)

    def _measure(self, args: TrainingArguments, metrics: dict[str, float], **kwargs: Any) -> dict[str, float]:
        with preserved_random_state():
            data = self.data if self.data is not None else self._rows(args, kwargs.get("eval_dataloader"))
            found = measure(
                extract_model_from_parallel(kwargs["model"]),
                data,
                tokenizer=kwargs.get("processing_class"),
                metrics=self.metrics,
                variant=cast(Any, self.variant),
                tokens=cast(Any, self.tokens),
                batch_size=args.per_device_eval_batch_size,
                seed=self.seed,
                progress=False,
            )
        prefix = self.prefix if self.prefix is not None else _prefix_of(metrics)
        return {f"{prefix}{name}": float(value) for name, value in found.totals.items()}

    def _rows(self, args: TrainingArguments, loader: Any) -> list[Any]:
        """The evaluation's first rows as batches, the same in every process."""
        if loader is None or not hasattr(loader, "dataset"):
            raise InputError("InformationCallback has no data: pass data=..., or give the trainer an eval_dataset")
        dataset = loader.dataset
        rows = itertools.islice(_iterate(dataset), self.max_samples)
        return [loader.collate_fn(batch) for batch in _batches(rows, args.per_device_eval_batch_size)]


def find_trainer(callback: TrainerCallback) -> Trainer | None:
    """The trainer that is calling a callback, found among the callers; None if there is none.

    transformers hands a callback everything except its trainer. Keeping a reference instead would need a second line in
    the user's script and would tie the two together for good.
    """
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Trainer) and callback in owner.callback_handler.callbacks:
            return owner
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _prefix_of(metrics: dict[str, float]) -> str:
    ends = [name.removesuffix("runtime") for name in metrics if name.endswith("_runtime")]
    return ends[0] if len(ends) == 1 else "eval_"


def _iterate(dataset: Any) -> Iterator[Any]:
    if isinstance(dataset, Sequence) or (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        return (dataset[index] for index in range(len(dataset)))
    return iter(dataset)


def _batches(rows: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while batch := list(itertools.islice(rows, size)):
        yield batch
