"""Rows with a label, of texts or images: reading them and turning them into what a classifier takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorascope.core.errors import InputError
from lorascope.tasks.classification import (
    EncodedRows,
    LabelledImage,
    LabelledTask,
    LabelledText,
    encode_texts,
    labels_of,
    load_labelled_texts,
)
from lorascope.tasks.classifiers import Classifier
from lorascope.tasks.evaluate import allowed_length
from lorascope.tasks.images import digest_images, encode_images, load_labelled_images, number_folders
from lorascope.tasks.rows import sample_indices


def load_labelled(name: str, kind: str) -> LabelledTask:
    """Read rows with a label; see `load_labelled_texts` and `load_labelled_images`.

    Args:
        name: Path.
        kind: ``sequence`` or ``image``.

    Returns:
        The rows by split.

    Raises:
        DataError: There is no such path, or a row is wrong; the message names file and line.
    """
    return load_labelled_texts(name) if kind == "sequence" else load_labelled_images(name)


def fit_labels(task: LabelledTask, split: str, classifier: Classifier) -> LabelledTask:
    """Check every label of a split against the model's classes, and give class folders their indices.

    Args:
        task: The rows.
        split: The split that is used; others may be without labels (-1).
        classifier: The model with its classes.

    Returns:
        The task; of images, with a hash of those in the split among its sources.

    Raises:
        DataError: There is no such split, or a label is no class; the message names file and line.
    """
    rows = task.rows(split)
    task = number_folders(task, classifier.classes)
    labels_of(task.rows(split), classifier.classes)
    images = [row for row in rows if isinstance(row, LabelledImage)]
    if not images:
        return task
    key = f"{len(images)} images of split '{split}'"
    return LabelledTask(
        task.name, task.kind, task.splits, {**task.sources, key: digest_images(images)}, task.folders, task.notes
    )


def encode_labelled(
    task: LabelledTask,
    split: str,
    classifier: Classifier,
    *,
    limit: int | None = None,
    seed: int = 0,
    lengths: Mapping[str, Any] | None = None,
) -> EncodedRows:
    """Rows of a split as a classifier takes them.

    The configuration of a text classifier gets the tokenizer's pad token: decoders such as Llama look for the last token
    before the padding.

    Args:
        task: The rows, as `fit_labels` made them.
        split: Name of the split.
        classifier: The model with its tokenizer or image processor.
        limit: Largest number of rows, a seeded sample; nested: the first 50 are among the first 100.
        seed: Decides which rows a limit keeps.
        lengths: ``max_length``, ``overlong`` and ``pad_token`` of `encode_texts`; of no meaning for images.

    Returns:
        The encoded rows.

    Raises:
        DataError: A row is too long, or all were dropped.
        InputError: An option is wrong.
        ModelError: There is no pad token.
    """
    every = task.rows(split)
    rows = [every[index] for index in sample_indices(len(every), limit, seed)]
    config = classifier.model.config
    if task.kind == "image":
        images = [row for row in rows if isinstance(row, LabelledImage)]
        channels = int(getattr(config, "num_channels", None) or 3)
        return encode_images(
            images, classifier.classes, classifier.processor, channels=channels, dtype=classifier.model.dtype
        )
    given = dict(lengths or {})
    longest = allowed_length(classifier.model, classifier.processor, given.pop("max_length", None))
    if longest is not None and longest < 1:
        raise InputError(f"max_length {longest} leaves no token: give at least 1")
    texts = [row for row in rows if isinstance(row, LabelledText)]
    encoded = encode_texts(texts, classifier.classes, classifier.processor, max_length=longest, **given)
    config.pad_token_id = classifier.processor.pad_token_id
    return encoded
