"""Configuration: YAML or mappings into frozen dataclasses, unknown keys refused by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from lorascope.core.errors import DataError, InputError, unknown_name

T = TypeVar("T")


def from_mapping(kind: type[T], values: Mapping[str, Any], *, source: str = "configuration") -> T:
    """Build a dataclass from a mapping, checking names and types.

    Args:
        kind: A dataclass.
        values: Field name -> value.
        source: Where the values came from, for messages.

    Returns:
        An instance of ``kind``.

    Raises:
        InputError: A key is unknown, a value has the wrong type, or a required one is missing.
    """
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            raise unknown_name(f"key in {source}", str(key), names)
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "value"
        given = f" (got {first['input']!r})" if first["type"] != "missing" else ""
        raise InputError(f"{source}: '{place}': {first['msg']}{given}") from error


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        DataError: The file is missing, is not YAML, or is not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"no file '{path}'") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"'{path}' is not valid YAML: {reason}") from error
    if not isinstance(values, dict):
        raise DataError(f"'{path}' must hold a mapping of option names to values")
    return values


def dump_yaml(value: Any) -> str:
    """The YAML text of a dataclass or mapping, keys in their own order."""
    plain = dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
