"""Errors a person can act on: one line that names the bad value and the remedy.

The command line turns any `LorascopeError` into that one line and exit code 2; library users catch the usual
built-in classes (`ValueError`, `OSError`, `ImportError`), which these also are.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LorascopeError(Exception):
    """Base of every error that lorascope raises on purpose."""


class InputError(LorascopeError, ValueError):
    """A value given by the user is wrong: an option, an array, an unknown name."""


class DataError(InputError):
    """A data file or one of its rows is wrong; the message names the file and the line."""


class AdapterError(InputError):
    """An adapter cannot be used: missing, foreign, merged, or made for another base model."""


class ModelError(InputError):
    """A base model or its tokenizer cannot be used as asked."""


class OutputError(LorascopeError, OSError):
    """Results cannot be written: folder not empty, disk full, interrupted file."""


class MissingDependencyError(LorascopeError, ImportError):
    """An optional package is not installed; the message says how to install it."""


def unknown_name(kind: str, value: str, known: Iterable[str]) -> InputError:
    """Build the error for a name that is not in a list of known names.

    Args:
        kind: What the name is, for example ``"metric"``.
        value: The name that was given.
        known: Every valid name.

    Returns:
        An `InputError` (not raised) that names the value, the closest match and all choices.

    Example:
        >>> str(unknown_name("metric", "miub", ["miub_js", "ce"]))
        "unknown metric 'miub': did you mean 'miub_js'? Choose from miub_js, ce"
    """
    names = list(known)
    close = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return InputError(f"unknown {kind} '{value}': {hint}Choose from {', '.join(names)}")
