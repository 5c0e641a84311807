"""Loading the base model of a classifier with its tokenizer or image processor, and the classes it knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)

from lorascope.core.errors import DataError, ModelError, unknown_name
from lorascope.core.optional import require
from lorascope.core.seeds import preserved_random_state
from lorascope.tasks.embedded import DTYPES, quiet_transformers, resolve_model, why_not
from lorascope.tasks.heads import check_saved_modules, class_outputs, count_classes, missing_head, saved_shapes
from lorascope.tasks.kinds import read_config

_AUTO = {
    "sequence": (AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, "sequence classifier"),
    "image": (AutoModelForImageClassification, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, "image classifier"),
}


@dataclass(frozen=True)
class Classes:
    """The classes of a model.

    Attributes:
        count: How many there are.
        names: Name -> index, as the model's configuration has them (``label2id``, ``id2label``).
        named: Whether these names were given by somebody, or are transformers' ``LABEL_0``, ``LABEL_1`` ...
    """

    count: int
    names: Mapping[str, int]
    named: bool

    def index(self, label: int | str, where: str) -> int:
        """The index of a label that a row gives as index or name.

        Args:
            label: The label.
            where: File and line, for messages.

        Returns:
            An index from 0 to ``count - 1``.

        Raises:
            DataError: There is no such class.
        """
        if isinstance(label, int):
            if not 0 <= label < self.count:
                raise DataError(
                    f"{where}: label {label} is outside the {self.count} classes of the model: indices count from 0, so "
                    f"give 0 to {self.count - 1}"
                )
            return label
        if label not in self.names:
            shown = ", ".join(f"'{name}'" for name in list(self.names)[:8]) + (", ..." if len(self.names) > 8 else "")
            known = f"one of {shown}, or" if self.named else "its index, since the configuration names no classes:"
            raise DataError(f"{where}: label '{label}' is no class of the model: give {known} 0 to {self.count - 1}")
        return self.names[label]


@dataclass(frozen=True)
class Classifier:
    """A base model that is ready for its adapter.

    Attributes:
        model: The base model, in evaluation mode.
        processor: Its tokenizer (sequence) or image processor (image).
        classes: Its classes.
        random_head: Weights of the head that neither base model nor adapter has; empty if all is there.
        notes: What a reader must know, one sentence each.
    """

    model: PreTrainedModel
    processor: Any
    classes: Classes
    random_head: list[str]
    notes: list[str] = field(default_factory=list)


def load_classifier(
    name: str,
    adapter: str,
    *,
    kind: str,
    trained: Sequence[str] = (),
    need_head: bool = True,
    dtype: str = "float32",
    device: str | torch.device | None = None,
) -> Classifier:
    """Load the base model of a classification adapter; code from the hub is never executed.

    The number of classes is that of the head that the adapter brings (``modules_to_save``), else the configuration's.

    Args:
        name: Folder or hub id of the base model.
        adapter: Folder or hub id of the adapter, which tells the number of classes.
        kind: ``sequence`` or ``image``.
        trained: The adapter's ``modules_to_save``.
        need_head: Refuse a head that neither base model nor adapter has weights for.
        dtype: Type of the weights: ``float32``, ``bfloat16`` or ``float16``.
        device: Where to put the model; by default it stays on the CPU.

    Returns:
        Model, tokenizer or image processor, and classes.

    Raises:
        InputError: The dtype is unknown.
        ModelError: There is no such model, it is no classifier of this kind, or weights are missing.
        AdapterError: The adapter's file cannot be read, is not complete, or brings weights for other modules.
        MissingDependencyError: Images are to be read and Pillow is not installed.
    """
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    if kind == "image":
        require("PIL.Image", install="pillow", purpose="reading images")
    auto, mapping, what = _AUTO[kind]
    config = read_config(name)
    if type(config) not in mapping:
        raise ModelError(
            f"base model '{name}' is of type {config.model_type}, of which transformers has no {what}: pass the "
            "adapter's own base model with --model, or its own kind with --kind"
        )
    saved = saved_shapes(adapter)
    count = count_classes(saved, class_outputs(config, auto), adapter)
    count = _declared(config) if count is None else count
    _check_problem(name, config, count)
    source = resolve_model(name)
    # The configuration's names are lost where they are fewer or more than the head that the adapter brings.
    changed = {"num_labels": count, "ignore_mismatched_sizes": True} if count != config.num_labels else {}
    with quiet_transformers(reports=True), preserved_random_state():
        torch.manual_seed(0)  # whatever is missing is the same every time
        try:
            model, info = auto.from_pretrained(
                source, dtype=DTYPES[dtype], trust_remote_code=False, output_loading_info=True, **changed
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ModelError(why_not(name, "model", error, what)) from error
        processor = _load_processor(name, source, kind, what)
    check_saved_modules(adapter, saved, trained, model)
    lost = {*info["missing_keys"], *(key if isinstance(key, str) else key[0] for key in info["mismatched_keys"])}
    random_head = missing_head(name, model, lost, saved, need_head=need_head)
    model.train(False)
    if device is not None:
        torch.nn.Module.to(model, device)
    return Classifier(model, processor, _classes(model.config), random_head)


def _load_processor(name: str, source: str, kind: str, what: str) -> Any:
    part = "tokenizer" if kind == "sequence" else "image processor"
    try:
        if kind == "sequence":
            return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        from transformers import AutoImageProcessor

        load: Any = AutoImageProcessor.from_pretrained
        return load(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(why_not(name, part, error, what)) from error


def _check_problem(name: str, config: PretrainedConfig, count: int) -> None:
    problem = getattr(config, "problem_type", None)
    if problem not in (None, "single_label_classification") or count < 2:
        what = problem or f"a head with {count} output"
        raise ModelError(
            f"base model '{name}' does {what}, where one class of several is scored here: call lorascope.measure(model, "
            "batches) in Python"
        )


def _classes(config: PretrainedConfig) -> Classes:
    names = {str(name): int(index) for index, name in (config.id2label or {}).items()}
    names |= {str(name): int(index) for name, index in (config.label2id or {}).items()}
    count = _declared(config)
    names = {name: index for name, index in names.items() if 0 <= index < count}
    return Classes(count, names, set(names) != {f"LABEL_{index}" for index in range(count)})


def _declared(config: PretrainedConfig) -> int:
    """The number of classes that a configuration gives; transformers' own default is 2."""
    return int(config.num_labels or 0)
