from __future__ import annotations

import math

import pytest

from lorascope.report.facts import accuracy_difference, accuracy_error, display_name, fact, questions, recorded_error
from lorascope.report.groups import group_records
from lorascope.results import AdapterMeasurement, RunRecord
from tests.report.conftest import make_run


def run(accuracy: float, correct: list[bool] | None = None, questions: int | None = None, **spec: object) -> RunRecord:
    counts = {} if questions is None else {"questions": questions}
    return RunRecord(
        name="r", totals={"accuracy": accuracy}, layers=[], correct=correct or [], counts=counts, spec=dict(spec)
    )


def test_standard_error_of_an_accuracy() -> None:
    assert accuracy_error(run(0.5, questions=101)) == pytest.approx(0.05)
    assert accuracy_error(run(0.5, correct=[True, False])) == pytest.approx(0.5)
    assert accuracy_error(run(0.5)) is None
    assert accuracy_error(run(1.0, questions=10)) is None
    assert accuracy_error(run(math.nan, questions=10)) is None
    assert questions(run(0.5, questions=7)) == 7


def test_difference_is_paired_when_both_know_their_answers() -> None:
    first, second = run(0.5, [True, True, False, False]), run(0.75, [True, True, True, False])
    change = accuracy_difference(first, second)
    assert change is not None
    # Differences 0, 0, 1, 0: standard deviation 0.5 over sqrt(4).
    assert (change.value, change.error, change.paired) == (0.25, pytest.approx(0.25), True)
    assert change.clear is False


def test_difference_on_other_questions_is_not_paired() -> None:
    first, second = run(0.5, [True, False], task="a"), run(0.5, [True, False], task="b")
    change = accuracy_difference(first, second)
    assert change is not None
    assert (change.error, change.paired) == (pytest.approx(math.hypot(0.5, 0.5)), False)


def test_difference_without_counts_has_no_error() -> None:
    change = accuracy_difference(run(0.25), run(0.75))
    assert change is not None
    assert (change.value, change.error, change.clear) == (0.5, None, None)
    assert accuracy_difference(run(0.25), run(math.nan)) is None


def test_errors_of_other_totals_are_those_that_were_recorded() -> None:
    record = AdapterMeasurement(totals={}, layers=[], settings={"evaluation": {"errors": {"ce": 0.5, "ppl": "x"}}})
    assert [recorded_error(record, name) for name in ("ce", "ppl", "text_ppl")] == [0.5, None, None]
    assert recorded_error(run(0.5, questions=101), "accuracy") == pytest.approx(0.05)
    assert recorded_error(run(0.5), "ce") is None


def test_held_out_text_has_the_error_of_its_own_evaluation() -> None:
    settings = {"evaluation": {"errors": {"ppl": 0.5}}, "text_evaluation": {"errors": {"ce": 0.1, "ppl": 3.0}}}
    record = AdapterMeasurement(totals={"text_ppl": 30.0, "ppl": 2.0}, layers=[], settings=settings)
    assert (recorded_error(record, "text_ppl"), recorded_error(record, "ppl")) == (3.0, 0.5)
    assert recorded_error(AdapterMeasurement(totals={"text_ppl": 30.0}, layers=[], settings={}), "text_ppl") is None


def test_identical_answers_have_no_standard_error() -> None:
    change = accuracy_difference(run(0.5, [True, False]), run(0.5, [True, False]))
    assert change is not None and change.error is None


def test_facts_come_from_spec_then_settings_then_provenance() -> None:
    record = RunRecord(
        name="r",
        totals={},
        layers=[],
        spec={"model": "m"},
        settings={"task": "t"},
        provenance={"task": "p", "adapter": "a"},
    )
    assert fact(record, "model") == "m"
    assert fact(record, "task") == "t"
    assert fact(record, "adapter") == "a"
    assert fact(record, "missing") is None


def test_names_of_measurements() -> None:
    assert display_name(AdapterMeasurement(totals={}, layers=[])) == "adapter"
    assert display_name(RunRecord(name="rank-0", totals={}, layers=[], spec={"rank": 0})) == "base"
    assert display_name(AdapterMeasurement(totals={}, layers=[]), 1, 3) == "adapter 2"
    assert display_name(AdapterMeasurement(totals={}, layers=[], settings={"adapter": "out/a"})) == "out/a"


def test_runs_that_differ_in_rank_and_seed_are_one_group_with_their_base() -> None:
    runs = [make_run(64), make_run(0), make_run(4), make_run(16, seed=1)]
    (group,) = group_records(runs)
    assert group.name == ""
    assert group.base is runs[1]
    assert group.ranks == (4, 16, 64)
    assert group.labels == ("rank 4", "rank 16", "rank 64")


def test_other_settings_split_groups_and_the_base_joins_those_of_its_task() -> None:
    runs = [
        make_run(0),
        make_run(4),
        make_run(4, learning_rate=0.01),
        make_run(4, task="piqa"),
        make_run(0, task="arc_easy"),
    ]
    groups = group_records(runs)
    assert [group.name for group in groups] == [
        "learning_rate 0.001, task towns",
        "learning_rate 0.01, task towns",
        "learning_rate 0.001, task piqa",
        "base",
    ]
    assert [group.base is not None for group in groups] == [True, True, False, True]
    assert groups[3].runs == ()


def test_repeats_are_called_by_their_seed_or_name() -> None:
    one = make_run(4)
    (group,) = group_records([one, make_run(4, seed=1)])
    assert group.labels == ("rank 4 (seed 0)", "rank 4 (seed 1)")
    (group,) = group_records([one, RunRecord(**{**vars(one), "name": "again"})])
    assert group.labels == ("rank-4", "again")


def test_the_scale_alpha_over_rank_is_a_setting() -> None:
    assert len(group_records([make_run(4), make_run(16)])) == 1
    assert len(group_records([make_run(4), make_run(16, alpha=8)])) == 2


def test_bare_measurements_are_grouped_by_model_and_task() -> None:
    found = [AdapterMeasurement(totals={}, layers=[], settings={"task": task}) for task in ("a", "b", "a")]
    assert [len(group.runs) for group in group_records(found)] == [2, 1]
