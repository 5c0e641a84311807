from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lorascope.core.errors import DataError, InputError
from lorascope.scaling import read_table
from lorascope.scaling.plan_runs import prepare
from lorascope.scaling.table import as_table, measured, observe

TABLE = pd.DataFrame({"N": [1e8] * 4, "R": [4, 8, 16, 32], "D": [100, 100, 1000, 1000], "ce": [3.0, 2.5, 2.2, 2.0]})


@pytest.mark.parametrize("name", ["runs.csv", "runs.tsv", "runs.parquet"])
def test_every_kind_of_file_gives_the_same_table(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        TABLE.to_parquet(path)
    else:
        TABLE.to_csv(path, index=False, sep="\t" if name.endswith("tsv") else ",")
    pd.testing.assert_frame_equal(read_table(path), TABLE)


def test_a_sweep_folder_is_its_table(tmp_path: Path) -> None:
    TABLE.to_csv(tmp_path / "table.csv", index=False)
    assert len(read_table(tmp_path)) == 4


def test_spaces_around_names_and_values_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("R , ce\n4, 2.0\n8, 1.5\n")
    assert list(read_table(path).columns) == ["R", "ce"]
    assert read_table(path)["ce"].tolist() == [2.0, 1.5]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.csv", None, "no file"),
        ("runs.xlsx", b"x", r"ends in '\.xlsx'"),
        ("empty.csv", b"", "cannot read"),
        ("heads.csv", b"N,R,ce\n", "no rows"),
        ("broken.parquet", b"PAR1 but not", "cannot read"),
        ("binary.csv", b"\xff\xfe\x00\x01\n\x80", "cannot read|no rows"),
        ("ragged.csv", b"R,ce\n4,2\n8,1,9,9\n", "cannot read"),
    ],
)
def test_what_is_no_table_is_said_in_one_line(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=said) as error:
        read_table(path)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_table_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no table\.csv"):
        read_table(tmp_path)


def test_mappings_frames_and_paths_are_tables(tmp_path: Path) -> None:
    TABLE.to_csv(tmp_path / "a.csv", index=False)
    assert len(as_table(TABLE.to_dict("list"))) == len(as_table(TABLE)) == len(as_table(str(tmp_path / "a.csv"))) == 4
    with pytest.raises(InputError, match="one length"):
        as_table({"R": [1, 2], "ce": [1, 2, 3]})


def test_axes_reference_and_places() -> None:
    seen = observe(TABLE, "ce")
    assert seen.axes == ("R", "D")
    assert seen.reference == pytest.approx({"N": 1e8, "R": 4 * 2**1.5, "D": 100 * 10**0.5})
    assert seen.x.mean(axis=0) == pytest.approx([0, 0])
    assert seen.x[1, 0] - seen.x[0, 0] == pytest.approx(np.log(2))
    assert seen.settings == 4
    assert seen.groups.tolist() == [0, 1, 2, 3]


def test_rows_that_cannot_count_are_left_out_and_counted() -> None:
    rows = pd.DataFrame(
        {
            "R": [4, 8, 16, 32, 64, 0, None, 128],
            "ce": [3.0, 2.5, np.nan, np.inf, 2.0, 9.0, 1.0, 1.5],
            "status": ["done"] * 7 + ["failed"],
        }
    )
    seen = observe(rows, "ce")
    assert seen.y.tolist() == [3.0, 2.5, 2.0]
    assert [note.split(":")[0] for note in seen.notes] == [
        "1 row not done",
        "2 rows without a finite ce",
        "1 row without R",
        "1 row of rank 0 (the base model)",
    ]


CELLS = [{"N": 1e8, "R": r, "D": d, "seed": s} for r in (4, 16) for d in (40, 320) for s in (0, 1)]


@pytest.mark.parametrize(
    ("prompts", "kept", "note"),
    [
        ({i: ["main"] for i in range(8)} | {7: ["main", "letters"]}, 8, "only runs with prompt main: 1 with other"),
        ({i: ["main", "letters"] for i in range(8)}, 16, None),
        ({i: ["main", "letters"] for i in range(7)} | {7: ["letters"]}, 15 - 7, "only runs with prompt letters: 7"),
        (
            {i: ["main", "letters"] for i in range(6)} | {6: ["main"], 7: ["letters"]},
            12,
            "2 cells without all of those",
        ),
    ],
)
def test_a_fit_takes_the_runs_that_a_plan_takes(prompts: dict[int, list[str]], kept: int, note: str | None) -> None:
    rows = pd.DataFrame([{**cell, "prompt": p} for i, cell in enumerate(CELLS) for p in prompts[i]])
    rows["ce"] = 2 + 0.01 * np.arange(len(rows))
    seen, runs = observe(rows, "ce"), prepare(rows, "ce")
    assert sorted(seen.y) == sorted(runs.rows["ce"])
    assert len(seen.y) == kept
    for notes in (seen.notes, runs.notes):
        assert note is None or any(note in said for said in notes)
    assert len(observe(rows, "ce", pool=True).y) == len(rows)


