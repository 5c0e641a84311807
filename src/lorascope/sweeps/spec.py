"""What a sweep is asked to do: a base, a grid over it, and single cells beside the grid."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorascope.core.errors import InputError, unknown_name
from lorascope.core.spec import from_mapping, load_yaml
from lorascope.sweeps.cells import Cell, absolute_paths, cell_name, filled, fold
from lorascope.training.spec import RunSpec

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """A grid of runs.

    Attributes:
        base: Settings of `RunSpec` that all cells share.
        grid: Setting -> values; there is one cell for each combination.
        cells: Single cells beside the grid, each a mapping of settings over the base.
        schema_version: Version of this layout.

    Raises:
        InputError: A setting is unknown, stands in base and grid, or the grid has no or repeated values.

    Example:
        >>> spec = SweepSpec(base={"preset": "quick"}, grid={"rank": [4, 16], "seed": [0, 1]})
        >>> [cell.values for cell in spec.expand()][:2]
        [{'rank': 4, 'seed': 0}, {'rank': 4, 'seed': 1}]
    """

    base: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    cells: list[dict[str, Any]] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise InputError(
                f"schema_version {self.schema_version} is not {SCHEMA_VERSION}: use the lorascope that wrote it"
            )
        known = [item.name for item in dataclasses.fields(RunSpec)]
        blocks: dict[str, dict[str, Any]] = {"base": self.base, "grid": dict(self.grid)}
        blocks |= {f"cells[{index}]": values for index, values in enumerate(self.cells)}
        for block, values in blocks.items():
            for key in values:
                if key not in known:
                    raise unknown_name(f"key in {block}", str(key), known)
        for key, items in self.grid.items():
            if key in self.base:
                raise InputError(f"'{key}' stands in base and in grid: keep one of them")
            if not items:
                raise InputError(f"grid: '{key}' has no values: give a list such as [4, 16]")
            texts = [json.dumps(value, sort_keys=True, default=str) for value in items]
            for text in texts:
                if texts.count(text) > 1:
                    raise InputError(f"grid: '{key}' has the value {text} twice: keep one of them")
        if not self.grid and not self.cells:
            raise InputError("a sweep needs 'grid' (setting: [values]) or 'cells' ([{setting: value}])")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, source: str = "sweep") -> SweepSpec:
        """Build a sweep from names and values.

        Args:
            values: ``base``, ``grid`` and ``cells``.
            source: Where the values came from, for messages.

        Returns:
            The sweep.

        Raises:
            InputError: A name is unknown, or a value has the wrong type.
        """
        grid = values.get("grid")
        if isinstance(grid, Mapping):
            for key, items in grid.items():
                if not isinstance(items, list):
                    raise InputError(f"{source}: grid: '{key}' must be a list of values, such as [{items}]")
        try:
            return from_mapping(cls, values, source=source)
        except InputError as error:
            reason = _cause(error)
            if reason is None:
                raise
            raise InputError(f"{source}: {reason}") from None

    @classmethod
    def load(cls, path: str | Path) -> SweepSpec:
        """Read a sweep from YAML.

        Raises:
            DataError: The file is missing or not YAML.
            InputError: A name is unknown, or a value has the wrong type.
        """
        return cls.from_mapping(load_yaml(Path(path)), source=str(path))

    def to_dict(self) -> dict[str, Any]:
        """The mapping that `from_mapping` reads."""
        return {
            "schema_version": self.schema_version,
            "base": dict(self.base),
            "grid": {key: list(values) for key, values in self.grid.items()},
            "cells": [dict(values) for values in self.cells],
        }

    def expand(self) -> tuple[Cell, ...]:
        """Every cell, checked, in the order of the grid (the last key changes fastest), then the single cells.

        Cells of the grid with rank 0 train nothing. Settings that matter for training only are left out there, and the
        cells that become equal by that are one.

        Returns:
            The cells; their names differ.

        Raises:
            InputError: `RunSpec` refuses a value (the message names the cell), or two cells are the same run.
        """
        made: dict[str, Cell] = {}
        for values in self._combinations():
            merged = {**self.base, **values}
            folded = _is_base(merged)
            if folded:
                merged = fold(merged, values, self.grid.get("seed", []))
            own = {key: value for key, value in merged.items() if key in values}
            self._add(made, own, merged, folded=folded)
        for values in self.cells:
            self._add(made, values, {**self.base, **values}, folded=False)
        return tuple(made.values())

    def _combinations(self) -> list[dict[str, Any]]:
        if not self.grid:
            return []
        return [
            dict(zip(self.grid, combination, strict=True)) for combination in itertools.product(*self.grid.values())
        ]

    def _add(self, made: dict[str, Cell], own: Mapping[str, Any], merged: Mapping[str, Any], *, folded: bool) -> None:
        label = ", ".join(f"{key}={value}" for key, value in own.items()) or "the base"
        try:
            spec = RunSpec.from_mapping(absolute_paths(merged), source="the cell")
        except InputError as error:
            raise InputError(f"cell ({label}): {error}") from error
        name = cell_name(spec)
        if name in made:
            if folded:
                return
            other = ", ".join(f"{key}={value}" for key, value in made[name].values.items()) or "the base"
            raise InputError(f"cells ({other}) and ({label}) are the same run: remove one of them")
        made[name] = Cell(name=name, spec=spec, values=dict(own))

    def base_difference(self, earlier: SweepSpec) -> tuple[str, Any, Any] | None:
        """The first setting whose base value differs from an earlier sweep's, with both values; None if all agree.

        A setting that is in the grid of either sweep is not compared: moving it there is how a sweep grows.
        """
        here, there = (filled(absolute_paths(spec.base)) for spec in (self, earlier))
        for key, value in here.items():
            if key not in self.grid and key not in earlier.grid and value != there.get(key):
                return key, there.get(key), value
        return None


def _is_base(values: Mapping[str, Any]) -> bool:
    rank = values.get("rank")
    return isinstance(rank, int) and not isinstance(rank, bool) and rank == 0


def _cause(error: InputError) -> InputError | None:
    """What `SweepSpec` itself said, when pydantic has wrapped it."""
    errors = getattr(error.__cause__, "errors", None)
    reason = errors()[0].get("ctx", {}).get("error") if errors is not None else None
    return reason if isinstance(reason, InputError) else None
