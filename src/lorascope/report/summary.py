"""The report's first page in words, every sentence derived from the numbers of the records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lorascope.report.caveats import caveats_of
from lorascope.report.facts import fact, total
from lorascope.report.findings import Finding
from lorascope.report.groups import Group, group_records, shared
from lorascope.report.information import printed_bound, rank_used, two_quantities, update_size
from lorascope.report.learning import accuracy, cross_entropy, forgetting
from lorascope.report.text import listing, plural, show, show_change, show_metrics, unit_of
from lorascope.results import AdapterMeasurement, RunRecord

FINDINGS: tuple[Callable[[Group], Finding | None], ...] = (
    accuracy,
    cross_entropy,
    forgetting,
    two_quantities,
    printed_bound,
    rank_used,
    update_size,
)
"""Every question, in the order of the report."""


@dataclass(frozen=True)
class Tile:
    """One number to see first.

    Attributes:
        label: What it is.
        value: The number as printed.
        unit: Its unit, possibly empty.
        note: Where it comes from and how it changed.
    """

    label: str
    value: str
    unit: str
    note: str


@dataclass(frozen=True)
class GroupSummary:
    """What was found in one group of comparable runs.

    Attributes:
        name: What tells the group from the others; empty if it is the only one.
        done: What was trained on what, in a sentence or three.
        findings: One for each question that the numbers can answer.
    """

    name: str
    done: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Summary:
    """The words of a report.

    Attributes:
        headline: One sentence: what this is about.
        groups: One summary a group of comparable runs.
        tiles: Numbers to see first; none if there are several groups.
        caveats: What limits the findings, one sentence or two each.
    """

    headline: str
    groups: tuple[GroupSummary, ...]
    tiles: tuple[Tile, ...]
    caveats: tuple[str, ...]


def summarise(records: Sequence[AdapterMeasurement]) -> Summary:
    """Say in words what the records show.

    Args:
        records: Measurements and runs, at least one.

    Returns:
        The summary; a finding whose numbers are missing is left out.
    """
    groups = group_records(records)
    return Summary(
        headline=_headline(groups),
        groups=tuple(
            GroupSummary(
                group.name, _done(group), tuple(found for make in FINDINGS if (found := make(group)) is not None)
            )
            for group in groups
        ),
        tiles=_tiles(groups[0]) if len(groups) == 1 else (),
        caveats=caveats_of(groups),
    )


def _some(values: Sequence[str], noun: str) -> str:
    return listing(values) if len(values) <= 3 else f"{len(values)} {noun}"


def _ranks(groups: Sequence[Group]) -> str:
    ranks = sorted({rank for group in groups for rank in group.ranks if rank is not None})
    if not ranks:
        return ""
    return f" at {'rank' if len(ranks) == 1 else 'ranks'} {listing([str(rank) for rank in ranks])}"


def _headline(groups: Sequence[Group]) -> str:
    models, tasks = shared(groups, "model"), shared(groups, "task")
    model = _some(models, "models") or "a model"
    runs = [run for group in groups for run in group.runs]
    on = f" on {_some(tasks, 'tasks')}" if tasks else ""
    if not runs:
        return f"What {model} does{on} without an adapter."
    if all(isinstance(run, RunRecord) for run in runs):
        return f"What LoRA changed in {model}, trained{on}{_ranks(groups)}."
    what = "an adapter" if len(runs) == 1 else plural(len(runs), "adapter")
    return f"What {what}{_ranks(groups)} changed in {model}{', measured' + on if on else ''}."


def _done(group: Group) -> str:
    model, task = shared([group], "model"), shared([group], "task")
    sentences = []
    trained = [run for run in group.runs if isinstance(run, RunRecord)]
    if trained:
        method = "DoRA" if fact(trained[0], "use_dora") else "rsLoRA" if fact(trained[0], "use_rslora") else "LoRA"
        on = f" on {listing(task)}" if task else ""
        sentences.append(f"{listing(model) or 'The model'} was fine-tuned{on} with {method}{_ranks([group])}")
        recipe = _recipe(trained[0])
        sentences[-1] += f", {recipe}." if recipe else "."
        if group.base is not None:
            sentences.append("The model without an adapter is the base of all comparisons.")
    elif group.runs:
        what = "An adapter" if len(group.runs) == 1 else plural(len(group.runs), "adapter")
        of = f" of {listing(model)}" if model else ""
        on = f" on {listing(task)}" if task else ""
        was = "was" if len(group.runs) == 1 else "were"
        sentences.append(f"{what}{of}{_ranks([group])} {was} measured{on}.")
    else:
        on = f" on {listing(task)}" if task else ""
        sentences.append(f"{listing(model) or 'The model'} was evaluated{on} without an adapter.")
    seen = group.members[0].counts
    parts = [
        plural(int(seen[key]), noun)
        for key, noun in (("samples", "sample"), ("tokens", "token"), ("components", "adapted component"))
        if seen.get(key)
    ]
    if parts and group.runs:
        sentences.append(f"Information was measured on {listing(parts, 'in')}.")
    return " ".join(sentences)


def _recipe(run: RunRecord) -> str:
    steps, batch, epochs = (fact(run, name) for name in ("max_steps", "batch_size", "epochs"))
    parts = []
    if steps and batch:
        parts.append(f"{plural(int(steps), 'step')} of {plural(int(batch), 'row')}")
    elif epochs:
        rows = f" in batches of {show(batch)}" if batch else ""
        parts.append(f"{show(epochs)} {'pass' if epochs == 1 else 'passes'} over the data{rows}")
    rate: Any = fact(run, "learning_rate")
    if rate:
        parts.append(f"learning rate {show(rate)}")
    return ", ".join(parts)


def _tiles(group: Group) -> tuple[Tile, ...]:
    tiles: list[Tile] = []
    for metric, label, pick in (
        ("accuracy", "Accuracy", max),
        ("ce", "Cross-entropy", min),
        ("text_ppl", "Held-out perplexity", min),
        ("miub_js", "Eq. 9 shift", max),
        ("mi_joint", "Mutual information", max),
        ("update_ratio", "Update ratio", max),
    ):
        known = [(value, index) for index, run in enumerate(group.runs) if (value := total(run, metric)) is not None]
        if not known or len(tiles) == 4:
            continue
        value, index = pick(known, key=lambda item: item[0])
        texts = show_metrics(metric, [total(run, metric) for run in group.runs])
        which = {max: "highest", min: "lowest"}[pick]
        notes = [f"{group.labels[index]}, {which} of {len(known)}" if len(known) > 1 else group.labels[index]]
        before = total(group.base, metric) if group.base is not None else None
        if before is not None and metric != "miub_js":
            notes.append(f"{show_change(metric, value - before)} against the base")
        tiles.append(Tile(label, texts[index], unit_of(metric), "; ".join(notes)))
    return tuple(tiles)
