from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lorascope.bridge import BridgePlan, BridgeResult, bridge
from lorascope.bridge import runs as runs_module
from lorascope.bridge.plan import REFERENCE_SEED
from lorascope.bridge.runs import claim_folder, load_scores, run_plan
from lorascope.core.errors import DataError, InputError, OutputError
from lorascope.report.bridge import bridge_frames, bridge_sections

Made = tuple[BridgePlan, Path, BridgeResult]


def test_every_run_is_measured(tiny_bridge: Made) -> None:
    plan, _, result = tiny_bridge
    assert [row["name"] for row in result.runs] == ["frozen", "reference", "n8-s0", "n2-s0", "n8-s1", "n2-s1"]
    assert [row["rows"] for row in result.sizes] == [8, 2]
    for row in result.runs[2:]:
        assert 0 <= row["column"] <= 1
        assert row["column_above"] <= row["column"]
        assert -1 <= row["update"] <= 1
        assert row["rows_per_parameter"] == row["rows"] / result.parameters
        assert row["relative_error"] > 0
        assert 0 < row["column_chance"] < 0.2
    (size,) = [row for row in result.sizes if row["rows"] == 8]
    mean = sum(row["update"] for row in result.runs if row["rows"] == 8) / 2
    assert size["update"] == pytest.approx(mean)
    assert size["update_error"] == pytest.approx(abs(result.runs[2]["update"] - result.runs[4]["update"]) / 2)
    assert len(result.layers) == 14
    assert result.noise["questions"] == plan.questions
    assert any(not point["valid"] for point in result.curve)
    assert any("2 seeds" in line for line in result.warnings)
    assert result.findings


def test_more_training_data_in_common_with_the_reference_show(tiny_bridge: Made) -> None:
    """Gradients of one task share directions: column spaces agree far beyond chance, row spaces (random A) hardly."""
    _, _, result = tiny_bridge
    for row in result.sizes:
        assert row["column_above"] > 0.05
        assert row["row_above"] < row["column_above"]


def test_result_survives_json(tiny_bridge: Made, tmp_path: Path) -> None:
    _, _, result = tiny_bridge
    text = json.dumps(result.to_dict(), allow_nan=False)
    again = BridgeResult.from_dict(json.loads(text))
    assert again.to_dict() == result.to_dict()
    assert BridgeResult.load(result.save(tmp_path / "bridge.json")).findings == result.findings
    with pytest.raises(DataError, match="schema_version"):
        BridgeResult.from_dict({**result.to_dict(), "schema_version": 0})
    with pytest.raises(DataError, match="no bridge result"):
        BridgeResult.from_dict({"kind": "run"})
    values = result.to_dict()
    del values["sizes"]
    with pytest.raises(DataError, match="'sizes' is missing"):
        BridgeResult.from_dict(values)


def test_page_and_tables_have_every_run(tiny_bridge: Made) -> None:
    _, _, result = tiny_bridge
    facts = result.to_dict()
    sections = {section.name: section for section in bridge_sections(facts)}
    assert list(sections) == ["form", "findings", "curves", "numbers", "layers"]
    assert sections["findings"].points == tuple(result.findings)
    assert set(sections["curves"].figures) == {"overlap", "error", "error against overlap"}
    noise, runs, sizes, shapes = bridge_frames(facts).values()
    assert len(runs) == 6
    assert len(sizes) == 2
    assert len(shapes) == 4
    assert math.isclose(float(noise["variance"][0]), result.noise["frozen"])


def test_what_is_there_is_not_done_again_and_more_seeds_are_added(
    tiny_bridge: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, folder, result = tiny_bridge
    files = sorted(folder.glob("scores/*.json")) + sorted(folder.glob("runs/*/result.json"))
    before = {path: path.stat().st_mtime_ns for path in files}

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("this run is there already")

    with monkeypatch.context() as patched:
        patched.setattr(runs_module, "run", refuse)
        run_plan(plan, folder, progress=False)
        more = BridgePlan.from_dict({**plan.to_dict(), "seeds": [0, 1, 2]})
        with pytest.raises(AssertionError):
            run_plan(more, folder, progress=False)
    assert {path: path.stat().st_mtime_ns for path in files} == before
    claim_folder(plan, folder)
    again = bridge(plan, folder, samples=64, progress=False)
    assert again.sizes == result.sizes


def test_a_stopped_bridge_goes_on(tiny_bridge: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plan, _, _ = tiny_bridge
    plan = BridgePlan.from_dict({**plan.to_dict(), "seeds": [0]})
    real, calls = runs_module.run, []

    def stop(spec: object, folder: Path, **options: object) -> object:
        calls.append(folder.name)
        if folder.name == "n8-s0":
            raise KeyboardInterrupt
        return real(spec, folder, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(runs_module, "run", stop)
        with pytest.raises(KeyboardInterrupt):
            run_plan(plan, tmp_path / "out", progress=False)
    assert calls == ["reference", "n8-s0"]
    calls.clear()
    monkeypatch.setattr(
        runs_module, "run", lambda spec, folder, **o: calls.append(folder.name) or real(spec, folder, **o)
    )
    run_plan(plan, tmp_path / "out", progress=False)
    assert calls == ["n8-s0", "n2-s0"]


def test_a_folder_of_another_plan_is_refused(tiny_bridge: Made) -> None:
    plan, folder, _ = tiny_bridge
    other = BridgePlan.from_dict({**plan.to_dict(), "rank": 3})
    with pytest.raises(OutputError, match="rank 2, not 3"):
        run_plan(other, folder, progress=False)


def test_damaged_scores_are_named(tmp_path: Path) -> None:
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "frozen.json").write_text("{}")
    with pytest.raises(DataError, match="no scores of the bridge"):
        load_scores(tmp_path, "frozen")
    with pytest.raises(DataError, match="no file"):
        load_scores(tmp_path, "reference")


def test_text_tasks_are_refused(tiny_bridge: Made, tmp_path: Path) -> None:
    plan, _, _ = tiny_bridge
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        (tmp_path / "data" / f"{split}.jsonl").write_text('{"text": "some words in a row"}\n')
    given = BridgePlan.from_dict({**plan.to_dict(), "task": str(tmp_path / "data")})
    with pytest.raises(InputError, match="has no choices"):
        run_plan(given, tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"rank": 0}, "rank 0"),
        ({"steps": 0}, "steps 0"),
        ({"questions": 1}, "questions 1"),
        ({"sizes": []}, "at least one data size"),
        ({"sizes": [16, 16]}, "must be different"),
        ({"seeds": [REFERENCE_SEED]}, "the reference's"),
        ({"reference_rows": 100}, "below the largest size 320"),
        ({"rnak": 4}, "did you mean 'rank'"),
    ],
)
def test_bad_plans_are_named(change: dict[str, object], line: str) -> None:
    with pytest.raises(InputError, match=line):
        BridgePlan.from_dict(change)


def test_plan_survives_json_and_has_whole_curves_first() -> None:
    plan = BridgePlan(sizes=(8, 32), seeds=(0, 4))
    assert BridgePlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    names = [name for name, _ in plan.runs()]
    assert names == ["reference", "n8-s0", "n32-s0", "n8-s4", "n32-s4"]
    assert {spec.seed for _, spec in plan.runs()} == {REFERENCE_SEED, 0, 4}
