"""Turning the ways in which libraries say "disk full" into one clear error."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from lorascope.core.errors import LorascopeError, OutputError
from lorascope.core.files import explain_write_errors

_SIGNS = ("no space left on device", "os error 28", "code: 28", "storagefull", "disk quota exceeded")


def is_disk_full(error: BaseException) -> bool:
    """Whether an error means that the disk is full.

    safetensors raises its own class with the system's text inside; torch's archive writer raises a `RuntimeError` that
    only says that a write came out short.

    Args:
        error: What was raised.

    Returns:
        True if the disk is full.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        text = str(current).lower()
        if isinstance(current, OSError) and current.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(sign in text for sign in _SIGNS):
            return True
        if isinstance(current, RuntimeError) and "basic_ios::clear: iostream error" in text:
            return True  # torch.save into a file that could be opened, and not be written to its end
        if isinstance(current, RuntimeError) and ("pytorchstreamwriter" in text or "inline_container" in text):
            return "reader" not in text
        current = current.__cause__ or current.__context__
    return False


@contextlib.contextmanager
def explain_save_errors(path: Path) -> Iterator[None]:
    """Turn write failures of torch, safetensors and the system under ``path`` into one clear line.

    Raises:
        OutputError: The disk is full, or the place cannot be written.
    """
    with explain_write_errors(path):
        try:
            yield
        except LorascopeError:
            raise
        except Exception as error:
            if not is_disk_full(error):
                raise
            raise OSError(errno.ENOSPC, "No space left on device", str(path)) from error


def remove_tree(path: Path) -> None:
    """Delete a folder if it exists.

    Raises:
        OutputError: It cannot be deleted.
    """
    if path.exists():
        try:
            shutil.rmtree(path)
        except OSError as error:
            raise OutputError(f"cannot delete '{path}': {error.strerror}; delete it by hand") from error
