"""What information theory says of the adapters, and of the paper's reading of it. None where numbers are missing."""

from __future__ import annotations

from typing import Any

from lorascope.figures.finite import number
from lorascope.report.facts import total
from lorascope.report.findings import TINY, Finding, Trend, base_value, by_rank, condense, each, trend, values_of
from lorascope.report.groups import Group, at
from lorascope.report.text import listing, show
from lorascope.results import AdapterMeasurement

_SHIFT = (
    "Eq. 9 says how far the adapter moved the distribution of each layer's features (zero for an adapter that does "
    "nothing)"
)
_JOINT = "Theorem 3's mutual information says how much the adapted output still depends on the frozen one"


def two_quantities(group: Group) -> Finding | None:
    """What became of Eq. 9's number and of the mutual information, which the paper takes for one another."""
    shift, joint = values_of(group, "miub_js"), values_of(group, "mi_joint")
    if not shift and not joint:
        return None
    moves: dict[str, Trend] = {}
    sentences = []
    for metric, name, values in (("miub_js", "Eq. 9", shift), ("mi_joint", "The mutual information", joint)):
        if not values:
            continue
        before = base_value(group, metric) if metric == "mi_joint" else None
        against = "" if before is None else f"{show(before)} for the base and "
        text = f"{name}, in nats, is {against}{each(group, metric)}"
        path = by_rank(group, metric)
        if len(path) > 1:
            moves[metric] = trend(list(path.values()))
            text += f"; it {moves[metric]} with rank"
        sentences.append(f"{text}.")
    if shift and joint:
        sentences.append(f"The two answer different questions: {_SHIFT}; {_JOINT}.")
    else:
        sentences.append(f"{(_SHIFT if shift else _JOINT)}.")
    if len(moves) == 2:
        first, second = moves["miub_js"], moves["mi_joint"]
        opposite = {first, second} == {"rises", "falls"}
        title = (
            f"Eq. 9 {first}, mutual information {second}"
            if first != second
            else f"Eq. 9 and mutual information: each {first} with rank"
        )
        if opposite:
            sentences.append("Here they move in opposite directions, so one cannot stand for the other.")
    elif shift and joint:
        title = "Eq. 9 and mutual information"
    elif shift:
        title = f"Eq. 9 {moves['miub_js']} with rank" if moves else "How far the adapter moved the features"
    else:
        title = f"Mutual information {moves['mi_joint']} with rank" if moves else "How much the outputs depend"
    return Finding(title, " ".join(sentences))


def printed_bound(group: Group) -> Finding | None:
    """Whether the paper's printed bound, log(2) JS, was above the mutual information anywhere."""
    cases = [record for run in group.runs for record in _places(run)]
    below = zero = held = inside = bounded = 0
    for record in cases:
        paper, mi = number(record.get("miub_joint")), number(record.get("mi_joint"))
        if paper is None or mi is None:
            continue
        slack = TINY * max(abs(mi), abs(paper), 1e-3)
        if paper < mi - slack:
            below += 1
        elif max(paper, mi) <= slack + 1e-12:
            zero += 1
        else:
            held += 1
        lower, upper = number(record.get("mi_joint_lower")), number(record.get("mi_joint_upper"))
        if lower is not None and upper is not None:
            bounded += 1
            inside += lower - 1e-6 * abs(mi) - 1e-9 <= mi <= upper + 1e-6 * abs(mi) + 1e-9
    count = below + zero + held
    if not count:
        return None
    where = "components" if any(_has_components(run) for run in group.runs) else "totals"
    text = f"The paper prints log(2) JS as an upper bound of the mutual information. It lies below it in {below:,} of "
    text += f"{count:,} {where}"
    text += f", and both are zero in {zero:,}" if zero else ""
    if below == 0:
        title = "The printed bound was not broken here"
        text += ", so that these numbers do not decide the matter."
    elif held == 0:
        title = "The printed bound is below what it should bound"
        text += ", so that it bounds nothing here."
    else:
        title = f"The printed bound fails in {below:,} of {count:,} {where}"
        text += "."
    example = next(iter(values_of(group, "miub_joint")), None)
    if example is not None and (mi := total(example[1], "mi_joint")) is not None:
        text += f" Summed over components {at(example[0])}: {show(example[2])} nats printed, {show(mi)} nats measured."
    if bounded:
        text += (
            f" The valid bounds, (2/ln 2) JS and kappa(R) JS, enclose it in {inside:,} of {bounded:,}."
            if inside < bounded
            else " The valid bounds, (2/ln 2) JS below and kappa(R) JS above, enclose it in all of them."
        )
    return Finding(title, text)


def _has_components(run: AdapterMeasurement) -> bool:
    return any(number(record.get("miub_joint")) is not None for record in run.layers)


def _places(run: AdapterMeasurement) -> list[dict[str, Any]]:
    records = run.layers if _has_components(run) else [run.totals]
    return [dict(record) for record in records]


def rank_used(group: Group) -> Finding | None:
    """How much of the rank that was given is used."""
    values = [(label, run, value) for label, run, value in values_of(group, "effective_rank") if run.rank]
    if not values:
        return None
    shares = [value / (run.rank or 1) for _, run, value in values]
    parts = [
        f"{show(value, 3)} of {run.rank} {at(label)} ({100 * share:.0f}%)"
        if label != f"rank {run.rank}"
        else f"{show(value, 3)} of {run.rank} ({100 * share:.0f}%)"
        for (label, run, value), share in zip(values, shares, strict=True)
    ]
    text = f"Effective rank, averaged over the components: {condense(shares, parts)}."
    path = {run.rank or 0: share for (_, run, _), share in zip(values, shares, strict=True)}
    if len(path) == len(values) > 1:
        move = trend([path[rank] for rank in sorted(path)])
        text += f" The share that is used {move} with rank." if move != "moves both ways" else ""
    low, high = 100 * min(shares), 100 * max(shares)
    span = f"{low:.0f}%" if f"{low:.0f}" == f"{high:.0f}" else f"{low:.0f}% to {high:.0f}%"
    return Finding(f"{span} of the given rank is used", text)


def update_size(group: Group) -> Finding | None:
    """How large the update is beside the frozen output."""
    values = values_of(group, "update_ratio")
    if not values:
        return None
    parts = [f"{show(100 * value, 3)}% {at(label)}" for label, _, value in values]
    shown = condense([value for *_, value in values], parts)
    text = f"The update's size as a share of the frozen output's, averaged over the components: {shown}."
    idle = [label for label, _, value in values if value == 0]
    if idle:
        return Finding(
            "An adapter that does nothing",
            f"{text} It is zero {listing([at(label) for label in idle])}: nothing was learned.",
        )
    path = by_rank(group, "update_ratio")
    move = f" {trend(list(path.values()))} with rank" if len(path) > 1 else ""
    return Finding(f"Size of the update{move}", text)
