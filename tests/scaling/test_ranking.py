from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lorascope.core.errors import InputError
from lorascope.scaling import MetricRank, rank_metrics, which_to_watch


def runs(noise: dict[str, float], *, tasks: int = 2, settings: int = 8, seeds: int = 2, **columns: Any) -> pd.DataFrame:
    """Runs whose accuracy rises with rank; each metric falls with accuracy up to its own noise."""
    generator = np.random.default_rng(0)
    rows = []
    for task, place, seed in itertools.product(range(tasks), range(settings), range(seeds)):
        accuracy = 0.3 + 0.05 * place + 0.002 * generator.normal()
        row = {"task": f"t{task}", "R": 2**place, "seed": seed, "accuracy": accuracy}
        rows.append(row | {name: 10 - accuracy + size * generator.normal() for name, size in noise.items()})
    return pd.DataFrame(rows).assign(**columns)


def test_order_direction_and_counts() -> None:
    table = runs({"ce": 0.0, "ppl": 0.2, "miub_js": 0.0})
    table["miub_js"] *= -1  # rises with accuracy
    ranked = rank_metrics(table, n_boot=300)
    assert [entry.metric for entry in ranked] == ["miub_js", "ce", "ppl"]
    first, second, last = ranked
    assert (first.tau, first.better, first.chosen) == (1.0, "higher", True)
    assert (second.tau, second.better, second.chosen) == (1.0, "lower", False)
    assert last.tau < 0.7
    assert (first.cells, first.units, first.runs, first.pairs) == (2, 4, 32, 4 * 28)
    assert first.behind == 0.0
    assert last.behind == pytest.approx(1 - last.tau)


def test_tau_is_the_mean_of_kendalls_tau_over_cells_and_seeds() -> None:
    table = runs({"ce": 0.05})
    groups = [g for _, g in table.groupby(["task", "seed"])]
    expected = np.mean([-stats.kendalltau(group["accuracy"], group["ce"]).statistic for group in groups])
    assert rank_metrics(table, n_boot=100)[0].tau == pytest.approx(expected)


def test_a_metric_that_goes_the_wrong_way_is_last_and_not_turned() -> None:
    table = runs({"ce": 0.0, "text_ppl": 0.3})
    table["ce"] *= -1
    ranked = rank_metrics(table, n_boot=100)
    assert ranked[-1].metric == "ce"
    assert ranked[-1].tau == -1.0


def test_a_clear_winner_and_a_close_second_are_said() -> None:
    clear = rank_metrics(runs({"ce": 0.0, "ppl": 3.0}), n_boot=500)
    assert clear[1].behind_low > 0
    text = which_to_watch(clear)
    assert text.startswith("Watch Cross-entropy (tau +1.00")
    assert "It is ahead of Perplexity" in text
    close = rank_metrics(runs({"ce": 0.1, "ppl": 0.15}), n_boot=500)
    assert close[0].tau > close[1].tau and close[1].behind_low <= 0
    assert "cannot tell it from" in which_to_watch(close)


def test_metrics_that_order_the_runs_alike_tie() -> None:
    table = runs({"ce": 0.0})
    table["ppl"] = np.exp(table["ce"])
    table["text_ppl"] = table["ce"] + 3.0 * np.random.default_rng(5).standard_normal(len(table))
    text = which_to_watch(rank_metrics(table, n_boot=500))
    assert text.startswith("Cross-entropy and Perplexity tie: they order these runs equally well (tau +1.00")
    assert "A lower value of each goes with more accuracy." in text
    assert "They are ahead of" in text
    assert "Watch Cross-entropy" not in text
    few = which_to_watch(rank_metrics(table.groupby("R").head(1).head(3), n_boot=100))
    assert few.startswith("Too few runs to say: Cross-entropy and Perplexity follow accuracy best")


def test_noise_is_no_metric_to_watch() -> None:
    ranked = rank_metrics(runs({"ce": 100.0}, tasks=1, seeds=1), n_boot=500)
    assert ranked[0].low <= 0
    assert which_to_watch(ranked).startswith("Watch accuracy itself")


def test_few_settings_have_no_interval() -> None:
    ranked = rank_metrics(runs({"ce": 0.0}, settings=3), n_boot=100)
    assert math.isnan(ranked[0].low)
    assert which_to_watch(ranked).startswith("Too few runs to say")
    assert which_to_watch([]) == "No metric varies among the runs: nothing to watch."


def test_runs_are_compared_within_cells_only() -> None:
    """Across tasks accuracy and ce rise together; within each they do not."""
    table = runs({"ce": 0.0}, tasks=2)
    table.loc[table["task"] == "t1", ["accuracy", "ce"]] += [0.1, 5.0]
    assert rank_metrics(table, n_boot=100)[0].tau == 1.0


def test_seeds_that_never_repeat_are_pooled() -> None:
    table = runs({"ce": 0.0}, tasks=1, seeds=1)
    table["seed"] = range(len(table))
    ranked = rank_metrics(table, n_boot=100)
    assert (ranked[0].tau, ranked[0].units, ranked[0].runs) == (1.0, 1, 8)


def test_ties_constants_holes_and_base_models() -> None:
    table = runs({"ce": 0.0, "ppl": 0.0, "cka": 0.0})
    table["ppl"] = 3.0
    table.loc[table["R"] < 16, "cka"] = np.nan
    base = table.iloc[:2].assign(R=0, accuracy=0.01, ce=-99.0)
    ranked = {entry.metric: entry for entry in rank_metrics(pd.concat([table, base]), n_boot=100)}
    assert ranked["ppl"].tau == 0.0
    assert (ranked["cka"].runs, ranked["ce"].runs) == (16, 32)
    assert ranked["ce"].tau == 1.0


def test_intervals_cover_the_tau_of_many_settings() -> None:
    """The share of 95 % intervals that hold tau of a long run of settings; it may be too wide, not too narrow."""
    generator = np.random.default_rng(0)
    truth = 2 / math.pi * math.asin(0.6)  # Kendall's tau of a bivariate normal with correlation 0.6
    inside = 0
    for trial in range(100):
        x = generator.normal(size=20)
        y = -(0.6 * x + 0.8 * generator.normal(size=20))
        found = rank_metrics(pd.DataFrame({"R": range(1, 21), "accuracy": x, "ce": y}), n_boot=200, seed=trial)[0]
        inside += found.low <= truth <= found.high
    assert inside >= 88


def test_the_ranking_goes_through_json_and_is_the_same_twice() -> None:
    first, second = (rank_metrics(runs({"ce": 0.1, "ppl": 0.1}), n_boot=200, seed=1) for _ in range(2))
    assert first == second
    few = rank_metrics(runs({"ce": 0.0}, settings=3), n_boot=100)[0]
    values = json.loads(json.dumps(few.to_dict(), allow_nan=False))
    assert MetricRank.from_dict(values).to_dict() == few.to_dict()


def test_what_cannot_be_ranked_is_said() -> None:
    with pytest.raises(InputError, match="no adapter in the table has an accuracy"):
        rank_metrics(runs({"ce": 0.0}).drop(columns="accuracy"))
    with pytest.raises(InputError, match="no metric beside accuracy"):
        rank_metrics(runs({}))
    with pytest.raises(InputError, match="differ in accuracy"):
        rank_metrics(runs({"ce": 0.0}, accuracy=0.5))
    with pytest.raises(InputError, match="n_boot=5"):
        rank_metrics(runs({"ce": 0.0}), n_boot=5)
