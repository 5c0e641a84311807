"""What limits the findings: seeds, questions, samples, cut rows, warnings."""

from __future__ import annotations

from collections.abc import Sequence

from lorascope.report.facts import accuracy_error, questions, total
from lorascope.report.groups import Group, shared
from lorascope.report.text import plural
from lorascope.results import RunRecord


def caveats_of(groups: Sequence[Group]) -> tuple[str, ...]:
    """One or two sentences for each limit that the records show."""
    runs = [run for group in groups for run in group.runs]
    every = [*runs, *(group.base for group in groups if group.base is not None)]
    caveats = []
    seeds = shared([group for group in groups if group.runs], "seed")
    trained = [run for run in runs if isinstance(run, RunRecord)]
    if trained and len(seeds) == 1:
        caveats.append(
            f"One seed ({seeds[0]}). Another seed gives other adapters; how far seeds differ is not known from here."
        )
    elif trained and len(seeds) > 1:
        caveats.append(f"{len(seeds)} seeds. Runs that differ in the seed only are averaged where a rank is spoken of.")
    elif trained:
        caveats.append("The seed was not recorded, so the runs cannot be repeated exactly.")
    counts = sorted(
        {count for record in every if total(record, "accuracy") is not None and (count := questions(record))}
    )
    errors = [error for record in every if (error := accuracy_error(record)) is not None]
    if counts:
        asked = plural(counts[0], "question") if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,} questions"
        worst = f", so that one standard error of an accuracy is up to {100 * max(errors):.1f} points" if errors else ""
        caveats.append(f"Accuracy was computed on {asked}{worst}.")
    elif any(total(record, "accuracy") is not None for record in every):
        caveats.append("The number of questions was not recorded: no standard error of the accuracy can be given.")
    samples = sorted({int(count) for run in runs if (count := run.counts.get("samples"))})
    if samples:
        seen = plural(samples[0], "sample") if len(samples) == 1 else f"{samples[0]:,} to {samples[-1]:,} samples"
        caveats.append(
            f"Information was measured on {seen}."
            + (
                " The plug-in mutual information depends on how many tokens were seen: compare it only between "
                "measurements of the same data."
                if any(total(run, "mi_joint") is not None for run in runs)
                else ""
            )
        )
    for key, verb in (("truncated", "cut to the model's length"), ("dropped", "left out as too long")):
        most = max((int(record.counts.get(key) or 0) for record in every), default=0)
        if most:
            caveats.append(f"Up to {plural(most, 'row')} per run {'was' if most == 1 else 'were'} {verb}.")
    if any(total(run, "miub_js") is not None for run in runs):
        caveats.append(
            "The paper does not say how Eq. 9 is averaged over tokens: compare the order of these values with its "
            "tables, not their size."
        )
    noted = sum(len(record.warnings) for record in every)
    if noted:
        caveats.append(f"{plural(noted, 'warning')} {'was' if noted == 1 else 'were'} recorded; see below.")
    return tuple(caveats)
