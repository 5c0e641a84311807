from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lorascope.core.errors import DataError, InputError
from lorascope.scaling import Claim, claims_paper, claims_sweep
from lorascope.scaling.claims_cells import curves_of
from lorascope.scaling.claims_statistics import (
    chance_of_steady,
    fewest_to_decide,
    following,
    mean_interval,
    moves_steadily,
    share_interval,
)
from lorascope.scaling.claims_theorem import printed_bound, random_joints, valid_bounds
from lorascope.scaling.settings import settings_of


@pytest.fixture(scope="module")
def paper() -> dict[str, Claim]:
    return {claim.key: claim for claim in claims_paper()}


def sweep(
    tasks: int = 3,
    ranks: tuple[int, ...] = (4, 16, 64),
    seeds: int = 2,
    noise: float = 0.0,
    **columns: Any,
) -> pd.DataFrame:
    """Runs in which accuracy and miub_js rise with rank, and mi_joint and ce fall."""
    generator = np.random.default_rng(0)
    rows = []
    for task, rank, seed in itertools.product(range(tasks), ranks, range(seeds)):
        draw = generator.normal(size=4) * noise
        x = math.log2(rank)
        row = {"task": f"t{task}", "model": "m", "R": rank, "N": 100, "D": 50, "seed": seed, "status": "done"}
        row |= {
            "accuracy": 0.5 + 0.05 * x + draw[0],
            "ce": 3 - 0.3 * x + draw[1],
            "ppl": math.exp(3 - 0.3 * x + draw[1]),
        }
        row |= {"miub_js": 0.01 * x + 0.1 * draw[2], "mi_joint": 30 - x + draw[3], "joint_js": (30 - x + draw[3]) / 4}
        rows.append(row)
    return pd.DataFrame(rows).assign(**columns)


def verdicts(table: pd.DataFrame) -> dict[tuple[str, str], Claim]:
    return {(claim.key, claim.quantity): claim for claim in claims_sweep(table, n_boot=1000)}


# The paper's own numbers


def test_monotone_counts_of_table_1(paper: dict[str, Claim]) -> None:
    assert [paper[f"{who}_rank"].details["falls"] for who in ("falls", "ce_falls")] == [6, 2]
    assert paper["accuracy_rises_rank"].details["rises"] == 3
    assert [paper[f"{who}_size"].details["falls"] for who in ("falls", "ce_falls")] == [10, 8]
    assert paper["accuracy_rises_size"].details["rises"] == 1
    assert {paper[f"{who}_{axis}"].n for who in ("falls", "ce_falls") for axis in ("rank", "size")} == {10}


def test_kendall_taus_of_table_1(paper: dict[str, Claim]) -> None:
    rank, size = paper["follows_rank_ce"], paper["follows_size_ce"]
    assert [round(rank.details[side], 2) for side in ("tau", "tau_rival")] == [-0.01, -0.07]
    assert [round(size.details[side], 2) for side in ("tau", "tau_rival")] == [0.63, 0.53]
    assert rank.value == pytest.approx(rank.details["tau"] - rank.details["tau_rival"])
    assert round(paper["follows_rank"].value, 2) == -0.01
    assert round(paper["follows_size"].value, 2) == 0.63


def test_verdicts_on_the_paper(paper: dict[str, Claim]) -> None:
    assert {key: claim.verdict for key, claim in paper.items()} == {
        "falls_rank": "supported",
        "ce_falls_rank": "not supported",
        "accuracy_rises_rank": "not supported",
        "falls_size": "supported",
        "ce_falls_size": "supported",
        "accuracy_rises_size": "not supported",
        "falls_length": "undecided",
        "falls_data": "undecided",
        "law_rank_ce": "not supported",
        "spread_rank_ce": "supported",
        "law_size_ce": "not supported",
        "spread_size_ce": "supported",
        "law_size_ppl": "undecided",
        "noise_ce": "undecided",
        "follows_rank": "not supported",
        "follows_rank_ce": "not supported",
        "follows_size": "supported",
        "follows_size_ce": "not supported",
        "close": "supported",
        "table3_is_theorem3": "contradicted",
        "prompt_order": "supported",
        "prompt_falls_rank": "supported",
        "prompt_falls_size": "supported",
        "theorem3_printed": "contradicted",
        "theorem3_valid": "supported",
        "averages": "contradicted",
    }


