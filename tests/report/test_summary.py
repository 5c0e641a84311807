from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from lorascope.report import summarise
from lorascope.report.findings import Finding, trend
from lorascope.results import AdapterMeasurement, RunRecord
from tests.report.conftest import make_run


def texts(records: list[Any]) -> dict[str, str]:
    """Title -> text of all findings."""
    return {finding.title: finding.text for group in summarise(records).groups for finding in group.findings}


def bare(**totals: float) -> AdapterMeasurement:
    return AdapterMeasurement(totals=totals, layers=[])


def changed(run: RunRecord, **totals: float) -> RunRecord:
    return replace(run, totals={**run.totals, **totals}, correct=[])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0, 3.0], "rises"),
        ([3.0, 2.0], "falls"),
        ([1.0, 3.0, 2.0], "moves both ways"),
        ([1.0, 1.0 + 1e-12], "stays the same"),
        ([0.0, 0.0], "stays the same"),
        ([1.0, 1.0, 2.0], "moves both ways"),
    ],
)
def test_trend(values: list[float], expected: str) -> None:
    assert trend(values) == expected


def test_headline_and_what_was_done(runs: list[RunRecord]) -> None:
    summary = summarise(runs)
    assert summary.headline == "What LoRA changed in SmolLM2-135M-Instruct, trained on towns at ranks 4, 16 and 64."
    assert summary.groups[0].done == (
        "SmolLM2-135M-Instruct was fine-tuned on towns with LoRA at ranks 4, 16 and 64, 20 steps of 16 rows, learning "
        "rate 0.001. The model without an adapter is the base of all comparisons. Information was measured on 48 "
        "samples, 1,120 tokens in 210 adapted components."
    )


def test_accuracy_over_the_base(runs: list[RunRecord]) -> None:
    text = texts(runs)["Accuracy rose by 14.0 to 21.0 points"]
    # 17 of 100 questions turned right, none wrong: sd sqrt(0.17 * 0.83 * 100 / 99), over 10.
    assert "The base model answers 49.0% correctly; with the adapter, 66.0% at rank 4 (+17.0 ± 3.8 points)" in text
    assert "question by question; each difference is over two of them." in text
    assert "The highest, rank 64, and the lowest, rank 16, are 7.0 ± 2.6 points apart, more than two" in text


def test_accuracy_that_fell_and_that_may_be_chance(runs: list[RunRecord]) -> None:
    base = changed(runs[0], accuracy=0.5)
    (title, text), *_ = texts([base, changed(runs[1], accuracy=0.45)]).items()
    assert title == "Accuracy fell by 5.0 points"
    assert "the difference is within two: it may be chance" in text
    assert "as if the two sets of answers were independent" in text
    (title, text), *_ = texts([base, changed(runs[1], accuracy=0.45), changed(runs[2], accuracy=0.9)]).items()
    assert title == "Accuracy rose in 1 of 2 runs"
    assert "1 of 2 differences are over two of them; the rest may be chance" in text


def test_accuracy_that_did_not_change(runs: list[RunRecord]) -> None:
    base = changed(runs[0], accuracy=0.5)
    same = [changed(run, accuracy=0.5) for run in runs[1:]]
    (title, text), *_ = texts([base, *same]).items()
    assert title == "Accuracy rose in 0 of 3 runs"
    assert "All adapters have the same accuracy." in text
    assert next(iter(texts([base, same[0]]))) == "Accuracy did not change"


def test_accuracy_without_base_or_counts(runs: list[RunRecord]) -> None:
    text = texts(runs[1:])["Accuracy without a base to compare"]
    assert "66.0% at rank 4, 63.0% at rank 16 and 70.0% at rank 64" in text
    assert "no gain can be stated" in text
    plain = [replace(run, correct=[], counts={}) for run in runs[:2]]
    assert "No standard error of the difference is available." in texts(plain)["Accuracy rose by 17.0 points"]


def test_cross_entropy_and_forgetting(runs: list[RunRecord]) -> None:
    found = texts(runs)
    assert "6.51 nats per token for the base and 2.48 at rank 4 (−4.03)" in found["Cross-entropy fell"]
    text = found["Held-out perplexity rose"]
    assert "21.4 for the base and 22.0 at rank 4 (+0.6, +2.8%)" in text
    assert text.endswith("A rise means that something was forgotten.")


