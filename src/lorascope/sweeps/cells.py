"""A cell of a sweep: one run, under a name that says what it is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorascope.core.spec import from_mapping
from lorascope.training.spec import PRESETS, RunSpec

TRAINING_ONLY = (
    "train_limit",
    "alpha",
    "dropout",
    "use_rslora",
    "use_dora",
    "init",
    "init_rows",
    "elastic",
    "beta_learning_rate",
    "preset",
    "learning_rate",
    "optimizer",
    "weight_decay",
    "batch_size",
    "micro_batch_size",
    "max_steps",
    "epochs",
    "schedule",
    "warmup_steps",
    "max_grad_norm",
    "save_steps",
    "logging_steps",
    "probe_steps",
    "probe_limit",
    "report_to",
)
"""Settings that change nothing where nothing is trained (rank 0)."""

FEW_SHOT = ("prompt1", "prompt2")
"""Prompts whose worked examples depend on the seed, so that the base model's answers do too."""

_MAIN = ("rank", "train_limit", "seed")
_PATHS = ("model", "task", "data_dir", "text_task")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: Folder of the run under ``runs/``, made by `cell_name`.
        spec: What the run does, every setting filled in.
        values: What sets this cell apart from the base of its sweep.
    """

    name: str
    spec: RunSpec
    values: dict[str, Any] = dataclasses.field(default_factory=dict)

    schema_version: int = 1

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping; `from_dict` reads it."""
        return {
            "schema_version": self.schema_version,
            "name": self.name,
            "spec": plain_spec(self.spec),
            "values": json.loads(json.dumps(self.values)),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "cell") -> Cell:
        """Build a cell from what `to_dict` made.

        Raises:
            InputError: A key is unknown or has the wrong type, or the run's settings are refused.
        """
        spec = RunSpec.from_mapping(values.get("spec", {}), source=source)
        return from_mapping(cls, {**values, "spec": spec}, source=source)


def plain_spec(spec: RunSpec) -> dict[str, Any]:
    """The settings of a run as JSON has them: tuples are lists.

    Example:
        >>> plain_spec(RunSpec(target_modules=("q_proj",)))["target_modules"]
        ['q_proj']
    """
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(spec)))
    return values


def filled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the preset's values and the defaults where none are given, unchecked.

    Example:
        >>> filled({"preset": "quick"})["batch_size"]
        16
    """
    preset = dict(PRESETS.get(str(values.get("preset")), {}))
    if values.get("epochs") is not None and values.get("max_steps") is None:
        preset.pop("max_steps", None)
    result: dict[str, Any] = json.loads(json.dumps({**_defaults(), **preset, **values}))
    return result


def fold(values: Mapping[str, Any], own: Mapping[str, Any], seeds: list[Any]) -> dict[str, Any]:
    """The settings of a rank-0 cell without what cannot matter there, so that equal cells become one.

    Args:
        values: Settings of the cell, the base's among them.
        own: The cell's own settings, from the grid.
        seeds: Seeds of the grid.

    Returns:
        The settings without those of `TRAINING_ONLY`, and with the grid's first seed unless the prompt draws worked
        examples with it.

    Example:
        >>> fold({"rank": 0, "seed": 3, "train_limit": 9}, {"rank": 0, "seed": 3, "train_limit": 9}, [1, 3])
        {'rank': 0, 'seed': 1}
    """
    kept = {key: value for key, value in values.items() if key not in TRAINING_ONLY}
    if "seed" in own and seeds and values.get("prompt") not in FEW_SHOT:
        kept["seed"] = seeds[0]
    return kept


def absolute_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the paths of models and rows made absolute, so that a worker in another folder finds them.

    Names of models and tasks stay as they are: only what is there as a file or folder is a path.
    """
    found = dict(values)
    for key in _PATHS:
        value = found.get(key)
        if not isinstance(value, str) or not value:
            continue
        path = Path(value).expanduser()
        if path.exists() and (key == "model" or not _is_task(value)):
            found[key] = str(path.resolve())
    return found


def cell_name(spec: RunSpec) -> str:
    """A name for a run: readable, safe as a folder, and the same for the same settings.

    Rank, training rows and seed come first, then what else differs from the defaults of `RunSpec` and can be read. A
    hash follows if any setting is not written out. A new setting with a default leaves all names as they were.

    Args:
        spec: The run.

    Returns:
        Small letters, digits, ``-`` and ``_``, at most 140 of them.

    Example:
        >>> cell_name(RunSpec(rank=16, train_limit=300))
        'r16-n300-s0'
        >>> cell_name(RunSpec(rank=16, train_limit=300, learning_rate=1e-3))
        'r16-n300-s0-98d7109b'
    """
    values, defaults = plain_spec(spec), json.loads(json.dumps(_defaults()))
    changed = {key: value for key, value in values.items() if value != defaults.get(key)}
    parts = [f"r{spec.rank}"]
    if spec.train_limit is not None:
        parts.append(f"n{spec.train_limit}")
    parts.append(f"s{spec.seed}")
    written = set(_MAIN)
    if changed.get("share") is not None:
        parts.append(f"share{changed['share']}")
        written.add("share")
    if changed.get("length") is not None:
        parts.append(f"len{changed['length'][0]}-{changed['length'][1]}")
        written.add("length")
    for key in ("quantize", "elastic", "init", "prompt", "model", "task"):
        if key in changed:
            slug = f"elastic-{changed[key]}" if key == "elastic" else _slug(str(changed[key]))
            parts.append(slug)
            if slug == changed[key] or key == "elastic":
                written.add(key)
    rest = {key: value for key, value in sorted(changed.items()) if key not in written}
    if rest:
        parts.append(hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:8])
    return "-".join(part for part in parts if part)


def _defaults() -> dict[str, Any]:
    return dataclasses.asdict(RunSpec())


def _slug(text: str) -> str:
    """The last part of a path or hub id, in characters that every file system takes."""
    last = text.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
    return re.sub(r"[^a-z0-9_]+", "-", last.lower()).strip("-")[:24].strip("-")


def _is_task(name: str) -> bool:
    if "/" in name or "\\" in name:
        return False
    from lorascope.tasks.registry import TASKS

    return name in TASKS
