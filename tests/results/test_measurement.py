from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from lorascope.core.errors import DataError, InputError, OutputError
from lorascope.results import AdapterMeasurement, RunRecord
from lorascope.results.plain import plain
from lorascope.testing.stores import example_record


def layers() -> list[dict]:
    return [
        {"name": f"layers.{layer}.{kind}", "layer": layer, "projection": kind, "rank": 4, "miub_js": layer + 0.5}
        for layer in range(2)
        for kind in ("q", "down")
    ]


def test_json_round_trip_keeps_every_field(tmp_path: Path) -> None:
    record = example_record()
    loaded = AdapterMeasurement.load(record.save(tmp_path / "sub" / "result.json"))
    assert isinstance(loaded, RunRecord)
    assert loaded.to_dict() == record.to_dict()
    assert loaded.correct == [True, False]
    assert loaded.rank == 4
    assert not loaded.is_base


def test_file_names_kind_schema_and_units(tmp_path: Path) -> None:
    path = AdapterMeasurement(totals={"miub_js": 0.5, "mine": 1.0}, layers=layers()).save(tmp_path / "m.json")
    values = json.loads(path.read_text())
    assert values["kind"] == "measurement"
    assert values["schema_version"] == 1
    assert values["units"] == {"miub_js": "nats"}


def test_unknown_values_are_null_in_json_and_nan_in_memory(tmp_path: Path) -> None:
    path = AdapterMeasurement(totals={"ce": math.inf}, layers=[{"name": "a", "ce": math.nan}]).save(tmp_path / "m.json")
    assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()
    loaded = AdapterMeasurement.load(path)
    assert math.isnan(loaded.totals["ce"])
    assert loaded.layers[0]["ce"] is None


def test_numpy_values_and_paths_are_saved_as_numbers_and_text() -> None:
    value = {"a": np.float32(0.5), "b": np.arange(2), "c": Path("x/y"), "d": (np.int64(3), np.nan, np.bool_(True))}
    assert plain(value) == {"a": 0.5, "b": [0, 1], "c": "x/y", "d": [3, None, True]}
    with pytest.raises(InputError, match="of type object"):
        plain({"a": object()})


def test_rank_of_a_measurement_is_the_one_its_components_share() -> None:
    assert AdapterMeasurement(totals={}, layers=layers()).rank == 4
    assert AdapterMeasurement(totals={}, layers=[*layers(), {"name": "x", "rank": 8}]).rank is None
    assert AdapterMeasurement(totals={}, layers=[]).rank is None


def test_base_is_rank_zero_or_called_base() -> None:
    assert RunRecord(name="base", totals={}, layers=[]).is_base
    assert RunRecord(name="untouched", totals={}, layers=[], spec={"rank": 0}).is_base
    assert not RunRecord(name="base", totals={}, layers=[], spec={"rank": 8}).is_base


def test_table_has_one_row_for_each_component() -> None:
    table = AdapterMeasurement(totals={}, layers=layers()).table()
    assert list(table["miub_js"]) == [0.5, 0.5, 1.5, 1.5]
    assert list(table["projection"]) == ["q", "down", "q", "down"]


def test_plots_show_the_values() -> None:
    found = AdapterMeasurement(totals={}, layers=layers())
    assert np.asarray(found.plot_layers().data[0].z).tolist() == [[0.5, 0.5], [1.5, 1.5]]
    assert {trace.name: list(trace.y) for trace in found.plot_depth().data} == {"q": [0.5, 1.5], "down": [0.5, 1.5]}
    with pytest.raises(InputError, match="mi_joint"):
        found.plot_layers("mi_joint")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version 2"),
        ({"kind": "sweep"}, "'sweep'"),
        ({"totals": None}, "'totals' is missing or malformed"),
        ({"totals": {"ce": "low"}}, "malformed"),
        ({"totals": {"ce": True}}, "malformed"),
        ({"layers": [1]}, "malformed"),
        ({"history": {}}, "'history' is missing or malformed"),
        ({"name": None}, "'name' is missing or malformed"),
    ],
)
def test_malformed_results_are_refused_in_one_line(tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps({**example_record().to_dict(), **change}))
    with pytest.raises(DataError) as caught:
        AdapterMeasurement.load(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["totals", "layers", "name", "kind", "schema_version"])
def test_a_missing_field_is_refused(missing: str) -> None:
    values = example_record().to_dict()
    del values[missing]
    with pytest.raises(DataError, match=missing):
        AdapterMeasurement.from_dict(values)


@pytest.mark.parametrize("text", ["[]", "3", '{"model_type": "llama"}', "", '{"schema_version": 1, "kin', "\0\0\0"])
def test_foreign_and_interrupted_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"result\.json"):
        AdapterMeasurement.load(path)


def test_a_measurement_is_not_a_run(tmp_path: Path) -> None:
    path = AdapterMeasurement(totals={}, layers=[]).save(tmp_path / "m.json")
    with pytest.raises(DataError, match="'measurement', expected run"):
        RunRecord.load(path)


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = example_record().save(tmp_path / "result.json")
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="disk full"):
        example_record("other").save(path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["result.json"]
