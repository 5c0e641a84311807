"""Images with a label: class folders or JSONL rows, opened one by one while the model runs."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, default_collate
from transformers.image_utils import load_image

from lorascope.core.errors import DataError, InputError
from lorascope.core.files import sha256_of
from lorascope.core.optional import require
from lorascope.tasks.classification import (
    EncodedRows,
    LabelledImage,
    LabelledTask,
    existing_path,
    label_of,
    read_labelled,
    text_of,
)
from lorascope.tasks.classifiers import Classes
from lorascope.tasks.files import SPLITS, SUFFIXES

# In Parquet also {"image": {"bytes", "path"}, "label"}, as datasets writes images.
IMAGE_FORMAT = '{"image": path, "label"} or a folder with a folder of images for each class'
ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def load_labelled_images(name: str) -> LabelledTask:
    """Read which images there are, and their labels; no image is opened yet.

    Args:
        name: A folder of class folders (``cat/1.png``, ``dog/2.png``), or of splits with class folders
            (``test/cat/1.png``), as the ``imagefolder`` of datasets; or a JSONL or Parquet file of rows ``{"image":
            path, "label"}`` (or a folder with one for each split), with paths relative to that file. Parquet rows may hold
            the images themselves, ``{"image": {"bytes", "path"}, "label"}``, as datasets writes them.

    Returns:
        The task. Class folders keep their names as labels; see `number_folders`.

    Raises:
        DataError: There is no such path, no image, or a row is wrong; the message names file and line.
    """
    path = existing_path(name, IMAGE_FORMAT)
    if path.is_file() or any((path / f"{split}{suffix}").is_file() for split in SPLITS for suffix in SUFFIXES):
        folder = path.parent if path.is_file() else path
        splits, sources = read_labelled(path, lambda values, where: _image_row(values, where, folder), IMAGE_FORMAT)
        return LabelledTask(name, "image", splits, sources)
    parts = {split: path / split for split in SPLITS if (path / split).is_dir()} or {"all": path}
    found = {split: _class_folders(folder) for split, folder in parts.items()}
    folders = sorted({name for _, names, _ in found.values() for name in names})
    others = [file for _, _, files in found.values() for file in files]
    notes = []
    if others:
        notes.append(
            f"{len(others)} files with other endings than those of images were left out, such as '{others[0]}'"
        )
    return LabelledTask(
        name, "image", {split: rows for split, (rows, _, _) in found.items()}, {}, tuple(folders), tuple(notes)
    )


def _class_folders(path: Path) -> tuple[tuple[LabelledImage, ...], list[str], list[Path]]:
    """The images of the class folders in a folder, the names of these, and the files that are no images."""
    names = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    rows, others = [], []
    for name in names:
        for file in sorted((path / name).rglob("*")):
            if not file.is_file() or file.name.startswith("."):
                continue
            if file.suffix.lower() in ENDINGS:
                rows.append(LabelledImage(file, name, str(file)))
            else:
                others.append(file)
    if not rows:
        what = "no class folders" if not names else "no images in its class folders"
        raise DataError(f"'{path}' has {what}: give rows of {IMAGE_FORMAT} ({', '.join(ENDINGS)})")
    return tuple(rows), names, others


def _image_row(values: Mapping[str, Any], where: str, folder: Path) -> LabelledImage:
    if "image" not in values and "text" in values:
        raise DataError(f"{where}: a row of text, but the adapter is of an image classifier: rows are {IMAGE_FORMAT}")
    label = label_of(values, "image", where, IMAGE_FORMAT)
    image = values["image"]
    held = image if isinstance(image, Mapping) else {"bytes": image}
    if isinstance(held.get("bytes"), bytes):
        return LabelledImage(Path(held.get("path") or "in the row"), label, where, held["bytes"])
    if held.get("bytes") is None and isinstance(held.get("path"), str):
        image = held["path"]
    path = folder / Path(text_of(image, "image", where)).expanduser()
    if not path.is_file():
        raise DataError(f"{where}: no image '{path}': give its path, relative to the folder of this file")
    return LabelledImage(path, label, where)


def number_folders(task: LabelledTask, classes: Classes) -> LabelledTask:
    """Give the class folders of a task the model's class indices.

    By name, if the model knows all of them; else in alphabetical order, as the ``imagefolder`` of datasets numbers
    them, which is said in the notes.

    Args:
        task: Images; unchanged if its labels stand in rows.
        classes: The model's classes.

    Returns:
        The task with indices as labels.

    Raises:
        DataError: The folders are not the model's classes, and not as many.
    """
    if not task.folders or all(name in classes.names for name in task.folders):
        return task
    if classes.named or len(task.folders) != classes.count:
        strange = next(name for name in task.folders if name not in classes.names)
        known = ", ".join(f"'{name}'" for name in list(classes.names)[:8]) + (", ..." if classes.count > 8 else "")
        what = f"these are {known}" if classes.named else f"there are {classes.count}, and {len(task.folders)} folders"
        raise DataError(
            f"'{task.name}': class folder '{strange}' is no class of the model ({what}): name the folders as the model's "
            'classes, or write a JSONL file of {"image", "label"}'
        )
    numbers = {name: index for index, name in enumerate(task.folders)}
    splits = {
        split: tuple(dataclasses.replace(row, label=numbers[str(row.label)]) for row in rows)
        for split, rows in task.splits.items()
    }
    order = ", ".join(f"{name} = {index}" for name, index in list(numbers.items())[:8])
    note = (
        f"the model's configuration names no classes: the class folders were numbered in alphabetical order ({order}"
        f"{', ...' if len(numbers) > 8 else ''}), as the imagefolder of datasets does"
    )
    return dataclasses.replace(task, splits=splits, notes=(*task.notes, note))


def encode_images(
    rows: Sequence[LabelledImage],
    classes: Classes,
    processor: Any,
    *,
    channels: int = 3,
    dtype: torch.dtype = torch.float32,
) -> EncodedRows:
    """Images as a model takes them, read when they are needed.

    Args:
        rows: The rows.
        classes: The model's classes.
        processor: The model's image processor.
        channels: Colours of the model's images: 3, or 1 for grey.
        dtype: Type of the model's weights, which the pixels get too.

    Returns:
        Features with ``pixel_values`` (channels, height, width) and ``labels``.

    Raises:
        DataError: A label is no class; while reading: an image cannot be read.
    """
    labels = [classes.index(row.label, row.where) for row in rows]
    return EncodedRows(_Images(rows, labels, processor, channels, dtype), [row.where for row in rows], _stack)


class _Images(Dataset[dict[str, Any]]):
    """Images that are opened when they are asked for."""

    def __init__(
        self, rows: Sequence[LabelledImage], labels: Sequence[int], processor: Any, channels: int, dtype: torch.dtype
    ) -> None:
        self._pillow = require("PIL.Image", install="pillow", purpose="reading images")
        self._rows, self._labels = rows, labels
        self._processor, self._channels, self._dtype = processor, channels, dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows[index]
        try:
            with row.path.open("rb") if row.data is None else io.BytesIO(row.data) as file:
                image = load_image(self._pillow.open(file))  # turned upright, in RGB
            image = image.convert("L") if self._channels == 1 else image
            pixels = self._processor(images=[image], return_tensors="pt")["pixel_values"][0].to(self._dtype)
        except Exception as error:
            # Decoders of broken files raise a dozen unrelated classes.
            reason = " ".join(str(error).split()) or type(error).__name__
            place = f"image '{row.path}'" if row.where == str(row.path) else f"{row.where}: image '{row.path}'"
            raise DataError(f"{place} cannot be read ({reason[:200]}): replace it, or leave it out") from error
        return {"pixel_values": pixels, "labels": self._labels[index]}


def _stack(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    shapes = {tuple(feature["pixel_values"].shape) for feature in features}
    if len(shapes) > 1:
        raise InputError(
            f"the image processor makes images of different sizes ({' and '.join(map(str, sorted(shapes)))}): give "
            "--batch-size 1"
        )
    batch: dict[str, torch.Tensor] = default_collate(features)
    return batch


def digest_images(rows: Sequence[LabelledImage]) -> str:
    """SHA-256 over the SHA-256 of every image, in order.

    Raises:
        DataError: One cannot be read.
    """
    digest = hashlib.sha256()
    for row in rows:
        try:
            whole = sha256_of(row.path) if row.data is None else hashlib.sha256(row.data).hexdigest()
            digest.update(whole.encode())
        except OSError as error:
            raise DataError(
                f"image '{row.path}' cannot be read ({error.strerror}): replace it, or leave it out"
            ) from error
    return digest.hexdigest()
