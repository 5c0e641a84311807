"""Optional packages, imported when they are needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from lorascope.core.errors import MissingDependencyError


def require(module: str, *, install: str, purpose: str) -> ModuleType:
    """Import an optional package or say how to install it.

    Args:
        module: Name to import.
        install: What to pass to ``pip install``.
        purpose: What needs it, as the start of the message.

    Returns:
        The module.

    Raises:
        MissingDependencyError: The package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(f"{purpose} needs '{module}': run  pip install {install}") from error