def test_prompts_and_table_3(paper: dict[str, Claim]) -> None:
    assert paper["prompt_order"].value == pytest.approx(4 / 7)
    assert max(paper["close"].details["ratios"]) == pytest.approx(1898.560 / 1898.452)
    assert paper["table3_is_theorem3"].reference == pytest.approx(math.log(2) ** 2 / 2)
    assert paper["averages"].details["agree"]["miub"] == 0


def test_the_ledger_is_the_same_twice_and_goes_through_json() -> None:
    first, second = claims_paper(n_boot=1000, seed=3), claims_paper(n_boot=1000, seed=3)
    assert [claim.to_dict() for claim in first] == [claim.to_dict() for claim in second]
    for claim in first:
        text = json.dumps(claim.to_dict(), allow_nan=False)
        assert Claim.from_dict(json.loads(text)).to_dict() == claim.to_dict()


def test_foreign_claims_are_refused(paper: dict[str, Claim]) -> None:
    values = paper["close"].to_dict()
    with pytest.raises(DataError, match="schema_version 9"):
        Claim.from_dict({**values, "schema_version": 9})
    with pytest.raises(DataError, match="mood"):
        Claim.from_dict({**values, "mood": 1})


# A sweep


def test_quantities_are_judged_separately() -> None:
    found = verdicts(sweep())
    assert found["falls_rank", "Eq. 9"].verdict == "contradicted"
    assert found["falls_rank", "Theorem 3, I"].verdict == "supported"
    assert found["falls_rank", "Theorem 3, bound"].verdict == "supported"  # made from joint_js
    assert found["ce_falls_rank", "CE"].verdict == "supported"
    assert found["accuracy_rises_rank", "accuracy"].verdict == "supported"
    assert found["follows_rank", "Eq. 9"].verdict == "contradicted"
    assert found["follows_rank", "Theorem 3, I"].verdict == "supported"
    assert found["follows_rank_ce", "Eq. 9"].value == pytest.approx(-2.0)
    assert found["follows_rank_ce", "Theorem 3, I"].verdict == "not supported"  # equal, so not better
    assert found["spread_rank_ce", "Theorem 3, I"].verdict == "supported"


def test_theorem_3_on_runs() -> None:
    found = verdicts(sweep(mi_joint_upper=200.0))
    printed = found["theorem3_printed", "Theorem 3"]
    assert (printed.verdict, printed.value, printed.n) == ("contradicted", 0.0, 18)
    assert found["theorem3_valid", "Theorem 3"].verdict == "supported"
    assert found["close", "Theorem 3, bound"].verdict == "contradicted"
    broken = verdicts(sweep(mi_joint_upper=1.0))["theorem3_valid", "Theorem 3"]
    assert broken.verdict == "contradicted"
    assert "these numbers are wrong" in broken.explanation


def test_independent_layers_break_nothing() -> None:
    claim = verdicts(sweep(mi_joint=0.0, joint_js=0.0))["theorem3_printed", "Theorem 3"]
    assert claim.verdict == "undecided"


def test_base_model_and_unfinished_runs_do_not_count() -> None:
    table = sweep()
    base = table[table["R"] == 4].assign(R=0, miub_js=1e9)
    failed = table[table["R"] == 4].assign(R=256, miub_js=-1e9, status="failed")
    expected = verdicts(table)["falls_rank", "Eq. 9"]
    assert verdicts(pd.concat([table, base, failed]))["falls_rank", "Eq. 9"] == expected
    with pytest.raises(InputError, match="no finished run"):
        claims_sweep(failed)


def test_units_are_cells_from_six_on_and_curves_below() -> None:
    few = verdicts(sweep(tasks=3, seeds=2))["falls_rank", "Eq. 9"]
    assert (few.n, few.scope) == (6, "This speaks of these 3 cells only.")
    many = verdicts(sweep(tasks=6, seeds=2))["falls_rank", "Eq. 9"]
    assert (many.n, many.scope) == (6, "This speaks of cells like these (6 tasks, 1 model).")


def test_one_rank_one_seed_two_levels() -> None:
    one = verdicts(sweep(ranks=(16,)))["falls_rank", "Eq. 9"]
    assert (one.verdict, one.n) == ("undecided", 0)
    assert "run at least two levels" in one.explanation
    single = verdicts(sweep(tasks=1, seeds=1))["falls_rank", "Theorem 3, I"]
    assert (single.verdict, single.n, single.needed) == ("undecided", 1, 3)
    two = verdicts(sweep(tasks=5, seeds=1, ranks=(4, 16)))["falls_rank", "Theorem 3, I"]
    assert (two.verdict, two.needed) == ("undecided", 6)
    assert "At least 6 are needed" in two.explanation
    assert single.scope == "This speaks of this cell only."


