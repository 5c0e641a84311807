from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from lorascope.core.errors import InputError
from lorascope.scaling import (
    axis_data,
    layout_table1,
    layout_table2,
    layout_table3,
    paper_averages,
    paper_mutual_information,
    paper_prompts,
    paper_table,
)
from lorascope.scaling.paper_layout import why_empty

# Column sums of another transcription of the table.
SUMS = {
    ("rank", 32): {"accuracy": 8.653, "ce": 42.904, "miub": 24722.0},
    ("rank", 128): {"accuracy": 8.447, "ce": 47.770, "miub": 24604.6},
    ("rank", 512): {"accuracy": 8.615, "ce": 46.202, "miub": 24575.4},
    ("size", 8): {"accuracy": 7.048, "ce": 192.528, "miub": 28320.5},
    ("size", 4): {"accuracy": 7.717, "ce": 113.181, "miub": 26284.0},
    ("size", 2): {"accuracy": 8.634, "ce": 61.965, "miub": 25207.8},
    ("size", 1): {"accuracy": 8.705, "ce": 43.038, "miub": 24789.8},
}


def test_table_1_is_complete_and_adds_up() -> None:
    table = paper_table()
    assert len(table) == 70
    assert set(table["task"]) == {"ARCE", "ARCC", "Hel", "PIQA", "Win"}
    for (axis, level), sums in SUMS.items():
        rows = table[(table["axis"] == axis) & (table["rank" if axis == "rank" else "share"] == level)]
        assert len(rows) == 10
        for name, total in sums.items():
            assert rows[name].sum() == pytest.approx(total, abs=1e-6), (axis, level, name)


def test_the_misprint_and_the_repeated_column_are_noted() -> None:
    table = paper_table()
    printed = table[table["note"].str.contains("3779.9.2")]
    assert printed[["task", "model", "share", "miub"]].to_numpy().tolist() == [["ARCE", "LLaMA3", 8, 3779.9]]
    llama = table[table["model"] == "LLaMA3"].set_index("task")
    first, last = llama[llama["rank"] == 32], llama[llama["share"] == 1]
    pd.testing.assert_frame_equal(first[["accuracy", "ce", "miub"]], last[["accuracy", "ce", "miub"]])
    assert (first["note"] != "").all()


def test_the_other_tables() -> None:
    prompts, averages, mutual = paper_prompts(), paper_averages(), paper_mutual_information()
    assert prompts.groupby("prompt").size().tolist() == [7] * 4
    # The row "main" of Table 2 is the Phi3 average of Table 1.
    main = prompts[prompts["prompt"] == "main"].reset_index(drop=True)
    phi = averages[averages["model"] == "Phi3"].reset_index(drop=True)
    assert main["accuracy"].tolist() == phi["accuracy"].tolist()
    assert main["miub"].tolist() == phi["miub"].tolist()
    assert (mutual["miub"] >= mutual["mi"]).all()


def runs(**changes: object) -> pd.DataFrame:
    rows = [
        {
            "task": task,
            "model": "m",
            "R": rank,
            "N": 100 // share,
            "share": None if share == 1 else share,
            "seed": seed,
            "accuracy": rank / 100 + 0.1 * seed,
            "ce": 1 / rank,
            "joint_js": 2.0,
            "mi_joint": 8.0,
        }
        for task in ("a", "b")
        for rank, share in ((4, 1), (16, 1), (4, 2), (4, 8))
        for seed in (0, 1)
    ]
    return pd.DataFrame(rows).assign(**changes)


def test_layout_of_table_1() -> None:
    found = layout_table1(runs())
    assert list(found.columns) == ["rank 4", "rank 16", "share 8", "share 2", "share 1"]
    assert list(dict.fromkeys(found.index.get_level_values("task"))) == ["a", "b", "AVG"]
    assert found.loc[("a", "m", "ACC"), "rank 16"] == pytest.approx(0.21)  # mean over seeds
    assert found.loc[("a", "m", "MIUB (Theorem 3)"), "share 8"] == pytest.approx(2 * math.log(2))
    assert found.loc[("a", "m", "ACC"), "share 1"] == found.loc[("a", "m", "ACC"), "rank 4"]
    assert found.attrs["share_rank"] == 4
    assert "MIUB (Eq. 9)" not in found.index.get_level_values("metric")


