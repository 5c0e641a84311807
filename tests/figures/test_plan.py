"""Figures of a plan show what the plan says, and refuse what it cannot show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from lorascope.core.errors import InputError
from lorascope.figures import (
    plan_cost_info,
    plan_curve_info,
    plan_residuals_info,
    plan_surface_info,
    plot_plan_cost,
    plot_plan_curve,
    plot_plan_residuals,
    plot_plan_surface,
)
from lorascope.scaling import recommend


def table(ranks: tuple[int, ...] = (2, 8, 32), sizes: tuple[int, ...] = (100, 400)) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for rank in ranks:
        for size in sizes:
            for seed in (0, 1):
                mean = 0.4 + 0.1 * (1 - 0.5 ** (rank / 4)) + 0.1 * np.log10(size / 100) + 0.05 * seed
                rows.append({"N": 1e8, "R": rank, "D": size, "seed": seed, "accuracy": mean + rng.normal(0, 0.005)})
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def plan() -> dict[str, Any]:
    return recommend(table(), budget="1e11 FLOPs").to_dict()


def test_the_curve_is_the_candidates_beside_the_choice(plan: dict[str, Any]) -> None:
    info = plan_curve_info(plan, "R")
    assert info.values == (2, 8, 32)
    assert info.predicted == tuple(record["predicted"] for record in plan["ranks"])
    assert info.chosen == plan["choice"]["R"]
    assert len(info.runs) == 6  # three ranks, two seeds, at the choice's data
    assert info.threshold == pytest.approx(max(info.predicted) - plan["noise"])
    assert info.fixed == {"N": 1e8, "D": plan["choice"]["D"]}
    figure = plot_plan_curve(info)
    ring = figure.data[-1]
    assert (ring.x[0], ring.y[0]) == pytest.approx((plan["choice"]["R"], plan["predicted"]))


def test_for_a_metric_that_should_be_low_the_line_lies_above() -> None:
    falling = table().rename(columns={"accuracy": "ce"})
    plan = recommend(falling, metric="ce").to_dict()
    info = plan_curve_info(plan)
    assert info.threshold == pytest.approx(min(info.predicted) + plan["noise"])
    cost = plan_cost_info(plan)
    beaten = [cost.predicted[place] for place in cost.frontier]
    assert beaten == sorted(beaten, reverse=True)


def test_costs_mark_the_choice_the_frontier_and_the_budget(plan: dict[str, Any]) -> None:
    info = plan_cost_info(plan)
    assert info.costs == tuple(sorted(info.costs))
    assert info.predicted[info.chosen] == pytest.approx(plan["predicted"])
    assert not all(info.affordable)
    values = [info.predicted[place] for place in info.frontier]
    assert values == sorted(values)
    assert info.frontier[0] == 0
    for place, value in enumerate(info.predicted):  # nothing cheaper beats what is on the line
        assert (place in info.frontier) == all(value > other for other in info.predicted[:place])
    assert len(plot_plan_cost(info).data) == 3
    with pytest.raises(InputError, match="does not know the seconds"):
        plan_cost_info(plan, "seconds")
    with pytest.raises(InputError, match="'euros' is no kind of cost"):
        plan_cost_info(plan, "euros")


def test_the_surface_holds_every_candidate_and_the_means_of_the_runs(plan: dict[str, Any]) -> None:
    info = plan_surface_info(plan)
    assert info.axes == ("D", "R")
    at = {(row["D"], row["R"]): row["predicted"] for row in plan["candidates"]}
    for y, row in zip(info.ys, info.surface, strict=True):
        assert list(row) == [at[x, y] for x in info.xs]
    assert [run[3] for run in info.runs] == [2] * 6
    mean = table().groupby(["D", "R"])["accuracy"].mean()
    for x, y, value, _ in info.runs:
        assert value == pytest.approx(mean[x, y])
    assert plot_plan_surface(info).data[0].z[0][0] == info.surface[0][0]
    with pytest.raises(InputError, match="a surface needs two"):
        plan_surface_info(recommend(table(sizes=(100,))).to_dict())
    with pytest.raises(InputError, match="not two that the candidates vary along"):
        plan_surface_info(plan, ("N", "R"))


def test_residuals_leave_out_what_a_seed_does_to_all_runs(plan: dict[str, Any]) -> None:
    info = plan_residuals_info(plan)
    assert len(info.residuals) == 12
    for seed in (0, 1):
        own = [value for value, number in zip(info.residuals, info.seeds, strict=True) if number == seed]
        assert sum(own) == pytest.approx(0, abs=1e-12)
    assert max(map(abs, info.residuals)) < 0.025  # the seeds differ by 0.05
    assert plot_plan_residuals(info).data[0].text[0] == "rank 2, D 100, N 100M"


def test_one_value_of_an_axis_makes_no_curve(plan: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="1 candidates along N: a curve needs two"):
        plan_curve_info(plan, "N")
    with pytest.raises(InputError, match="'Q' is no axis"):
        plan_curve_info(plan, "Q")


def test_a_table_without_sizes_has_no_such_axis() -> None:
    plan = recommend(table(sizes=(100,)).drop(columns=["N", "D"])).to_dict()
    assert plan["candidates"][0]["N"] is None
    assert plan_curve_info(plan).fixed == {}
    assert plan_residuals_info(plan).names[0] == "rank 2"
