"""Reading rows from JSONL and Parquet: one file, or a folder with train, validation and test files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from lorascope.core.errors import DataError
from lorascope.core.files import sha256_of
from lorascope.core.optional import require
from lorascope.tasks.rows import FORMATS, Kind, Row, parse_row, row_kind

SPLITS = ("train", "validation", "test")
SUFFIXES = (".jsonl", ".parquet")


def load_files(path: Path) -> tuple[Kind, dict[str, tuple[Row, ...]], dict[str, str]]:
    """Read a local task.

    Args:
        path: A folder with at least one of ``train``, ``validation``, ``test`` as ``.jsonl`` or ``.parquet`` (in
            capitals too), or one such file. The rows of a single file are split by index, so that no row is both learned
            and tested: index % 10 == 0 is test, == 5 validation, the rest train; split ``all`` has every row.

    Returns:
        The kind of the rows, rows by split, and the SHA-256 of each file.

    Raises:
        DataError: No file is found, or one has a wrong row (the message names file and line).
    """
    files = find_files(path)
    rows: dict[str, tuple[Row, ...]] = {}
    kinds: list[Kind] = []
    for split, file in files.items():
        parsed = []
        for where, values in read_mappings(file):
            if not kinds:
                kinds.append(row_kind(values, where))
            parsed.append(parse_row(values, kinds[0], where))
        rows[split] = tuple(parsed)
    if path.is_file():
        rows = split_rows(rows["all"]) | rows
    return kinds[0], rows, {file.name: sha256_of(file) for file in files.values()}


def split_rows(rows: Sequence[Row]) -> dict[str, tuple[Row, ...]]:
    """Split rows by index: % 10 == 0 is test, == 5 validation, the rest train; splits without rows are left out."""
    splits: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    for index, row in enumerate(rows):
        splits[{0: "test", 5: "validation"}.get(index % 10, "train")].append(row)
    return {split: tuple(part) for split, part in splits.items() if part}


def find_files(path: Path) -> dict[str, Path]:
    """The file of each split; see `load_files`. Capitals make no difference in suffixes and names.

    Raises:
        DataError: There is none, a split has two, the file has another suffix, or it is no regular file.
    """
    if not path.is_dir():
        if not path.is_file():
            raise _no_file(path)
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(f"'{path}' is not .jsonl or .parquet: {_expected()}")
        return {"all": path}
    files: dict[str, Path] = {}
    entries = _entries(path)
    for split in SPLITS:
        found = [entry for entry in entries if entry.name.lower() in {f"{split}{suffix}" for suffix in SUFFIXES}]
        if len(found) > 1:
            raise DataError(f"'{path}' holds both {found[0].name} and {found[1].name}: keep one of them")
        if found:
            if not found[0].is_file():
                raise _no_file(found[0])
            files[split] = found[0]
    if not files:
        raise DataError(f"folder '{path}' has no {_expected()}")
    return files


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise _unreadable(folder, error) from error


def _no_file(path: Path) -> DataError:
    """The error for what only looks like a file; a pipe would never end, and could not be read twice."""
    if not os.path.lexists(path):
        return DataError(f"no file '{path}': check the path")
    kinds = (("folder", Path.is_dir), ("pipe", Path.is_fifo), ("socket", Path.is_socket))
    kind = next((name for name, is_kind in kinds if is_kind(path)), "device" if path.exists() else "broken link")
    return DataError(f"'{path}' is a {kind}, not a file: write the rows to a .jsonl or .parquet file first")


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"'{path}' cannot be read ({error.strerror or error}): check its permissions")


def read_mappings(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield ("file:line", row) of a JSONL or Parquet file; lines count from 1.

    Raises:
        DataError: The file is empty, not UTF-8 or not to be read, or a line is empty, not JSON, not a mapping, or one
            with a key twice.
    """
    reader: Callable[[Path], Iterator[tuple[str, Mapping[str, Any]]]]
    reader = _read_parquet if path.suffix.lower() == ".parquet" else _read_jsonl
    empty = True
    for item in reader(path):
        empty = False
        yield item
    if empty:
        raise DataError(f"'{path}' is empty: write one row a line, {FORMATS}")


def _read_jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with _opened(path) as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{where}: not UTF-8 (byte 0x{raw[error.start]:02x}): save the file with UTF-8 encoding"
                ) from error
            if not line.strip():
                raise DataError(f"{where}: empty line: delete it")
            try:
                values = json.loads(line.rstrip("\r\n"), object_pairs_hook=_without_repeats)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{where}: not valid JSON ({error.msg} at column {error.colno}): write one JSON object a line"
                ) from error
            except (ValueError, RecursionError) as error:  # a key twice, thousands of digits, brackets without end
                raise DataError(f"{where}: not a row ({error}): write one JSON object a line, {FORMATS}") from error
            if not isinstance(values, dict):
                raise DataError(f"{where}: a JSON {type(values).__name__}, not an object: a row is {FORMATS}")
            yield where, values


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise _unreadable(path, error) from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The mapping of a JSON object; plain JSON would keep the last of equal keys and say nothing."""
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key '{next(key for key in keys if keys.count(key) > 1)}' stands twice")
    return values


def _read_parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    pyarrow = require("pyarrow", install="pyarrow", purpose="reading Parquet")
    parquet = require("pyarrow.parquet", install="pyarrow", purpose="reading Parquet")
    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        repeated = [name for name in names if names.count(name) > 1]
        if repeated:
            raise DataError(f"'{path}' has column '{repeated[0]}' twice: write it again with one")
        number = 0
        for batch in file.iter_batches():
            for values in batch.to_pylist():
                number += 1
                yield f"{path}:row {number}", values
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"'{path}' cannot be read as Parquet ({reason}): write it again") from error


def _expected() -> str:
    return f"{', '.join(f'{split}.jsonl' for split in SPLITS)} (or .parquet): rows are {FORMATS}"