def test_no_forgetting_is_said_from_the_numbers(runs: list[RunRecord]) -> None:
    text = texts([runs[0], changed(runs[1], text_ppl=20.0)])["Held-out perplexity fell"]
    assert text.endswith("No adapter made that text less likely: no forgetting is visible here.")
    mixed = texts([runs[0], changed(runs[1], text_ppl=20.0), runs[2]])["Held-out perplexity fell in 1 of 2 runs"]
    assert mixed.endswith("It rose at rank 16: something was forgotten there.")


def test_two_quantities_are_kept_apart(runs: list[RunRecord]) -> None:
    text = texts(runs)["Eq. 9 rises, mutual information falls"]
    assert "Eq. 9, in nats, is 0.0031 at rank 4, 0.0085 at rank 16 and 0.0392 at rank 64; it rises with rank." in text
    assert "is 31.8 for the base and 31.55 at rank 4" in text
    assert "The two answer different questions" in text
    assert "opposite directions" in text


def test_two_quantities_follow_the_numbers(runs: list[RunRecord]) -> None:
    other = [runs[0], *(changed(run, miub_js=1 / (run.rank or 1)) for run in runs[1:])]
    text = texts(other)["Eq. 9 and mutual information: each falls with rank"]
    assert "opposite" not in text
    only = [replace(run, totals={"miub_js": run.totals["miub_js"]}) for run in runs]
    assert "Eq. 9 rises with rank" in texts(only)
    joint = [replace(run, totals={"mi_joint": run.totals["mi_joint"]}) for run in runs]
    assert "Mutual information falls with rank" in texts(joint)


def test_printed_bound_is_counted_over_components(runs: list[RunRecord]) -> None:
    text = texts(runs)["The printed bound is below what it should bound"]
    assert "It lies below it in 630 of 630 components, so that it bounds nothing here." in text
    assert "Summed over components at rank 4: 4.959 nats printed, 31.55 nats measured." in text
    assert "enclose it in all of them" in text


@pytest.mark.parametrize(
    ("totals", "title", "part"),
    [
        ({"miub_joint": 2.0, "mi_joint": 1.0}, "The printed bound was not broken here", "below it in 0 of 1 totals"),
        ({"miub_joint": 0.0, "mi_joint": 0.0}, "The printed bound was not broken here", "both are zero in 1"),
        ({"miub_joint": 0.5, "mi_joint": 1.0}, "The printed bound is below what it should bound", "below it in 1 of 1"),
        (
            {"miub_joint": 0.5, "mi_joint": 1.0, "mi_joint_lower": 1.5, "mi_joint_upper": 2.0},
            "The printed bound is below what it should bound",
            "enclose it in 0 of 1",
        ),
    ],
)
def test_printed_bound_of_totals(totals: dict[str, float], title: str, part: str) -> None:
    assert part in texts([bare(**totals)])[title]


def test_a_bound_that_holds_somewhere_is_said() -> None:
    layers = [
        {"name": "a", "miub_joint": 0.5, "mi_joint": 1.0},
        {"name": "b", "miub_joint": 2.0, "mi_joint": 1.0},
        {"name": "c", "miub_joint": None, "mi_joint": 1.0},
    ]
    found = texts([AdapterMeasurement(totals={}, layers=layers)])
    assert list(found) == ["The printed bound fails in 1 of 2 components"]


def test_rank_used(runs: list[RunRecord]) -> None:
    text = texts(runs)["34% to 85% of the given rank is used"]
    assert "Effective rank, averaged over the components: 3.4 of 4 (85%), 9.6 of 16 (60%) and 21.5 of 64 (34%)." in text
    assert "The share that is used falls with rank." in text


def test_update_size(runs: list[RunRecord]) -> None:
    assert "1.8% at rank 4, 3.6% at rank 16 and 7.2% at rank 64" in texts(runs)["Size of the update rises with rank"]
    idle = texts([bare(update_ratio=0.0)])
    assert "It is zero with the adapter: nothing was learned." in idle["An adapter that does nothing"]


