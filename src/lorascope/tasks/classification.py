"""Rows with a label: texts for sequence classifiers, their encoding, and the scoring that images share."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from lorascope.core.errors import DataError, InputError, ModelError, unknown_name
from lorascope.core.files import sha256_of
from lorascope.tasks.classifiers import Classes
from lorascope.tasks.collate import pad_token_id
from lorascope.tasks.encode import OVERLONG
from lorascope.tasks.evaluate import Evaluation
from lorascope.tasks.files import find_files, read_mappings
from lorascope.tasks.registry import TASKS
from lorascope.tasks.rows import FORMATS

TEXT_FORMAT = '{"text", "label"} or {"text", "text_pair", "label"}'


@dataclass(frozen=True)
class LabelledText:
    """A text, or a pair of texts, with the index or name of its class. `where` is file and line, for messages."""

    text: str
    text_pair: str | None
    label: int | str
    where: str


@dataclass(frozen=True)
class LabelledImage:
    """An image with the index or name of its class: a file, or the bytes of one that a Parquet row held."""

    path: Path
    label: int | str
    where: str
    data: bytes | None = None


LabelledRow: TypeAlias = LabelledText | LabelledImage
_Row = TypeVar("_Row", LabelledText, LabelledImage)


@dataclass(frozen=True)
class LabelledTask:
    """Rows with a label, by split.

    Attributes:
        name: The path they were read from.
        kind: ``sequence`` (texts) or ``image``.
        splits: Rows by split name, each at least one row.
        sources: File -> SHA-256.
        folders: Names of the class folders, in alphabetical order; empty where labels stand in rows.
        notes: What a reader must know, one sentence each.
    """

    name: str
    kind: str
    splits: Mapping[str, tuple[LabelledRow, ...]] = field(repr=False)
    sources: Mapping[str, str] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def rows(self, split: str) -> tuple[LabelledRow, ...]:
        """The rows of a split.

        Raises:
            DataError: There is no such split.
        """
        if split not in self.splits:
            raise DataError(
                f"'{self.name}' has no split '{split}': it has {', '.join(self.splits)}; choose one of them"
            )
        return self.splits[split]


def existing_path(name: str, row_format: str) -> Path:
    """The path of a user's rows.

    Raises:
        DataError: It is the name of a task for language models, or there is no such file or folder.
    """
    path = Path(name).expanduser()
    if name in TASKS and not path.exists():
        raise DataError(f"task '{name}' is for language models: a classifier takes rows of {row_format} by path")
    if not path.exists():
        raise DataError(f"no file or folder '{name}': give the path of rows {row_format}")
    return path


def load_labelled_texts(name: str) -> LabelledTask:
    """Read texts with labels from a JSONL or Parquet file, or a folder with one for each split.

    Args:
        name: Path. The rows of a single file are split by index as those of other tasks; split ``all`` has every row.

    Returns:
        The task, every row checked but for the label, whose classes only the model knows.

    Raises:
        DataError: There is no such file, or a row is wrong; the message names file and line.
    """
    path = existing_path(name, TEXT_FORMAT)
    splits, sources = read_labelled(path, _text_row, TEXT_FORMAT)
    return LabelledTask(name, "sequence", splits, sources)


def read_labelled(
    path: Path, parse: Callable[[Mapping[str, Any], str], _Row], row_format: str
) -> tuple[dict[str, tuple[_Row, ...]], dict[str, str]]:
    """Rows by split, and the SHA-256 of each file; see `load_labelled_texts`."""
    with _own_format(row_format):
        files = find_files(path)
        splits = {
            split: tuple(parse(values, where) for where, values in read_mappings(file)) for split, file in files.items()
        }
    if path.is_file():
        every = splits["all"]
        parts = {"train": every[:0], "validation": every[5::10], "test": every[::10]}
        parts["train"] = tuple(row for index, row in enumerate(every) if index % 10 not in (0, 5))
        splits = {split: part for split, part in parts.items() if part} | {"all": every}
    return splits, {file.name: sha256_of(file) for file in files.values()}


@contextlib.contextmanager
def _own_format(row_format: str) -> Iterator[None]:
    """Name the rows of a classifier where the reader of files names those of language models."""
    try:
        yield
    except DataError as error:
        raise DataError(str(error).replace(FORMATS, row_format)) from error


def _text_row(values: Mapping[str, Any], where: str) -> LabelledText:
    if "text" not in values and "image" in values:
        raise DataError(f"{where}: a row of an image, but the adapter is of a text classifier: rows are {TEXT_FORMAT}")
    label = label_of(values, "text", where, TEXT_FORMAT)
    pair = values.get("text_pair")
    return LabelledText(
        text_of(values["text"], "text", where),
        None if pair is None else text_of(pair, "text_pair", where),
        label,
        where,
    )


def label_of(values: Mapping[str, Any], content: str, where: str, row_format: str) -> int | str:
    """The label of a row as index or name, after a look whether the row has its keys.

    Raises:
        DataError: A key is missing, or the label is neither a whole number nor a name.
    """
    missing = [key for key in (content, "label") if key not in values]
    if missing:
        found = ", ".join(f"'{key}'" for key in values) or "no keys"
        names = " and ".join(f"'{key}'" for key in missing)
        raise DataError(f"{where}: key {names} is missing (found {found}): a row is {row_format}")
    label = values["label"]
    if isinstance(label, np.integer):
        label = int(label)
    if isinstance(label, bool) or not isinstance(label, int | str) or label == "":
        shown = "null" if label is None else repr(label)
        raise DataError(f"{where}: label {shown} is no class: give its index as a whole number, or its name")
    return label


def text_of(value: Any, name: str, where: str) -> str:
    """A text of a row.

    Raises:
        DataError: It is empty, or no text.
    """
    if not isinstance(value, str):
        raise DataError(f"{where}: '{name}' must be text, not {'null' if value is None else type(value).__name__}")
    if not value.strip():
        raise DataError(f"{where}: '{name}' is empty: fill it in or delete the row")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise DataError(f"{where}: '{name}' holds half a character (a lone surrogate): write it again as UTF-8")
    return value


@dataclass(frozen=True)
class EncodedRows:
    """Rows as a model takes them.

    Attributes:
        features: A data set of mappings with ``labels``.
        where: File and line of each.
        collate: Makes a batch of features.
        counts: ``truncated`` and ``dropped``.
    """

    features: Any
    where: list[str]
    collate: Callable[[list[Any]], Mapping[str, Any]]
    counts: dict[str, int] = field(default_factory=dict)

    def loader(self, batch_size: int) -> DataLoader[Any]:
        """Batches in the order of the rows."""
        return DataLoader(self.features, batch_size=batch_size, shuffle=False, collate_fn=self.collate)


def encode_texts(
    rows: Sequence[LabelledText],
    classes: Classes,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    overlong: str = "error",
    pad_token: str | None = None,
) -> EncodedRows:
    """Token ids of texts and pairs of texts, as the tokenizer joins them.

    Args:
        rows: The rows.
        classes: The model's classes.
        tokenizer: The model's tokenizer; its padding side is kept.
        max_length: Largest number of tokens.
        overlong: What happens to longer rows: ``error``, ``drop`` or ``truncate`` (the longer text first); counted.
        pad_token: Pad token where the tokenizer has none; it becomes the tokenizer's own.

    Returns:
        Features with the tokenizer's inputs and ``labels``.

    Raises:
        DataError: A row is too long or has no token, its label is no class, or nothing is left.
        InputError: An option is wrong.
        ModelError: There is no pad token.
    """
    if overlong not in OVERLONG:
        raise unknown_name("overlong", overlong, OVERLONG)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_token_id(tokenizer, pad_token))
    features, where, counts = [], [], {"truncated": 0, "dropped": 0}
    for row in rows:
        label = classes.index(row.label, row.where)
        feature = dict(tokenizer(row.text, row.text_pair, verbose=False))
        length = len(feature["input_ids"])
        if not length:
            raise DataError(f"{row.where}: the tokenizer makes no token of {row.text[:40]!r}: delete the row")
        if max_length is not None and length > max_length:
            if overlong == "error":
                raise DataError(
                    f"{row.where}: the text is {length} tokens, over the limit of {max_length}: give --overlong drop or "
                    "--overlong truncate, or a larger --max-length if the model allows it"
                )
            counts["dropped" if overlong == "drop" else "truncated"] += 1
            if overlong == "drop":
                continue
            feature = dict(tokenizer(row.text, row.text_pair, truncation=True, max_length=max_length, verbose=False))
        features.append({**feature, "labels": label})
        where.append(row.where)
    if not features:
        raise DataError(
            f"all {counts['dropped']} rows are over the limit of {max_length} tokens and were dropped: give --overlong "
            "truncate or a larger --max-length"
        )
    return EncodedRows(features, where, DataCollatorWithPadding(tokenizer), counts)


def check_first(model: torch.nn.Module, encoded: EncodedRows) -> None:
    """Run one row through a model, so that data which it cannot take is explained before the measurement starts.

    Raises:
        ModelError: The model refuses it; the message has its reason.
    """
    batch = encoded.collate([encoded.features[0]])
    try:
        with torch.no_grad():
            model(**_inputs(model, batch))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{encoded.where[0]}: the model cannot take this row ({reason[:200]}): does the base model's tokenizer or image "
            "processor belong to it?"
        ) from error


def score_classifier(
    model: torch.nn.Module,
    encoded: EncodedRows,
    *,
    batch_size: int = 16,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Evaluation:
    r"""Accuracy and cross-entropy of a classifier.

    With :math:`p_{ic}` the softmax of the logits of row i, :math:`\text{accuracy} = \frac1n \sum_i [\arg\max_c p_{ic} =
    y_i]` and :math:`\text{ce} = -\frac1n \sum_i \ln p_{iy_i}` in nats per row.

    Args:
        model: A classifier, with or without an adapter, in evaluation mode.
        encoded: Rows with ``labels``.
        batch_size: Rows in a forward pass.
        settings: Facts to keep with the result, such as the split.
        progress: Show a bar.

    Returns:
        ``accuracy`` and ``ce`` with standard errors over rows, and one record a row.

    Raises:
        ModelError: The logits hold NaN or infinity.
        InputError: The model gives no logits over classes.
    """
    loader = encoded.loader(batch_size)
    records: list[dict[str, Any]] = []
    with torch.no_grad():
        for batch in tqdm(loader, desc="scoring", unit="batch", disable=not progress):
            logits = getattr(model(**_inputs(model, batch)), "logits", None)
            if logits is None or logits.dim() != 2:
                raise InputError(f"{type(model).__name__} gives no logits over classes: give a classifier")
            if not bool(torch.isfinite(logits).all()):
                raise ModelError(
                    "the logits hold NaN or infinity: check the adapter's weights, or load the model in float32"
                )
            labels = batch["labels"].to(logits.device)
            nats = torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none")
            for label, choice, loss in zip(labels.tolist(), logits.argmax(-1).tolist(), nats.tolist(), strict=True):
                records.append({"where": encoded.where[len(records)], "answer": label, "choice": choice, "nats": loss})
    count = len(records)
    share = sum(record["choice"] == record["answer"] for record in records) / count
    losses = np.array([record["nats"] for record in records])
    errors: dict[str, float] = {}
    if count > 1:
        errors = {
            "accuracy": math.sqrt(share * (1 - share) / (count - 1)),
            "ce": float(losses.std(ddof=1)) / math.sqrt(count),
        }
    metrics = {"accuracy": share, "ce": float(losses.mean())}
    return Evaluation(metrics, errors, {"samples": count, **encoded.counts}, records, dict(settings or {}))


def _inputs(model: torch.nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    device = next(model.parameters()).device
    return {key: value.to(device) for key, value in batch.items() if key != "labels"}


def labels_of(rows: Iterable[LabelledRow], classes: Classes) -> None:
    """Check the label of every row against the model's classes.

    Raises:
        DataError: One is no class.
    """
    for row in rows:
        classes.index(row.label, row.where)
