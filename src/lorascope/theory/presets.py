"""The figures that the package draws by itself: settings of the article and of the questions that the product answers.

Settings named in arXiv 2606.05899 are marked as such; which quantity its figures have on which axis is not known to us.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from lorascope.core.errors import DataError, unknown_name
from lorascope.theory._preset_figures import PRESETS, Line, Preset
from lorascope.theory._rows import Row, Setting, along, logarithmic
from lorascope.theory.finetuned import FineTuned
from lorascope.theory.finetuning import finetune
from lorascope.theory.points import SimulationPoint, points_table
from lorascope.theory.prescriptions_curves import curve
from lorascope.theory.prescriptions_pretraining import best_pretraining

__all__ = ["PRESETS", "Line", "Preset", "at", "preset", "read_points", "rows_of", "stored_points"]

POINTS_FILE = "preset_points.json"
SCHEMA_VERSION = 1


def preset(name: str) -> Preset:
    """The preset of a name.

    Raises:
        InputError: There is none; the message lists the names.
    """
    for item in PRESETS:
        if item.name == name:
            return item
    raise unknown_name("preset", name, [item.name for item in PRESETS])


def at(line: Line, value: float | int, dim: int = 100) -> dict[str, Any]:
    """The arguments of a line at a value; a share of the budget becomes alpha, alpha_finetune and the best ridge."""
    given = dict(line.setting)
    if line.over != "share":
        name = "alpha" if line.stage == "finetune" and line.over == "alpha_finetune" else line.over
        return {**given, name: float(value)}
    budget = given.pop("budget")
    given |= {"alpha": float(value) * budget, "alpha_finetune": (1 - float(value)) * budget * dim}
    names = ("alpha", "tokens", "kappa0", "noise")
    return {**given, "ridge": best_pretraining(**{name: given[name] for name in names}).ridge}


def rows_of(line: Line, *, count: int = 25, samples: int | None = None, progress: bool = False) -> list[Row]:
    """The theory's rows of a line; none if it has only simulations.

    Args:
        line: The line.
        count: Points.
        samples: Quasi-random points of stage 2.
        progress: Show a progress bar.
    """
    if line.low == 0:
        return []
    dim = int(line.options.get("dim", 100))
    if line.over in ("share", "fraction"):
        values = [line.low + (line.high - line.low) * index / (count - 1) for index in range(count)]
    else:
        values = logarithmic(line.low, line.high, count)
    if line.stage == "finetune":
        return _finetuning(line, values, samples)
    if line.over == "share":
        asked = [Setting(**at(line, value, dim), samples=samples) for value in values]
        return [
            {"share": value, **row} for value, (_, row) in zip(values, along(asked, line.name, progress), strict=True)
        ]
    setting = Setting(**{"ridge": 0.1, **line.setting}, samples=samples)
    return curve(setting, line.over, values, progress=progress).rows


def _finetuning(line: Line, values: Sequence[float], samples: int | None) -> list[Row]:
    rows: list[Row] = []
    near: FineTuned | None = None
    for value in sorted(values, reverse=True):
        found = finetune(**at(line, value), samples=samples, start=near)
        near = found if found.converged and found.q > 1e-3 else None
        names = ("m", "q", "alignment", "test_error", "train_loss", "jump")
        row: Row = {line.over: value, **{name: getattr(found, name) for name in names}}
        rows.append({**row, "warnings": list(found.warnings)})
    return rows[::-1]


def stored_points() -> dict[str, dict[str, list[Row]]]:
    """The simulations that come with the package: preset -> line -> rows as `points_table` gives them.

    Raises:
        DataError: The file is damaged.
    """
    text = resources.files("lorascope.theory").joinpath(POINTS_FILE).read_text(encoding="utf-8")
    return read_points(json.loads(text))


def read_points(values: Any) -> dict[str, dict[str, list[Row]]]:
    """Simulations by preset and line, with the value of what runs under its own name."""
    if not isinstance(values, Mapping) or values.get("schema_version") != SCHEMA_VERSION:
        raise DataError(f"no preset points of schema_version {SCHEMA_VERSION}: use benchmarks/theory_figures.py")
    found: dict[str, dict[str, list[Row]]] = {}
    for entry in values["points"]:
        point = SimulationPoint.from_dict(entry["point"])
        row = {**points_table([point])[0], entry["over"]: entry["value"]}
        found.setdefault(entry["preset"], {}).setdefault(entry["line"], []).append(row)
    return found
