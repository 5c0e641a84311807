"""Where a number came from: versions, machine, command, seeds and hashes."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lorascope.core.files import sha256_of

_PACKAGES = ("lorascope", "torch", "transformers", "peft", "accelerate", "datasets", "trl", "lm_eval", "numpy", "scipy")


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide the numbers, as installed (nothing is imported)."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def machine() -> dict[str, Any]:
    """Processor, cores, memory and threads of this machine; no host or user name."""
    import psutil

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    facts: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        facts["torch_threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            facts["gpu"] = torch.cuda.get_device_name(0)
    return facts


def collect(
    *, seed: int | None = None, files: Iterable[Path] = (), extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Collect the provenance of a result.

    Args:
        seed: The seed that was used.
        files: Files whose SHA-256 is recorded under their base name.
        extra: Further facts, such as the model's name and fingerprint.

    Returns:
        A JSON-ready mapping with ``created``, ``command``, ``versions``, ``machine``, ``seed``, ``sha256`` and extras.
    """
    record: dict[str, Any] = {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]) if sys.argv else "",
        "versions": package_versions(),
        "machine": machine(),
        "seed": seed,
        "sha256": {path.name: sha256_of(path) for path in files},
    }
    record.update(extra or {})
    return record
