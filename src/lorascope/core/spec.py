"""Configuration: YAML or mappings into frozen dataclasses, unknown keys refused by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_type_hints

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
    adapter, hints = _reader(kind)
    for key, kinds in hints.items():
        # Python takes true for 1; a person who writes "rank: true" meant something else.
        if isinstance(values.get(key), bool) and bool not in (kinds, *get_args(kinds)):
            raise InputError(f"{source}: '{key}' must not be {str(values[key]).lower()}: give a value of its kind")
    try:
        return cast(T, adapter.validate_python(dict(values)))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "value"
        given = f" (got {first['input']!r})" if first["type"] != "missing" else ""
        remedy = ": give a list, such as [first, second]" if first["type"] in ("tuple_type", "list_type") else ""
        raise InputError(f"{source}: '{place}': {first['msg']}{given}{remedy}") from error


_readers: dict[Any, tuple[Any, dict[str, Any]]] = {}


def _reader(kind: type[Any]) -> tuple[Any, dict[str, Any]]:
    """What checks a dataclass, and its fields' types; making it takes longer than many checks, so it is kept."""
    if kind not in _readers:
        _readers[kind] = TypeAdapter(kind), get_type_hints(kind)
    return _readers[kind]


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, which refuses a key that is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping, if its keys differ."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise yaml.YAMLError(f"'{min(twice)}' is given twice")
        return dict(super().construct_mapping(node, deep))


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        DataError: The file is missing, is not YAML, or is not a mapping.
    """
    if not path.is_file():
        raise DataError(f"'{path}' is not a file" if path.exists() else f"no file '{path}'")
    try:
        values = _UniqueKeys(path.read_text(encoding="utf-8")).get_single_data()
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
