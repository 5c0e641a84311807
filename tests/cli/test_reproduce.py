from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorascope.cli import main
from lorascope.sweeps import SweepSpec
from lorascope.sweeps.paper import LENGTHS, SHARES, full_sweep, reduced_sweep
from tests.cli.test_commands import ROWS, write_rows


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["lorascope", "reproduce", *map(str, arguments)])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_full_grid_holds_the_papers_cells_once() -> None:
    cells = full_sweep(["a", "b"], ["piqa", "arc_easy"], seeds=2, data={}).expand()
    specs = [cell.spec for cell in cells]
    one = [spec for spec in specs if spec.model == "a" and spec.task == "piqa" and spec.seed == 1]
    plain = [s for s in one if s.share is None and s.length is None and s.prompt == "main"]
    assert sorted(s.rank for s in plain) == [32, 128, 512]
    assert sorted(s.share for s in one if s.share is not None) == sorted(SHARES)
    assert sorted(s.length for s in one if s.length is not None) == sorted(LENGTHS)
    assert {(s.rank, s.prompt) for s in one if s.prompt != "main"} == {
        (rank, f"prompt{k}") for rank in (32, 128, 512) for k in (1, 2, 3)
    }
    assert all((s.learning_rate, s.batch_size) == (4e-5, 32) for s in specs)
    assert sum(s.rank == 0 for s in specs) == 4


def test_reduced_grid_has_27_cells_bins_and_the_base() -> None:
    cells = reduced_sweep("smollm2", "towns").expand()
    assert sum(cell.spec.rank > 0 for cell in cells) == 27
    assert [cell.spec.rank for cell in cells].count(0) == 1
    assert cells[-1].spec.rank == 0, "the shortest cell comes last"
    bins = [(21, 22), (23, 23), (24, 29)]
    more = reduced_sweep("smollm2", "towns", lengths=bins, first_seed=2).expand()
    assert [cell.spec.length for cell in more if cell.spec.length is not None] == bins
    assert {cell.spec.seed for cell in more if cell.spec.rank > 0} == {2, 3}
    assert {cell.name for cell in cells} & {cell.name for cell in more} == {cells[-1].name}, "tables can be joined"


def test_dry_run_lists_bins_that_the_tasks_rows_fall_into(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": "x " * (1 + n // 4), "choices": ["a", "b"], "answer": 0} for n in range(24)]
    folder = tmp_path / "rows"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    same = ("--model", tiny_model_dir, "--task", folder, "--out", tmp_path / "out", "--dry-run")
    assert call(monkeypatch, *same, "--first-seed", 5, "--seeds", 1) == 0
    names = capsys.readouterr().out.split()
    assert sum("-len" in name for name in names) == 3
    assert all("-s5-" in name for name in names if not name.startswith("r0"))
    assert call(monkeypatch, "--out", tmp_path / "out", "--full", "--dry-run", "--task", "piqa", "--seeds", 1) == 0
    names = capsys.readouterr().out.split()
    assert sum("-len" in name for name in names) == len(LENGTHS)
    assert len(names) == 3 + len(SHARES) + 9 + len(LENGTHS) + 1
    assert not (tmp_path / "out").exists()


def test_tables_verdicts_and_page(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task = write_rows(tmp_path / "rows", ROWS)
    base = {"model": str(tiny_model_dir), "task": str(task), "preset": "quick", "max_steps": 2, "eval_limit": 4}
    small = SweepSpec(base=base, grid={"rank": [2, 4], "seed": [0, 1]})
    monkeypatch.setattr("lorascope.sweeps.paper.reduced_sweep", lambda *_, **__: small)
    out = tmp_path / "out"
    assert call(monkeypatch, "--model", tiny_model_dir, "--task", task, "--out", out, "--workers", 1) == 0
    said = capsys.readouterr().out
    page = (out / "paper.html").read_text(encoding="utf-8")
    assert "Reduced form" in page
    assert "2 seeds (0 to 1) along ranks" in page
    assert "Length bins are" in page or "length bins are left out" in page
    assert "Table 1" in page
    assert "no two runs differ in" in page, "what the runs cannot show is named"
    assert (out / "table-1.csv").read_text().count("rank 2") == 1
    assert json.loads((out / "claims.json").read_text())["verdicts"]
    assert str(out / "paper.html") in said


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--model", "a", "--model", "b"), "takes one --model"),
        (("--data", "towns"), "give TASK=FOLDER"),
        (("--data", "piqa=here"), "names task 'piqa', which is not run"),
    ],
)
def test_bad_options_end_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    line: str,
) -> None:
    assert call(monkeypatch, "--out", tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert line in error
    assert "\n" not in error
    assert not (tmp_path / "out").exists()
