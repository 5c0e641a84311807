"""The page of a plan says the advice first, then shows what it rests on."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd

from lorascope.report import plan_headline, plan_sections, render_page
from lorascope.scaling import first_guess, recommend

from .test_page import figures_of


def table(seeds: int = 2, noise: float = 0.005) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        {
            "N": 1e8,
            "R": rank,
            "D": size,
            "seed": seed,
            "task": "<b>towns</b>",
            "accuracy": 0.4 + 0.1 * (1 - 0.5 ** (rank / 4)) + 0.1 * np.log10(size / 100) + rng.normal(0, noise),
            "train_tokens_seen": 25 * size,
            "train_steps": size // 16,
            "adapter_parameters": 30_000 * rank,
            "seconds_training": size / 10,
        }
        for rank in (2, 8, 32)
        for size in (100, 400)
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows)


def page(plan: dict[str, Any]) -> str:
    return render_page(plan_sections(plan), title="Plan", headline=plan_headline(plan))


def test_the_advice_comes_first_and_everything_is_drawn() -> None:
    plan = recommend(table()).to_dict()
    text = page(plan)
    advice = plan["summary"].splitlines()[0]
    assert plan_headline(plan).startswith(advice)
    assert text.index(advice) < text.index("Expected accuracy") < text.index('id="curves"')
    order = ["advice", "curves", "cost", "surface", "residuals", "candidates"]
    assert [section.name for section in plan_sections(plan)] == order
    drawn = figures_of(text)
    assert set(drawn) == {"curves", "cost", "surface", "residuals"}
    assert "ring: the choice" in str(drawn["curves"]["0"]["caption"])
    assert "lora_alpha" in text
    assert "off by" in text  # the error of the time model


def test_where_the_runs_are_too_few_the_next_cells_come_second() -> None:
    wide = {"N": [1e8], "R": [2, 4, 8, 16, 32, 64], "D": [100, 400, 1600]}
    plan = recommend(table(seeds=1, noise=0.05), candidates=wide).to_dict()
    assert not plan["settled"]
    sections = plan_sections(plan)
    assert [section.name for section in sections][:2] == ["advice", "next"]
    assert len(sections[1].tables[0].rows) == len(plan["next_cells"]) == 3
    assert "Not enough evidence yet" in plan_headline(plan)
    assert not any("Not enough evidence" in line for line in sections[0].paragraphs)


def test_one_run_makes_a_page_without_curves() -> None:
    layers = [{"rank": 16, "effective_rank": 5.0}, {"rank": 16, "effective_rank": 6.0}]
    plan = first_guess({"layers": layers, "spec": {"rank": 16}}).to_dict()
    sections = plan_sections(plan)
    assert [section.name for section in sections] == ["advice", "next"]
    assert "First guess, not a recommendation: rank 8." in page(plan)


def test_names_are_escaped() -> None:
    rows = pd.concat([table(), table().assign(task="other")])
    text = page(recommend(rows.rename(columns={"accuracy": "<i>m</i>"}), metric="<i>m</i>", better="higher").to_dict())
    outside = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert "<i>m" not in outside
    assert "&lt;i&gt;m" in outside