def test_settings_that_no_cell_has_all_of_are_refused_by_fit_and_plan() -> None:
    pairs = [("a", "b"), ("b", "c"), ("c", "a"), ("a", "b"), ("b", "c"), ("c", "a"), ("a", "b"), ("b", "c")]
    rows = pd.DataFrame([{**cell, "prompt": p, "ce": 2.0} for cell, two in zip(CELLS, pairs, strict=True) for p in two])
    for refuses in (observe, prepare):
        with pytest.raises(InputError, match="mixes 3 settings of prompt, and no cell has all of them: keep one"):
            refuses(rows, "ce")
    assert len(observe(rows, "ce", pool=True).y) == 16


def test_groups_are_numbered() -> None:
    assert observe(TABLE.assign(seed=[7, 3, 7, 3]), "ce", "seed").groups.tolist() == [0, 1, 0, 1]
    with pytest.raises(InputError, match="1 row without 'seed'"):
        observe(TABLE.assign(seed=[7, 3, None, 3]), "ce", "seed")
    with pytest.raises(InputError, match="no column 'cell'"):
        observe(TABLE, "ce", "cell")


@pytest.mark.parametrize(
    ("changes", "metric", "said"),
    [
        ({}, "accuracy", "no column 'accuracy': choose from ce"),
        ({}, "R", "'R' is an axis"),
        ({"R": [4, 8, -16, 32]}, "ce", "R is -16 in 1 row"),
        ({"N": [0.0, 1e8, 1e8, 0.0]}, "ce", "N is 0 in 2 rows"),
        ({"D": [1, 2, np.inf, 4]}, "ce", "D is inf"),
        ({"R": ["4", "8", "big", "32"]}, "ce", "column 'R' has 'big' in 1 row"),
        ({"ce": ["a", "b", "c", "d"]}, "ce", "column 'ce' has 'a' in 4 rows"),
        ({"ce": [np.nan] * 4}, "ce", "0 rows .*4 rows without a finite ce"),
        ({"ce": [1.0, np.nan, np.nan, np.nan]}, "ce", "1 row .*at least 2"),
        ({"R": [4] * 4, "D": [5] * 4}, "ce", "the same in all 4 runs"),
    ],
)
def test_what_cannot_be_fitted_is_said(changes: dict, metric: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        observe(TABLE.assign(**changes), metric)
    assert "\n" not in str(error.value)


def test_numbers_written_as_text_are_numbers() -> None:
    assert observe(TABLE.assign(R=["4", "8", "16", "32"]), "ce").data["R"].tolist() == [4, 8, 16, 32]


def test_missing_numbers_of_every_kind_are_missing() -> None:
    rows = TABLE.assign(R=pd.array([4, 8, None, 32], dtype="Int64"), ce=["3", "2.5", "2.2", None])
    seen = observe(rows, "ce")
    assert seen.data["R"].tolist() == [4, 8]
    assert len(seen.notes) == 2


def test_dates_and_complex_numbers_are_no_numbers() -> None:
    for column in (pd.date_range("2025-01-01", periods=4), np.array([1j, 2, 3, 4])):
        with pytest.raises(InputError, match="give real numbers"):
            observe(TABLE.assign(D=column), "ce")


def test_no_axis_and_two_columns_of_one_name_are_said() -> None:
    with pytest.raises(InputError, match="no column N, R or D"):
        observe(TABLE[["ce"]], "ce")
    twice = pd.concat([TABLE, TABLE[["ce"]]], axis=1)
    with pytest.raises(InputError, match="2 columns 'ce'"):
        observe(twice, "ce")


def test_metrics_are_the_known_ones_or_any_numbers() -> None:
    assert measured(TABLE.assign(accuracy=0.5, name="a")) == ["ce", "accuracy"]
    assert measured(TABLE.rename(columns={"ce": "score"}).assign(name="a")) == ["score"]
