"""Whose folder it is that a run writes into, and what is deleted once the run is done."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from lorascope.core.errors import OutputError
from lorascope.core.files import read_json, require_empty_dir, write_json
from lorascope.core.spec import load_yaml
from lorascope.results import RunStore
from lorascope.training.spec import RunSpec
from lorascope.training.writing import remove_tree

DATA_FILE = "data.json"
"""Hashes of the data that a run was started with."""


def claim(store: RunStore, name: str, spec: RunSpec, data: dict[str, str], *, resume: bool) -> None:
    """Make sure that the folder is ours: empty, or of the same spec on the same data."""
    folder = store.path(name)
    remedy = "choose another --out, or empty it"
    asked = json.loads(json.dumps(dataclasses.asdict(spec)))
    path = folder / "spec.yaml"
    if not path.is_file():
        own = (".spec.yaml.", f".{DATA_FILE}.", DATA_FILE)
        if folder.is_dir() and all(item.name.startswith(own) for item in folder.iterdir()):
            remove_tree(folder)  # an earlier call was interrupted while it wrote its very first file
        require_empty_dir(folder, remedy=remedy)
        write_json(folder / DATA_FILE, data)
        store.write_spec(name, asked)
        return
    if {item.name for item in folder.iterdir()} <= {"spec.yaml", DATA_FILE}:
        # Nothing was made yet: an earlier call ended before training, over a wrong option or row.
        write_json(folder / DATA_FILE, data)
        store.write_spec(name, asked)
        return
    if not resume:
        require_empty_dir(folder, remedy=remedy)
    before = read_json(folder / DATA_FILE) if (folder / DATA_FILE).is_file() else data
    changed = [key for key in {**before, **data} if before.get(key) != data.get(key)]
    if changed:
        raise OutputError(f"data '{changed[0]}' changed since '{folder}' was started: {remedy}")
    found = load_yaml(path)
    different = [key for key in {**asked, **found} if key not in asked or asked[key] != found.get(key)]
    if different:
        key = different[0]
        there, here = found.get(key), asked.get(key)
        raise OutputError(f"'{folder}' holds another run ({key} is {there!r} there, {here!r} here): {remedy}")


def tidy(folder: Path) -> None:
    """Delete what only an interrupted run needs."""
    for name in ("checkpoints", "stages", ".adapter.tmp"):
        remove_tree(folder / name)