def test_a_bare_measurement_without_rank() -> None:
    found = AdapterMeasurement(
        totals={"miub_js": 0.25, "update_ratio": 0.1},
        layers=[],
        counts={"samples": 1, "tokens": 12},
        settings={"model": "tiny", "task": "images"},
    )
    summary = summarise([found])
    assert summary.headline == "What an adapter changed in tiny, measured on images."
    assert summary.groups[0].done == (
        "An adapter of tiny was measured on images. Information was measured on 1 sample in 12 tokens."
    )
    assert [finding.title for finding in summary.groups[0].findings] == [
        "How far the adapter moved the features",
        "Size of the update",
    ]
    assert not any("seed" in caveat or "plug-in" in caveat for caveat in summary.caveats)


def test_a_base_model_alone(runs: list[RunRecord]) -> None:
    summary = summarise(runs[:1])
    assert summary.headline == "What SmolLM2-135M-Instruct does on towns without an adapter."
    assert summary.groups[0].done == "SmolLM2-135M-Instruct was evaluated on towns without an adapter."
    assert summary.groups[0].findings[0] == Finding("Accuracy of the model", "The model answers 49.0% correctly.")


def test_only_the_quantity_that_was_measured_is_explained() -> None:
    text = texts([bare(miub_js=0.5)])["How far the adapter moved the features"]
    assert text.startswith("Eq. 9, in nats, is 0.5 with the adapter. Eq. 9 says how far")
    assert "mutual information" not in text
    assert "Theorem 3's mutual information" in texts([bare(mi_joint=0.5)])["How much the outputs depend"]


def test_nothing_known_says_nothing() -> None:
    summary = summarise([bare()])
    assert summary.headline == "What an adapter changed in a model."
    assert summary.groups[0].findings == ()
    assert summary.tiles == ()
    assert summary.caveats == ()


@pytest.mark.parametrize("missing", [math.nan, math.inf])
def test_unknown_numbers_make_no_finding(missing: float) -> None:
    names = ("accuracy", "ce", "text_ppl", "miub_js", "mi_joint", "miub_joint", "update_ratio", "effective_rank")
    summary = summarise([bare(**dict.fromkeys(names, missing))])
    assert summary.groups[0].findings == ()


def test_tiles_choose_the_best_and_say_so(runs: list[RunRecord]) -> None:
    tiles = summarise(runs).tiles
    assert [(tile.label, tile.value, tile.unit) for tile in tiles] == [
        ("Accuracy", "70.0%", ""),
        ("Cross-entropy", "2.35", "nats"),
        ("Held-out perplexity", "22.0", ""),
        ("Eq. 9 shift", "0.0392", "nats"),
    ]
    assert tiles[0].note == "rank 64, highest of 3; +21.0 against the base"
    assert tiles[1].note == "rank 16, lowest of 3; −4.16 against the base"


def test_caveats_name_seeds_questions_samples_and_cut_rows(runs: list[RunRecord]) -> None:
    text = " ".join(summarise(runs).caveats)
    assert "One seed (0)." in text
    assert "100 questions, so that one standard error of an accuracy is up to 5.0 points" in text
    assert "measured on 48 samples" in text
    assert "3 warnings were recorded" in text
    assert "cut" not in text
    assert "plug-in" in text
    cut = replace(runs[1], counts={"truncated": 1, "dropped": 3}, warnings=[])
    text = " ".join(summarise([cut]).caveats)
    assert "Up to 1 row per run was cut to the model's length." in text
    assert "Up to 3 rows per run were left out as too long." in text
    assert "warning" not in text
    assert "2 seeds." in " ".join(summarise([make_run(4), make_run(4, seed=1)]).caveats)
    assert "The seed was not recorded" in " ".join(
        summarise([replace(runs[1], spec={"rank": 4}, provenance={})]).caveats
    )


def test_twenty_runs_of_two_tasks_are_summed_up_by_task() -> None:
    records = [
        make_run(rank, task=task, seed=seed, layers=1)
        for task in ("towns", "piqa")
        for rank in (0, 4, 16, 64, 128)
        for seed in (0, 1)
    ]
    summary = summarise(records)
    assert len(records) == 20
    assert [group.name for group in summary.groups] == ["task towns", "task piqa"]
    assert summary.headline == (
        "What LoRA changed in SmolLM2-135M-Instruct, trained on towns and piqa at ranks 4, 16, 64 and 128."
    )
    assert summary.tiles == ()
    text = summary.groups[0].findings[0].text
    assert "between 60.0% at rank 128 (seed 0) (+11.0 ± 3.1 points) and 70.0% at rank 64 (seed 0)" in text
    assert "(8 runs, all in the table)" in text