def test_no_seed_column() -> None:
    table = sweep(seeds=1).drop(columns="seed")
    assert verdicts(table)["falls_rank", "Theorem 3, I"].verdict == "supported"
    assert verdicts(table)["noise_ce", "Eq. 9"].verdict == "undecided"


def test_constant_metrics_and_constant_accuracy() -> None:
    flat = verdicts(sweep(miub_js=0.25, tasks=6))
    assert flat["falls_rank", "Eq. 9"].verdict == "not supported"
    assert flat["follows_rank", "Eq. 9"].value == 0.0
    assert flat["follows_rank", "Eq. 9"].verdict == "not supported"
    level = verdicts(sweep(accuracy=0.5, tasks=6))["follows_rank", "Theorem 3, I"]
    assert level.verdict == "undecided"
    assert "Accuracy does not vary over rank" in level.explanation


def test_missing_columns_and_values_are_said() -> None:
    missing = verdicts(sweep().drop(columns=["miub_js", "ppl"]))
    assert missing["falls_rank", "Eq. 9"].verdict == "undecided"
    assert "No run has `miub_js`" in missing["falls_rank", "Eq. 9"].explanation
    assert "`ppl`" in missing["law_rank_ppl", "Theorem 3, I"].explanation
    text_only = verdicts(sweep().drop(columns="accuracy"))
    assert "No run has `accuracy`" in text_only["follows_rank", "Theorem 3, I"].explanation
    assert text_only["falls_rank", "Theorem 3, I"].verdict == "supported"
    holes = sweep()
    holes.loc[holes["R"] == 16, "mi_joint"] = np.nan
    claim = verdicts(holes)["falls_rank", "Theorem 3, I"]
    assert claim.details["chance"] == pytest.approx(0.5)  # two levels are left
    assert verdicts(holes.assign(mi_joint=np.inf))["falls_rank", "Theorem 3, I"].verdict == "undecided"


def test_size_data_and_length_axes() -> None:
    table = sweep(ranks=(4,), tasks=2)
    rows = []
    for index, (share, size) in enumerate([(8, 60), (4, 70), (2, 80), (None, 100)]):
        rows.append(table.assign(share=share, N=size, mi_joint=40 - index))
    assert verdicts(pd.concat(rows))["falls_size", "Theorem 3, I"].verdict == "supported"
    rows = [table.assign(D=d, train_limit=d, mi_joint=d) for d in (10, 100, 1000)]
    assert verdicts(pd.concat(rows))["falls_data", "Theorem 3, I"].verdict == "contradicted"
    rows = [
        table.assign(length=length, D=d, mi_joint=-d) for length, d in (("1-100", 10), ("101-200", 20), ("201-300", 30))
    ]
    assert verdicts(pd.concat(rows))["falls_length", "Theorem 3, I"].verdict == "supported"


def test_prompt_order_on_a_sweep() -> None:
    values = {"prompt1": 4.0, "main": 3.0, "prompt3": 2.0, "prompt2": 1.0}
    table = pd.concat([sweep(tasks=1, seeds=1).assign(prompt=name, mi_joint=value) for name, value in values.items()])
    claim = verdicts(table)["prompt_order", "Theorem 3, I"]
    assert (claim.verdict, claim.n, claim.value) == ("supported", 3, 1.0)
    reverse = pd.concat([sweep(tasks=2, seeds=1).assign(prompt=n, mi_joint=-v) for n, v in values.items()])
    assert verdicts(reverse)["prompt_order", "Theorem 3, I"].verdict == "contradicted"
    assert verdicts(sweep())["prompt_order", "Eq. 9"].verdict == "undecided"


def test_run_to_run_noise_is_compared_setting_by_setting() -> None:
    table = sweep(tasks=2, seeds=3, noise=0.01)
    table["mi_joint"] = 30.0 + 1e-6 * table["seed"]
    claim = verdicts(table)["noise_ce", "Theorem 3, I"]
    assert (claim.verdict, claim.n, claim.value) == ("supported", 6, 1.0)


def test_bad_tables_end_in_one_line() -> None:
    with pytest.raises(InputError, match="none of the columns R, N, D, length"):
        claims_sweep(pd.DataFrame({"ce": [1.0]}))
    with pytest.raises(InputError, match="column 'ce' has 'high'"):
        claims_sweep(sweep(ce="high"))
    with pytest.raises(InputError, match="2 columns 'ce'"):
        claims_sweep(pd.concat([sweep(), sweep()[["ce"]]], axis=1))
    with pytest.raises(InputError, match="n_boot=999"):
        claims_sweep(sweep(), n_boot=999)


