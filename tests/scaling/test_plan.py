"""The planner on tables whose truth is known: the choice, its honesty, its costs, and every kind of bad table."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from peft import LoraConfig

from lorascope.core import InputError
from lorascope.core.errors import DataError
from lorascope.scaling import fit_scaling_law
from lorascope.scaling.cost_shapes import ModelShape
from lorascope.scaling.design import next_cells
from lorascope.scaling.plan import recommend
from lorascope.scaling.plan_costs import cost_book
from lorascope.scaling.plan_problem import Problem, choose
from lorascope.scaling.plan_result import Plan
from lorascope.scaling.plan_runs import prepare
from lorascope.scaling.plan_surface import draw_surface
from lorascope.scaling.plan_units import parse_budget

RANKS = (2, 4, 8, 16, 32, 64)


def table_of(
    mean: Any,
    *,
    ranks: tuple[int, ...] = RANKS,
    sizes: tuple[int, ...] = (100, 400, 1600),
    models: tuple[float, ...] = (3e7, 1.35e8),
    seeds: int = 3,
    noise: float = 0.01,
    seed: int = 0,
    costs: bool = True,
) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    shared = rng.normal(0, 0.02, seeds)
    rows = []
    for n in models:
        for r in ranks:
            for d in sizes:
                for s in range(seeds):
                    y = mean(n, r, d) + shared[s] + rng.normal(0, noise)
                    row = {"N": n, "R": r, "D": d, "seed": s, "status": "done", "accuracy": y}
                    if costs:
                        adapter, tokens = round(30_000 * r * (n / 3e7) ** 0.67), 25 * d
                        flops, steps = tokens * (4 * n + 6 * adapter), d // 16
                        row |= {"train_tokens_seen": tokens, "adapter_parameters": adapter, "train_steps": steps}
                        row["seconds_training"] = (flops / 1e11 + 0.05 * steps) * math.exp(rng.normal(0, 0.05))
                        row["peak_memory_bytes"] = 5e8 + 4 * n + 16 * adapter
                    rows.append(row)
    return pd.DataFrame(rows)


def saturating(n: float, r: float, d: float) -> float:
    return 0.35 + 0.1 * math.log10(n / 3e7) + 0.1 * math.log10(d / 100) + 0.08 * (1 - math.exp(-r / 4))


def test_saturating_rank_takes_the_smallest_that_is_enough() -> None:
    plan = recommend(table_of(saturating))
    assert plan.choice == {"N": 135_000_000, "R": plan.rank, "D": 1600}
    assert plan.rank in (8, 16)  # rank 8 loses 0.011, about the noise; rank 4 loses 0.029
    assert plan.settled
    assert plan.noise == pytest.approx(0.01, rel=0.25)  # the seeds' common effect of 0.02 does not count
    assert plan.low is not None and plan.high is not None
    assert plan.low < saturating(1.35e8, plan.rank, 1600) + 0.03 and plan.high > plan.low
    assert plan.next_cells == []
    chance = {record["R"]: record["within_noise"] for record in plan.ranks}
    assert chance[2] < 0.01 < 0.5 < chance[64]
    assert plan.bigger_rank_helps is not None and plan.bigger_rank_helps < 0.5
    assert "enough" in plan.summary()


def test_flat_truth_takes_the_cheapest_and_says_so() -> None:
    plan = recommend(table_of(lambda n, r, d: 0.6))
    assert plan.choice == {"N": 30_000_000, "R": 2, "D": 100}
    assert plan.bigger_rank_helps is not None and plan.bigger_rank_helps < 0.1
    assert plan.within_noise is not None and plan.within_noise > 0.9


def test_rising_and_u_shaped_truths() -> None:
    rising = recommend(table_of(lambda n, r, d: 0.4 + 0.05 * math.log2(r)))
    assert (rising.rank, rising.choice["D"]) == (64, 100)
    assert "largest candidate" in rising.summary()
    peak = recommend(table_of(lambda n, r, d: 0.7 - 0.03 * (math.log2(r) - 3) ** 2))
    assert peak.rank == 8
    step = next(step for step in peak.steps if step["axis"] == "R")
    assert step["gain"] == pytest.approx(-0.03, abs=0.01)
    assert step["probability"] < 0.01


def test_lower_is_better_for_cross_entropy() -> None:
    table = table_of(lambda n, r, d: 2.0 + 0.5 * math.exp(-r / 4)).rename(columns={"accuracy": "ce"})
    plan = recommend(table, metric="ce")
    assert plan.better == "lower"
    assert plan.rank in (16, 32)
    assert plan.predicted == pytest.approx(2.0, abs=0.04)
    fallback = recommend(table)
    assert fallback.metric == "ce"
    assert any("cross-entropy" in note for note in fallback.notes)


def test_target_and_budget() -> None:
    table = table_of(saturating)
    plan = recommend(table, target=0.45)
    cheaper = [
        (4 * n + 6 * 30_000 * r * (n / 3e7) ** 0.67) * d
        for n in (3e7, 1.35e8)
        for r in RANKS
        for d in (100, 400, 1600)
        if saturating(n, r, d) >= 0.47
    ]
    assert plan.predicted is not None and plan.predicted >= 0.45
    assert plan.cost["flops"] <= 25 * min(cheaper) * 1.001
    assert plan.target["probability"] > 0.5
    assert plan.target["safer"]["probability"] >= 0.9

    limited = recommend(table, budget="20s")
    assert limited.cost["seconds"] <= 20
    assert limited.choice["D"] < 1600 or limited.choice["N"] < 1e8
    small = recommend(table, budget="1.5 MB adapter")
    assert small.cost["adapter"] <= 1.5e6
    memory = recommend(table, budget="800MB")
    assert memory.choice["N"] == 3e7
    assert memory.cost["memory"] <= 8e8

    with pytest.raises(
        InputError, match=r"target 0.99 is out of reach: the best prediction of accuracy is 0\.\d+ \(0\.\d+ to"
    ):
        recommend(table, target=0.99)
    with pytest.raises(InputError, match="budget '1 FLOPs' is below every candidate: the cheapest needs"):
        recommend(table, budget="1 FLOPs")
    with pytest.raises(InputError, match="has no seconds_training"):
        recommend(table.drop(columns="seconds_training"), budget="1h")


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    inside, total, noises = 0, 0, []
    for seed in range(15):
        table = table_of(saturating, sizes=(400,), models=(1.35e8,), seeds=2, seed=seed, costs=False)
        shared = np.random.default_rng(seed).normal(0, 0.02, 2).mean()
        plan = recommend(table, seed=seed)
        noises.append(plan.noise)
        for record in plan.ranks:
            truth = saturating(1.35e8, record["R"], 400) + shared
            inside += record["low"] <= truth <= record["high"]
            total += 1
    assert 0.8 <= inside / total <= 1.0
    assert np.median(noises) == pytest.approx(0.01, rel=0.3)


def test_one_seed_one_rank_and_equal_values() -> None:
    once = recommend(table_of(saturating, seeds=1))
    assert any("run once" in note for note in once.notes)
    assert once.rank >= 4

    single = recommend(table_of(saturating, ranks=(16,)))
    assert not single.settled
    assert any("only one rank" in note for note in single.notes)
    assert {cell["R"] for cell in single.next_cells} <= {4, 64}
    assert len(single.next_cells) == 3

    equal = recommend(
        table_of(lambda n, r, d: 0.5, noise=0.0, seeds=1, sizes=(100,), models=(1e8,)).assign(accuracy=0.5)
    )
    assert equal.rank == 2
    assert equal.noise == 0
    assert equal.bigger_rank_helps == 0
    assert any("same value" in note for note in equal.notes)

    alone = recommend(table_of(saturating, ranks=(16,), sizes=(100,), models=(1e8,), seeds=1))
    assert not alone.settled and alone.rank == 16


def test_too_little_evidence_asks_for_cells() -> None:
    noisy = table_of(saturating, seeds=1, noise=0.05, ranks=(4, 16, 64), sizes=(100, 1600), models=(1.35e8,), seed=3)
    plan = recommend(noisy, candidates={"N": [1.35e8], "R": list(RANKS), "D": [100, 400, 1600]})
    assert not plan.settled
    assert len(plan.next_cells) == 3
    assert {"N", "R", "D", "seed", "why"} <= plan.next_cells[0].keys()
    assert len({(c["R"], c["D"], c["seed"]) for c in plan.next_cells}) == 3
    assert "run these cells next" in plan.summary()


def test_failed_and_foreign_rows() -> None:
    table = table_of(saturating, models=(1.35e8,))
    lost = (table["R"] == 64) & (table["D"] == 1600)
    table.loc[lost, "status"] = "failed"
    table.loc[lost, "reason"] = "out of memory"
    table.loc[lost, ["N", "accuracy"]] = np.nan
    table.loc[3, "accuracy"] = np.nan
    base = {"N": 1.35e8, "R": 0, "D": 0, "seed": 0, "status": "done", "accuracy": 0.9}
    table = pd.concat([table, pd.DataFrame([base])], ignore_index=True)
    plan = recommend(table)
    assert 64 not in {record["R"] for record in plan.ranks}
    assert any("rank 64" in note and "out of memory" in note for note in plan.notes)
    assert plan.base == 0.9
    assert "no candidate is worth training" in plan.summary()


def test_several_tasks_are_averaged_or_refused() -> None:
    one = table_of(saturating, models=(1e8,), sizes=(100,)).assign(task="a")
    both = pd.concat([one, one.assign(task="b", accuracy=one["accuracy"] + 0.2)])
    plan = recommend(both)
    assert plan.predicted == pytest.approx(recommend(one).predicted + 0.1, abs=0.01)
    assert any("average over 2 settings of task" in note for note in plan.notes)
    with pytest.raises(InputError, match="--where task="):
        recommend(
            pd.concat(
                [one[one["R"] < 8], both[(both["task"] == "b") & (both["R"] >= 8)], one[one["R"] < 8].assign(task="c")]
            )
        )


def test_extrapolation_is_flagged() -> None:
    table = table_of(lambda n, r, d: 0.3 + 0.04 * math.log2(r), models=(1e8,), sizes=(100,))
    plan = recommend(table, candidates={"R": [32, 64, 256]})
    flags = {record["R"]: record["extrapolated"] for record in plan.ranks}
    assert flags == {32: False, 64: False, 256: True}
    if plan.rank == 256:
        assert not plan.settled and any("extrapolation" in note for note in plan.notes)
    up = next(step for step in recommend(table).steps if step["axis"] == "D")
    assert up["extrapolated"] and "beyond what was run" in recommend(table).summary()


def test_a_fitted_law_is_accepted() -> None:
    table = table_of(saturating, costs=False)
    plan = recommend(fit_scaling_law(table, metric="accuracy", n_boot=50))
    assert plan.metric == "accuracy"
    assert plan.rank in (8, 16, 32)
    assert plan.choice["N"] == 1.35e8


def test_plan_is_kept_and_read_and_makes_a_lora_config(tmp_path: Path) -> None:
    plan = recommend(table_of(saturating).assign(alpha=32.0, use_rslora=True, target_modules="q_proj,v_proj"))
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict(), allow_nan=False)))
    assert again.to_dict() == plan.to_dict()
    paths = plan.save(tmp_path)
    assert Plan.load(paths["plan.json"]).rank == plan.rank
    config = LoraConfig(**json.loads(paths["lora_config.json"].read_text()))
    assert (config.r, config.lora_alpha, config.use_rslora) == (plan.rank, 32.0, True)
    assert config.target_modules == {"q_proj", "v_proj"}
    scope: dict[str, Any] = {}
    exec(paths["lora_config.py"].read_text(), scope)
    assert scope["config"].r == plan.rank
    assert paths["plan.txt"].read_text().strip() == plan.summary()
    for bad, why in (({}, "no plan"), ({"kind": "plan", "schema_version": 9}, "schema_version 9")):
        with pytest.raises(DataError, match=why):
            Plan.from_dict(bad)


def test_the_same_seed_gives_the_same_plan() -> None:
    table = table_of(saturating, models=(1e8,))
    assert recommend(table, seed=4).to_dict() == recommend(table, seed=4).to_dict()


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ({"N": [1e8], "accuracy": [0.5]}, {}, "no column R"),
        ({"R": [4, 8], "accuracy": [0.5, 0.6]}, {"metric": "bleu"}, "no values of 'bleu': choose from accuracy"),
        ({"R": [4, 8], "miub_js": [0.5, 0.6]}, {"metric": "miub_js"}, "neither better high nor low"),
        ({"R": [4, -8], "accuracy": [0.5, 0.6]}, {}, "R is -8 in 1 rows"),
        ({"R": [4, 8], "accuracy": ["x", 0.6]}, {}, "column 'accuracy' has 'x'"),
        ({"R": [0, 0], "accuracy": [0.5, 0.6]}, {}, "no finished run"),
        ({"R": [4, 8], "accuracy": [0.5, 0.6]}, {"budget": "3 parsecs"}, "unknown unit 'parsecs'"),
        ({"R": [4, 8], "accuracy": [0.5, 0.6]}, {"target": math.nan}, "is not a number"),
        ({"R": [4, 8], "accuracy": [0.5, 0.6]}, {"candidates": {"Q": [1]}}, "unknown axis 'Q'"),
        ({"R": [4, 8], "accuracy": [0.5, 0.6]}, {"candidates": {"R": [0]}}, "not above 0"),
        ({"R": [4, 8], "accuracy": [0.5, 0.6]}, {"level": 1.5}, "level is 1.5"),
        ({"R": [4, 8], "accuracy": [0.5, 0.6]}, {"noise": -1.0}, "noise -1.0"),
    ],
)
def test_bad_input_is_one_line(table: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        recommend(table, **options)
    assert "\n" not in str(caught.value)


def test_an_unknown_metric_with_a_direction() -> None:
    table = table_of(saturating, models=(1e8,)).rename(columns={"accuracy": "bleu"})
    assert recommend(table, metric="bleu", better="higher").rank >= 8


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        ("2e15 FLOPs", "flops", 2e15),
        ("3 PFLOPs", "flops", 3e15),
        ("1e12", "flops", 1e12),
        (5, "flops", 5.0),
        ("30min", "seconds", 1800.0),
        ("1.5 h", "seconds", 5400.0),
        ("90s", "seconds", 90.0),
        ("4GB", "memory", 4e9),
        ("512 MiB", "memory", 512 * 2**20),
        ("20MB adapter", "adapter", 2e7),
        ("1,000 TFLOPs", "flops", 1e15),
    ],
)
def test_budgets(text: Any, kind: str, amount: float) -> None:
    found = parse_budget(text)
    assert (found.kind, found.amount) == (kind, pytest.approx(amount))


@pytest.mark.parametrize("text", ["", "GB", "-3s", "0s", "4 GB of fun", "20s adapter", "1e999 FLOPs", True])
def test_bad_budgets(text: Any) -> None:
    with pytest.raises(InputError, match="budget"):
        parse_budget(text)


def test_costs_are_calibrated_on_the_sweep() -> None:
    table = table_of(saturating)
    book = cost_book(prepare(table).rows)
    assert book.calibration["seconds"]["median_error"] < 0.2
    assert book.calibration["seconds"]["largest_error"] < 0.2
    assert book.calibration["memory"]["largest_error"] < 0.01
    found = book.of(np.array([[1.35e8, 128, 3200]]))  # beyond what was run
    adapter = 30_000 * 128 * 4.5**0.67
    assert found["flops"][0] == pytest.approx(25 * 3200 * (4 * 1.35e8 + 6 * adapter), rel=0.01)
    assert found["seconds"][0] == pytest.approx(found["flops"][0] / 1e11 + 0.05 * 200, rel=0.1)
    assert found["adapter"][0] == pytest.approx(4 * adapter, rel=0.01)
    assert found["memory"][0] == pytest.approx(5e8 + 4 * 1.35e8 + 16 * adapter, rel=0.05)

    shape = ModelShape(
        hidden_size=576, layers=30, heads=9, kv_heads=3, intermediate_size=1536, vocab_size=49152, tied=True
    )
    exact = cost_book(prepare(table).rows, shape=shape).of(np.array([[1.35e8, 16.0, 400.0]]))
    assert exact["flops"][0] == pytest.approx(25 * 400 * 4 * 1.35e8, rel=0.2)
    assert 4 * 4_884_480 < exact["adapter"][0] < 4 * 4_884_480 * 1.01


def test_shared_layers_cost_what_the_whole_model_costs() -> None:
    rows = pd.DataFrame(
        {"N": [1e8, 5e7], "R": 8, "D": 100, "share": [1, 8], "train_tokens_seen": 1000, "accuracy": 0.5}
    )
    flops = cost_book(prepare(rows.assign(model="m", seed=0)).rows).of(np.array([[1e8, 8, 100], [5e7, 8, 100]]))[
        "flops"
    ]
    assert flops == pytest.approx([4e11, 4e11])


def test_surface_draws_agree_with_a_conjugate_case() -> None:
    rng = np.random.default_rng(0)
    x = np.linspace(-0.5, 0.5, 5)[:, None]
    y = np.repeat(0.5 + 0.2 * x[:, 0], 40) + rng.normal(0, 0.05, 200)
    many = draw_surface(np.repeat(x, 40, axis=0), y, np.zeros(200, dtype=int), x, count=500, rng=rng)
    assert many.values.mean(0) == pytest.approx(0.5 + 0.2 * x[:, 0], abs=0.02)
    assert np.median(many.noise) == pytest.approx(0.05, rel=0.1)
    assert many.values.std(0).max() < 0.05 / math.sqrt(40) * 1.5


GRID: dict[str, list[float]] = {"N": [3e7, 1.35e8], "R": list(map(float, RANKS)), "D": [100, 400, 1600]}


def test_next_cells_open_with_cheap_corners_and_the_top() -> None:
    first = next_cells(None, GRID, 3)
    assert [(cell["N"], cell["R"], cell["D"]) for cell in first] == [
        (30_000_000, 2, 100),
        (30_000_000, 64, 100),
        (135_000_000, 16, 1600),
    ]
    assert all(cell["seed"] == 0 for cell in first)
    limited = next_cells(None, GRID, 3, max_cost=1e11)
    assert sum(cell["flops"] for cell in limited) <= 1e11
    assert next_cells(table_of(saturating), GRID) == []  # settled
    with pytest.raises(InputError, match="n 0"):
        next_cells(None, GRID, 0)


@pytest.mark.parametrize("shape", ["saturating", "rising", "flat", "u-shaped"])
def test_sequential_plan_finds_a_good_cell_for_a_fifth_of_the_cost(shape: str) -> None:
    truth = {
        "saturating": saturating,
        "rising": lambda n, r, d: 0.4 + 0.03 * math.log2(r) + 0.1 * math.log10(d),
        "flat": lambda n, r, d: 0.5,
        "u-shaped": lambda n, r, d: 0.5 - 0.02 * (math.log2(r) - 3) ** 2 + 0.1 * math.log10(d),
    }[shape]
    full = table_of(truth, seed=7).set_index(["N", "R", "D", "seed"])
    cells = full.index.droplevel("seed").unique()
    cost = {cell: 4 * cell[0] * cell[2] + 6 * 30_000 * cell[1] * cell[2] for cell in cells}
    total, spent, rows = 3 * sum(cost.values()), 0.0, []
    while True:
        asked = next_cells(pd.DataFrame(rows) if rows else None, GRID, 1, max_cost=None)
        if not asked:
            break
        key = tuple(asked[0][axis] for axis in ("N", "R", "D"))
        if spent + cost[key] > 0.2 * total:
            break
        spent += cost[key]
        row = full.loc[(*key, asked[0]["seed"])]
        rows.append({"N": key[0], "R": key[1], "D": key[2], "seed": asked[0]["seed"], "accuracy": row["accuracy"]})
    plan = recommend(pd.DataFrame(rows), candidates=GRID)
    best = max(truth(*cell) for cell in cells)
    assert best - truth(*(plan.choice[axis] for axis in ("N", "R", "D"))) <= 0.02  # noise 0.01, two runs compared
    assert spent <= 0.2 * total


def test_the_usual_setting_is_kept_where_few_cells_have_another() -> None:
    rows = [
        {"N": 1e8, "R": r, "D": d, "seed": s, "prompt": "main", "accuracy": 0.5}
        for r in (4, 16)
        for d in (40, 320)
        for s in (0, 1)
    ]
    rows += [{"N": 1e8, "R": 16, "D": 320, "seed": 0, "prompt": "letters", "accuracy": 0.1}]
    runs = prepare(pd.DataFrame(rows))
    assert len(runs.frame) == 8
    assert set(runs.frame["y"]) == {0.5}
    assert any("only runs with prompt main: 1 with other settings left out" in note for note in runs.notes)


def test_missing_settings_differ_from_given_ones() -> None:
    """Length bins are empty for most rows of a sweep: those rows are one setting, and a bin is another."""
    rows = [
        {"N": 1e8, "R": r, "D": d, "seed": s, "prompt": "main", "length": None, "accuracy": 0.5}
        for r in (4, 16)
        for d in (40, 320)
        for s in (0, 1)
    ]
    rows += [{**rows[-1], "prompt": "letters", "accuracy": 0.1}, {**rows[-1], "length": "1-100", "accuracy": 0.2}]
    runs = prepare(pd.DataFrame(rows))
    assert len(runs.frame) == 8
    assert set(runs.frame["y"]) == {0.5}
    assert any("prompt main, length none: 2 with other settings" in note for note in runs.notes)


def test_a_setting_that_lorascope_does_not_know_is_not_averaged_silently() -> None:
    rows = [
        {"R": r, "D": d, "seed": s, "elastic": e, "accuracy": 0.5 + 0.1 * e}
        for r in (4, 16)
        for d in (40, 320)
        for s in (0, 1)
        for e in (False, True)
    ]
    runs = prepare(pd.DataFrame(rows))
    assert set(runs.frame["y"].round(6)) == {0.55}
    assert any("the average over 2 settings of elastic" in note for note in runs.notes)


def problem_of(means: list[float], spread: list[float], cost: list[float], ranks: list[float]) -> Problem:
    """Independent normal beliefs about candidates, at a noise of 0.02."""
    runs = prepare(pd.DataFrame({"R": [2, 4], "seed": [0, 0], "accuracy": [0.5, 0.6]}))
    z = np.random.default_rng(0).standard_normal((4000, len(means)))
    return Problem(
        runs=runs,
        cells=np.column_stack([np.ones(len(means)), ranks, np.arange(1.0, len(means) + 1)]),
        costs={"flops": np.array(cost)},
        draws=np.array(means) + np.array(spread) * z,
        noise=0.02,
        observed=np.ones(len(means), dtype=int),
        outside=np.zeros(len(means), dtype=bool),
        law_weight=0.0,
        law=None,
    )


def test_a_choice_is_probably_within_the_noise_and_gives_nothing_away() -> None:
    def chosen(*beliefs: Any) -> int:
        problem = problem_of(*beliefs)
        index, best = choose(problem, np.ones(len(problem.cells), dtype=bool))
        assert best == int(np.argmax(problem.draws.mean(0)))
        return index

    # half the noise below the best: taken where that is known, not where it could as well be three times the noise
    assert chosen([0.59, 0.60], [0.001, 0.001], [1.0, 2.0], [4, 8]) == 0
    assert chosen([0.59, 0.60], [0.05, 0.001], [1.0, 2.0], [4, 8]) == 1
    # the expected loss of 0.019 is below the noise, but 0.02 is exceeded every other time
    assert chosen([0.581, 0.60], [0.01, 0.01], [1.0, 2.0], [4, 8]) == 1
    # of equal costs: the smallest rank, and there the best
    assert chosen([0.590, 0.598, 0.60], [0.001] * 3, [1.0, 1.05, 1.08], [4, 4, 8]) == 1
    assert chosen([0.590, 0.598, 0.60], [0.001] * 3, [1.0, 1.5, 1.6], [4, 4, 8]) == 0


def test_next_cells_are_useful_where_no_run_can_change_the_choice() -> None:
    """The top is far above the rest, so that no single run is expected to change the choice."""
    table = table_of(lambda n, r, d: 0.3 + 0.2 * math.log10(d / 100) + 0.004 * math.log2(r), models=(1e8,), seeds=2)
    grid = {"N": [1e8], "R": list(RANKS), "D": [100, 400, 1600]}
    asked = next_cells(table, grid, 3, seeds=range(4), settle=False)
    assert asked[0]["D"] == 1600, "not where nothing is to be won"
    assert all("narrows the gap between the choice and its closest rival" in cell["why"] for cell in asked)
    about = {"N": 1e8, "R": 2, "D": 400}
    first = next_cells(table, grid, 1, seeds=range(4), settle=False, about=about)[0]
    assert (first["R"], first["seed"]) == (2, 2)
    assert first["D"] <= 400, "a cheaper cell of that rank may tell more for its cost"
    assert "narrows what is known of the choice" in first["why"]
    with pytest.raises(InputError, match="no cell of the grid"):
        next_cells(table, grid, 1, settle=False, about={"N": 1e8, "R": 3, "D": 400})


def test_an_unreached_target_asks_about_the_choice() -> None:
    table = table_of(saturating, models=(1.35e8,), noise=0.03, seeds=2)
    top = recommend(table).predicted
    assert top is not None
    plan = recommend(table, target=round(top, 3))
    assert not plan.settled
    assert all("what is known of the choice" in cell["why"] for cell in plan.next_cells)
    assert plan.choice in [{axis: cell[axis] for axis in ("N", "R", "D")} for cell in plan.next_cells]


def test_time_is_that_of_an_undisturbed_run() -> None:
    """Every third run had a quarter of its processors: the time model does not see it, and says so."""
    table = table_of(saturating)
    busy = np.where(np.arange(len(table)) % 3 == 0, 0.25, 1.0)
    table["threads"] = 2
    table["cpu_seconds_training"] = 2 * 0.95 * table["seconds_training"]
    table["seconds_training"] /= busy
    book = cost_book(table)
    assert book.calibration["seconds"]["median_error"] < 0.1
    assert book.calibration["seconds"]["largest_error"] < 0.2
    assert book.calibration["seconds_by_the_clock"]["largest_error"] > 0.6
    assert any("36 of 108 runs shared their processors" in note for note in book.notes)
    found = book.of(np.array([[1.35e8, 16, 400]]))
    assert found["seconds"][0] == pytest.approx(found["flops"][0] / 1e11 + 0.05 * 25, rel=0.1)
    silent = pd.concat([table, table.assign(cpu_seconds_training=np.nan, seconds_training=1e4)])
    again = cost_book(silent)
    assert again.calibration["seconds"]["median_error"] == book.calibration["seconds"]["median_error"]
    assert any("108 runs do not tell how long their processors worked" in note for note in again.notes)
    plan = recommend(table)
    assert "by the clock, with what else ran" in plan.summary()


def test_a_step_that_costs_the_same_is_said_so() -> None:
    table = table_of(saturating)
    table["train_steps"], table["train_tokens_seen"] = 100, 1e6  # more rows, no more operations
    text = recommend(table).summary()
    assert "for the same FLOPs" in text
    assert " 1 times the FLOPs" not in text


def test_memory_is_known_for_cells_whose_prompt_is_longer() -> None:
    """All long prompts are of one N, R and D: left out together they would take the bytes of a token with them."""
    rows = [
        {"N": 1e8, "R": r, "D": d, "seed": 0, "prompt": "main", "tokens_a_step": 400}
        for r in (4, 16, 64)
        for d in (40, 320)
    ]
    rows += [
        {**rows[3], "prompt": name, "tokens_a_step": size} for name, size in (("a", 800), ("b", 1200), ("c", 1600))
    ]
    table = pd.DataFrame(rows).assign(train_steps=20, accuracy=0.5)
    table["train_tokens_seen"] = 20 * table.pop("tokens_a_step")
    table["adapter_parameters"] = 1e5 * table["R"]
    table["peak_memory_bytes"] = 1e9 + 16e5 * table["R"] + 3e6 * table["train_tokens_seen"] / 20
    assert cost_book(table).calibration["memory"]["largest_error"] < 0.01
    assert len(prepare(table).rows) == 6  # the plan's costs are those of the runs that it takes
