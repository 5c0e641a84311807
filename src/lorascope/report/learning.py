"""Did it learn, and at what price: accuracy, cross-entropy, forgetting. None where the numbers are missing."""

from __future__ import annotations

from lorascope.report.facts import Difference, accuracy_difference
from lorascope.report.findings import TINY, Finding, base_value, condense, each, values_of
from lorascope.report.groups import Group, at
from lorascope.report.text import MINUS, listing, plural, show, show_alike, show_change, show_metric


def accuracy(group: Group) -> Finding | None:
    """What was gained in accuracy over the base, with standard errors."""
    values = values_of(group, "accuracy")
    before = base_value(group, "accuracy")
    if not values:
        if before is None or group.runs:
            return None
        return Finding("Accuracy of the model", f"The model answers {show_metric('accuracy', before)} correctly.")
    if before is None or group.base is None:
        text = f"Accuracy is {each(group, 'accuracy')}. The base model was not evaluated, so no gain can be stated."
        return Finding("Accuracy without a base to compare", text)
    changes = [(label, value, accuracy_difference(group.base, run)) for label, run, value in values]
    known = [(label, value, change) for label, value, change in changes if change is not None]
    parts = [f"{show_metric('accuracy', value)} {at(label)} ({_points(change)})" for label, value, change in known]
    shown = condense([value for _, value, _ in known], parts)
    text = f"The base model answers {show_metric('accuracy', before)} correctly; with the adapter, {shown}."
    text += _confidence([change for _, _, change in known])
    if len(values) > 1:
        text += _best_and_worst(group)
    ups = sum(change.value > 0 for _, _, change in known)
    if ups == len(known):
        title = f"Accuracy rose by {_span([change.value for _, _, change in known], 'accuracy')} points"
    elif ups == 0 and all(change.value < 0 for _, _, change in known):
        title = f"Accuracy fell by {_span([-change.value for _, _, change in known], 'accuracy')} points"
    else:
        title = f"Accuracy rose in {ups} of {len(known)} runs" if len(known) > 1 else "Accuracy did not change"
    return Finding(title, text)


def _points(change: Difference) -> str:
    error = "" if change.error is None else f" ± {100 * change.error:.1f}"
    return f"{show_change('accuracy', change.value)}{error} points"


def _span(values: list[float], metric: str) -> str:
    texts = [show_change(metric, value).lstrip("+") for value in (min(values), max(values))]
    return texts[0] if texts[0] == texts[1] else f"{texts[0]} to {texts[1]}"


def _confidence(changes: list[Difference]) -> str:
    tested = [change for change in changes if change.error is not None]
    if not tested:
        return " No standard error of the difference is available."
    clear = sum(bool(change.clear) for change in tested)
    how = (
        "one standard error of the difference, question by question"
        if all(change.paired for change in tested)
        else "one standard error of the difference, as if the two sets of answers were independent"
    )
    if len(tested) == 1:
        verdict = "the difference is over two of them" if clear else "the difference is within two: it may be chance"
    elif clear == len(tested):
        verdict = "each difference is over two of them"
    elif clear == 0:
        verdict = "no difference is over two of them: all may be chance"
    else:
        verdict = f"{clear} of {len(tested)} differences are over two of them; the rest may be chance"
    return f" ± is {how}; {verdict}."


def _best_and_worst(group: Group) -> str:
    values = values_of(group, "accuracy")
    high, low = max(values, key=lambda item: item[2]), min(values, key=lambda item: item[2])
    change = accuracy_difference(low[1], high[1])
    if change is None or change.value == 0:
        return " All adapters have the same accuracy."
    verdict = {
        True: "more than two standard errors",
        False: "within two standard errors, so that this does not rank them",
    }
    tail = f", {verdict[change.clear]}" if change.clear is not None else ""
    return f" The highest, {high[0]}, and the lowest, {low[0]}, are {_points(change).lstrip('+')} apart{tail}."


def cross_entropy(group: Group) -> Finding | None:
    """How the surprise at the correct continuation changed."""
    return _lower_is_better(group, "ce", "Cross-entropy", "Cross-entropy of the correct continuation", "nats per token")


def forgetting(group: Group) -> Finding | None:
    """What happened to text that has nothing to do with the task."""
    found = _lower_is_better(
        group, "text_ppl", "Held-out perplexity", "Perplexity of text unrelated to the task", "", relative=True
    )
    values, before = values_of(group, "text_ppl"), base_value(group, "text_ppl")
    if found is None or before is None or not values:
        return found
    worse = [label for label, _, value in values if value > before * (1 + TINY)]
    if not worse:
        note = "No adapter made that text less likely: no forgetting is visible here."
    elif len(worse) == len(values):
        note = "A rise means that something was forgotten."
    else:
        note = f"It rose {listing([at(label) for label in worse])}: something was forgotten there."
    return Finding(found.title, f"{found.text} {note}")


def _lower_is_better(
    group: Group, metric: str, short: str, name: str, unit: str, *, relative: bool = False
) -> Finding | None:
    values, before = values_of(group, metric), base_value(group, metric)
    unit = f" {unit}" if unit else ""
    if not values:
        if before is None or group.runs:
            return None
        return Finding(f"{short} {show(before)}", f"{name} is {show(before)}{unit}.")
    if before is None:
        text = f"{name} is {each(group, metric)}{unit and ', in' + unit}. The base model was not evaluated."
        return Finding(f"{short} without a base to compare", text)
    parts = []
    first, *texts = show_alike([before, *(value for _, _, value in values)])
    for text, (label, _, value) in zip(texts, values, strict=True):
        share = f", {100 * (value / before - 1):+.1f}%".replace("-", MINUS) if relative and before else ""
        parts.append(f"{text} {at(label)} ({show_change(metric, value - before)}{share})")
    changes = [value - before for _, _, value in values]
    text = f"{name} is {first}{unit} for the base and {condense([value for *_, value in values], parts)}."
    if all(change < 0 for change in changes):
        title = f"{short} fell"
    elif all(change > 0 for change in changes):
        title = f"{short} rose"
    elif not any(changes):
        title = f"{short} did not change"
    else:
        title = f"{short} fell in {sum(change < 0 for change in changes)} of {plural(len(changes), 'run')}"
    return Finding(title, text)