def test_settings_leave_out_outcomes_and_comments() -> None:
    table = sweep().assign(seconds_total=range(18), note=[f"n{i}" for i in range(18)], learning_rate=[0.1, 0.2] * 9)
    table["rank"] = table["R"]
    assert settings_of(table) == ["task", "R", "learning_rate"]
    # Runs with another learning rate are no step on the axis.
    apart = [curve.cell for curve in curves_of(table, "rank", ["ce"])]
    assert all("learning_rate" in cell for cell in apart)


# The statistics


def test_a_verdict_agrees_with_the_exact_test() -> None:
    for n, chance in itertools.product(range(1, 15), (1 / 2, 1 / 6, 1 / 24)):
        for count in range(n + 1):
            low, high = share_interval(count, n)
            above = stats.binomtest(count, n, chance, alternative="greater").pvalue < 0.025
            below = stats.binomtest(count, n, chance, alternative="less").pvalue < 0.025
            assert (low > chance, high < chance) == (above, below)
        assert (share_interval(n, n)[0] > chance) == (n >= fewest_to_decide(chance))


@pytest.mark.parametrize("n", [6, 10])
def test_the_bootstrap_covers_the_mean_of_few_skewed_values(n: int) -> None:
    """Differences of tau come in thirds and are skewed; the plain percentile interval covers 0.82 and 0.91 of them."""
    generator = np.random.default_rng(1)
    steps, shares = np.array([-2, 0, 1, 2, 4]) / 3, np.array([0.1, 0.4, 0.2, 0.2, 0.1])
    truth, inside = float(steps @ shares), 0
    for trial in range(400):
        low, high = mean_interval(generator.choice(steps, p=shares, size=n).tolist(), n_boot=1000, seed=trial)
        inside += low - 1e-9 <= truth <= high + 1e-9
    assert 0.87 <= inside / 400 <= 0.99


@given(st.lists(st.floats(-5, 5).map(lambda x: round(x, 1)), min_size=2, max_size=6))
@settings(max_examples=60, deadline=None)
def test_chance_counts_the_orders_that_fall(values: list[float]) -> None:
    orders = list(itertools.permutations(values))
    falling = sum(moves_steadily(order, falls=True) is True for order in orders)
    assert chance_of_steady(values) == pytest.approx(falling / len(orders))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=8))
@settings(max_examples=60, deadline=None)
def test_following_is_tau_b_and_turns_with_the_sign(pairs: list[tuple[int, int]]) -> None:
    target, metric = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    tau = following(target, metric)
    if len(set(target)) == 1:
        assert math.isnan(tau)
    elif len(set(metric)) == 1:
        assert tau == 0.0
    else:
        assert tau == pytest.approx(stats.kendalltau(target, [-b for b in metric]).statistic)
        assert following(target, [-b for b in metric]) == pytest.approx(-tau)


def test_pure_noise_is_rarely_decided() -> None:
    """Claims on noise: at 95 % few are decided, about as many either way."""
    decided = judged = 0
    for trial in range(25):
        generator = np.random.default_rng(trial)
        table = sweep(tasks=8, seeds=1)
        for name in ("accuracy", "ce", "miub_js", "mi_joint"):
            table[name] = generator.normal(size=len(table)) + 10
        for claim in claims_sweep(table, n_boot=1000, seed=trial):
            if (
                claim.key in ("falls_rank", "follows_rank", "follows_rank_ce", "law_rank_ce")
                and claim.quantity == "Eq. 9"
            ):
                judged += 1
                decided += claim.verdict in ("supported", "contradicted")
    assert judged == 100
    assert decided <= 12


def test_random_joints_agree_with_the_library() -> None:
    from lorascope.information import mutual_information_bounds

    mi, js, lower, upper = random_joints(200, seed=5)
    assert all(a <= b * (1 + 1e-9) and b <= c * (1 + 1e-9) for a, b, c in zip(lower, mi, upper, strict=True))
    assert min(a / b for a, b in zip(mi, js, strict=True)) > 2 / math.log(2)
    joint = np.array([[0.4, 0.1], [0.1, 0.4]])
    bounds = mutual_information_bounds(joint.tolist())
    assert printed_bound([float(bounds.mi)], [math.log(2) * float(bounds.js)], "joints").verdict == "contradicted"
    assert valid_bounds([float(bounds.lower)], [float(bounds.mi)], [float(bounds.upper)], "j").verdict == "supported"