def test_missing_cells_are_missing_in_the_average_too() -> None:
    table = runs()
    found = layout_table1(table[~((table["task"] == "b") & (table["R"] == 16))])
    assert np.isnan(found.loc[("b", "m", "ACC"), "rank 16"])
    assert np.isnan(found.loc[("AVG", "m", "ACC"), "rank 16"])
    assert found.loc[("AVG", "m", "ACC"), "rank 4"] == pytest.approx(0.09)


def test_a_text_task_without_accuracy_does_not_spoil_the_average() -> None:
    table = runs()
    table.loc[table["task"] == "b", "accuracy"] = np.nan
    found = layout_table1(table)
    assert found.loc[("AVG", "m", "ACC"), "rank 4"] == pytest.approx(0.09)
    assert found.loc[("AVG", "m", "CE"), "rank 4"] == pytest.approx(0.25)


def test_reference_settings_are_the_papers() -> None:
    table = pd.concat(
        [
            runs(prompt="main", D=100, length=None),
            runs(prompt="main", D=50, length=None, accuracy=9.0),
            runs(prompt="prompt1", D=100, length=None, accuracy=9.0),
            runs(prompt="main", D=100, length="1-100", accuracy=9.0),
        ]
    )
    assert layout_table1(table).loc[("a", "m", "ACC"), "rank 4"] == pytest.approx(0.09)
    second = layout_table2(table)
    assert second.loc[("m", "prompt1", "ACC"), "rank 4"] == pytest.approx(9.0)
    assert second.loc[("m", "main", "ACC"), "rank 4"] == pytest.approx(0.09)


def test_table_3_and_a_sweep_without_sharing() -> None:
    found = layout_table3(runs()[["R", "accuracy", "mi_joint", "joint_js", "seed"]])
    assert list(found.columns) == ["rank 4", "rank 16"]
    assert found.loc[("all", "MI"), "rank 4"] == 8.0


def test_layouts_refuse_what_they_cannot_lay_out() -> None:
    with pytest.raises(InputError, match="no column R"):
        layout_table1(pd.DataFrame({"N": [1], "ce": [2.0]}))
    with pytest.raises(InputError, match="rank above 0"):
        layout_table1(runs(R=0))
    with pytest.raises(InputError, match="any of accuracy"):
        layout_table1(runs()[["R", "task"]])


def test_axis_data_orders_lengths_and_averages_seeds() -> None:
    table = pd.DataFrame(
        [
            {"task": "a", "R": 4, "length": length, "seed": seed, "accuracy": 0.1 * place + seed, "ppl": None}
            for place, length in enumerate(["1-100", "101-200", "201-300"])
            for seed in (0, 1)
        ]
    )
    found = axis_data(table, "length", ["accuracy", "ppl"])
    assert found["label"].tolist() == ["1-100", "101-200", "201-300"]
    assert found["mean"].tolist() == pytest.approx([0.5, 0.6, 0.7])
    assert found["sd"].tolist() == pytest.approx([math.sqrt(0.5)] * 3)
    assert axis_data(table, "rank", ["accuracy"]).empty
    with pytest.raises(InputError, match="unknown axis 'ranks'"):
        axis_data(table, "ranks", ["accuracy"])
    with pytest.raises(InputError, match="none of ppl"):
        axis_data(table, "length", ["ppl"])


def test_models_are_compared_by_size_where_no_layers_are_shared() -> None:
    table = pd.DataFrame({"model": ["s", "l"], "N": [10, 20], "R": [4, 4], "ppl": [30.0, 20.0]})
    found = axis_data(table, "size", ["ppl"])
    assert found["level"].tolist() == [10.0, 20.0]
    assert found["mean"].tolist() == [30.0, 20.0]


def test_empty_cells_are_explained() -> None:
    rows = [{"task": "a", "model": "m", "prompt": "main", "R": r, "ce": 2.0, "accuracy": 0.5} for r in (4, 16)]
    assert why_empty(layout_table1(pd.DataFrame(rows))) == ""
    odd = pd.DataFrame([*rows, {**rows[1], "prompt": "letters"}])
    said = why_empty(layout_table2(odd))
    assert said == "A dash is a cell that was not run (an average needs every task): of m letters only rank 16."
    text = pd.DataFrame([*rows, {"task": "b", "model": "m", "prompt": "main", "R": 4, "ce": 1.0}])
    said = why_empty(layout_table1(text))
    assert "not run (an average needs every task): of b m only rank 4" in said
    assert "or was not measured in every run: ACC of b m; CE of AVG m" in said
