"""The claims ledger as parts of a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorascope.figures.claims import plot_ranking, ranking_info
from lorascope.report.page import Section, Table
from lorascope.report.text import show

RULES = (
    "Each verdict stands at 95 %: of twenty claims about pure noise one would be decided wrongly. The rules were written "
    "down before any verdict was computed."
)


def ledger_sections(ledger: Mapping[str, Any]) -> list[Section]:
    """The parts of a page for a ledger: which metric to watch, claim by claim, and what there was no data for.

    Args:
        ledger: ``claims`` and ``ranking`` as lists of mappings, and ``watch``, as ``claims.json`` holds them.

    Returns:
        The parts that have something to say.
    """
    told = [claim for claim in ledger["claims"] if claim["verdict"] != "undecided" or claim["value"] is not None]
    silent = [claim for claim in ledger["claims"] if claim not in told]
    sections = []
    if ledger.get("watch"):
        figures = {}
        if ledger.get("ranking"):
            caption = "Kendall's tau of each metric with accuracy, within comparable runs, with 95 % intervals."
            figures = {"all": (plot_ranking(ranking_info(ledger["ranking"])), caption)}
        sections.append(Section("watch", "Which metric to watch?", (ledger["watch"],), figures=figures))
    if told:
        columns = ("Verdict", "Claim, and what was found", "Statistic", "Value, 95 % interval")
        table = Table("Claim by claim", columns, tuple(_row(claim) for claim in told), words=True)
        sections.append(Section("claims", "Claim by claim", (RULES,), tables=(table,)))
    if silent:
        reasons: dict[str, list[str]] = {}
        for claim in silent:
            reasons.setdefault(claim["explanation"], []).append(f"{claim['key']}, {claim['quantity']}")
        points = tuple(f"{reason} ({'; '.join(dict.fromkeys(names))})" for reason, names in reasons.items())
        sections.append(Section("silent", "Nothing to judge by", points=points))
    return sections


def _row(claim: Mapping[str, Any]) -> tuple[str, ...]:
    interval = ""
    if claim["low"] is not None and claim["high"] is not None:
        interval = f", {show(claim['low'], 3)} to {show(claim['high'], 3)}"
    return (
        claim["verdict"],
        " ".join(filter(None, (claim["statement"], claim["explanation"], claim.get("scope")))),
        claim["statistic"],
        f"{show(claim['value'], 3)}{interval} (n = {claim['n']})",
    )
