"""Writing results so that nothing is lost or half-written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorascope.core.errors import DataError, OutputError


@contextlib.contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's write failures under ``path`` into one clear line.

    Raises:
        OutputError: The disk is full, or the place cannot be written.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(
                f"disk full while writing '{path}': free some space and run the same command again; "
                "finished results are kept"
            ) from error
        raise OutputError(f"cannot write '{path}': {error.strerror or error}; choose another --out") from error
    except Exception as error:
        # safetensors has a class of its own for what the system says.
        if type(error).__name__ != "SafetensorError" or "os error" not in str(error):
            raise
        raise OutputError(f"cannot write '{path}': {error}; free some space, or choose another --out") from error


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: temporary file beside it, fsync, rename.

    Args:
        path: Target file; its folder is made.
        data: The content.

    Raises:
        OutputError: The disk is full, or the place cannot be written.
    """
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(allowed_mode(0o666))
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def allowed_mode(mode: int) -> int:
    """Permissions of a new file or folder, less what the user's umask takes away.

    Example:
        >>> allowed_mode(0o666) <= 0o666
        True
    """
    umask = os.umask(0)
    os.umask(umask)
    return mode & ~umask


def atomic_write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all; see `atomic_write_bytes`."""
    atomic_write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a value as strict JSON (no NaN, no infinity), whole or not at all.

    Raises:
        OutputError: The disk is full, or the place cannot be written.
        ValueError: The value holds a NaN or an infinity.
    """
    atomic_write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: The file is missing, interrupted or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"no file '{path}' ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"'{path}' is not valid JSON ({error}): it may be an interrupted file; make it again"
        ) from error


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_empty_dir(path: Path, *, remedy: str) -> None:
    """Make a folder, or check that it holds nothing.

    Args:
        path: The folder.
        remedy: What the user should do if it is not empty.

    Raises:
        OutputError: The folder has files in it, or is a file.
    """
    if path.exists() and not path.is_dir():
        raise OutputError(f"output '{path}' is a file, not a folder: choose another --out")
    if path.is_dir() and any(path.iterdir()):
        raise OutputError(f"output folder '{path}' is not empty: {remedy}")
    with explain_write_errors(path):
        path.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def appearing_folder(out: Path) -> Iterator[Path]:
    """A folder to write in, which becomes ``out`` when the block ends well and vanishes when it does not.

    Raises:
        OutputError: ``out`` is not empty, or cannot be written.
    """
    made = not out.exists()
    require_empty_dir(out, remedy="choose another --out, or empty it")
    with explain_write_errors(out):
        work = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        yield work
        work.chmod(allowed_mode(0o777))
        for file in work.iterdir():  # safetensors writes files that only their owner may read
            file.chmod(allowed_mode(0o666))
        with explain_write_errors(out):
            out.rmdir()
            work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if made:
            with contextlib.suppress(OSError):
                out.rmdir()  # still empty: something failed
