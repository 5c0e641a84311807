"""The commands as a person types them, on a tiny saved model: what they write, print and refuse."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from lorascope.cli import app, main
from lorascope.cli.quickstart import parse_ranks
from lorascope.core import InputError
from lorascope.results import AdapterMeasurement

ROWS = [
    {"question": f"{a} {b} {c}", "choices": [a, b, c, "z"], "answer": i % 3}
    for i, (a, b, c) in enumerate([("a", "b", "c"), ("d", "e", "f"), ("g", "h", "i"), ("j", "k", "l")] * 3)
]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Type a command; get its exit code, what it printed, and what it said on the error stream."""

    def typed(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lorascope", *map(str, arguments)])
        capsys.readouterr()  # what the test itself made libraries print
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return typed


def write_rows(folder: Path, rows: list[dict], splits: tuple[str, ...] = ("train", "validation", "test")) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split in splits:
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def task_dir(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows", ROWS)


def save_adapter(base: Path, folder: Path, **options: object) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_pretrained(base)
        config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, **options)
        get_peft_model(model, config).save_pretrained(folder)
    return folder


@pytest.fixture
def adapter_dir(tmp_path: Path, tiny_model_dir: Path) -> Path:
    return save_adapter(tiny_model_dir, tmp_path / "adapter")


def train_options(model: Path, task: Path, out: Path, *more: object) -> list[object]:
    few = ["--steps", 4, "--batch-size", 4, "--lr", 0.01, "--rank", 2, "--no-progress"]
    return ["train", "--model", model, "--task", task, "--out", out, *few, *more]


def test_train_measure_report(tmp_path: Path, tiny_model_dir: Path, task_dir: Path, run: Run) -> None:
    out = tmp_path / "trained"
    code, printed, _ = run(*train_options(tiny_model_dir, task_dir, out))
    assert code == 0
    assert "MIUB" in printed
    assert "report:" in printed
    assert (out / "report.html").is_file()
    record = AdapterMeasurement.load(out / "result.json")
    assert record.totals["miub_js"] > 0

    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_dir), out / "adapter")
    assert sorted(path.name for path in (out / "adapter").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "lorascope.json",
    ]
    assert plain.peft_config["default"].r == 2

    measured = tmp_path / "measured"
    code, printed, _ = run(
        "measure", out / "adapter", "--task", task_dir, "--no-progress", "--metrics", "all", "--out", measured
    )
    assert code == 0
    again = AdapterMeasurement.load(measured / "result.json")
    for metric in ("miub_js", "mi_joint", "accuracy", "update_ratio"):
        assert again.totals[metric] == pytest.approx(record.totals[metric], rel=1e-5)
    values = json.loads((measured / "result.json").read_text())
    assert values["schema_version"] == 1
    assert len(values["layers"]) == 14

    code, printed, _ = run("measure", out / "adapter", "--task", task_dir, "--no-progress", "--json", "--no-score")
    assert code == 0
    assert json.loads(printed)["totals"]["miub_js"] == pytest.approx(record.totals["miub_js"], rel=1e-5)

    page = tmp_path / "both.html"
    assert run("report", out, measured / "result.json", "--out", page, "--title", "<b>&two</b>")[0] == 0
    assert "<b>&two" not in page.read_text()


def test_train_again_returns_at_once_and_other_options_are_refused(
    tmp_path: Path, tiny_model_dir: Path, task_dir: Path, run: Run
) -> None:
    out = tmp_path / "trained"
    assert run(*train_options(tiny_model_dir, task_dir, out))[0] == 0
    stamp = (out / "result.json").stat().st_mtime_ns
    assert run(*train_options(tiny_model_dir, task_dir, out))[0] == 0
    assert (out / "result.json").stat().st_mtime_ns == stamp
    code, _, said = run(*train_options(tiny_model_dir, task_dir, out, "--seed", 9))
    assert code == 2
    assert "seed is 0 there, 9 here" in said
    assert (out / "result.json").stat().st_mtime_ns == stamp


def test_a_command_that_failed_on_bad_input_leaves_the_folder_free(
    tmp_path: Path, tiny_model_dir: Path, task_dir: Path, run: Run
) -> None:
    out = tmp_path / "out"
    assert run(*train_options(tiny_model_dir, task_dir, out, "--rank", 9))[0] == 2
    assert run(*train_options(tiny_model_dir, task_dir, out))[0] == 0


def test_data_that_changed_since_the_run_is_named(
    tmp_path: Path, tiny_model_dir: Path, task_dir: Path, run: Run
) -> None:
    out = tmp_path / "out"
    assert run(*train_options(tiny_model_dir, task_dir, out))[0] == 0
    write_rows(task_dir, ROWS[:-1], ("train",))
    code, _, said = run(*train_options(tiny_model_dir, task_dir, out))
    assert code == 2
    assert "train.jsonl' changed since" in one_line(said)


def test_a_report_does_not_overwrite_a_result(tmp_path: Path, tiny_model_dir: Path, task_dir: Path, run: Run) -> None:
    out = tmp_path / "out"
    assert run(*train_options(tiny_model_dir, task_dir, out))[0] == 0
    before = (out / "result.json").read_bytes()
    code, _, said = run("report", out, "--out", out / "result.json")
    assert code == 2
    assert "no HTML file" in one_line(said)
    assert (out / "result.json").read_bytes() == before


def test_quickstart_on_another_model_resumes_and_keeps_its_settings(
    tmp_path: Path, tiny_model_dir: Path, task_dir: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorascope import training
    from lorascope.tasks import rows

    words = rows.Task("sotu", "text", {"test": (rows.TextRow("a b c d e f g h", "here"),)})
    monkeypatch.setattr(training.runner, "load_task", _with_text(training.runner.load_task, words))
    out = tmp_path / "quick"
    options = ["quickstart", "--model", tiny_model_dir, "--task", task_dir, "--ranks", "1,2", "--steps", 2]
    options += ["--questions", 6, "--out", out, "--no-progress"]
    code, printed, said = run(*options)
    assert code == 0, said
    assert all(name in printed for name in ("base", "rank-1", "rank-2", "report.html"))
    first = {name: (out / name / "result.json").read_bytes() for name in ("base", "rank-1", "rank-2")}
    shutil.rmtree(out / "rank-2")
    code, printed, _ = run(*options)
    assert code == 0
    assert "base: done before" in printed
    again = json.loads((out / "rank-2" / "result.json").read_text())["totals"]
    assert again == pytest.approx(json.loads(first["rank-2"])["totals"], rel=1e-5)
    assert (out / "rank-1" / "result.json").read_bytes() == first["rank-1"]
    code, _, said = run(*options[:-1], "--seed", 5, "--no-progress")
    assert code == 2
    assert "seed 0, not 5" in said


def _with_text(load: Callable, words: object) -> Callable:
    return lambda name, **options: words if name == "sotu" else load(name, **options)


def one_line(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    assert len(lines) == 1, said
    assert "Traceback" not in said
    return lines[0]


def test_adapters_that_cannot_be_measured(
    tmp_path: Path, tiny_model_dir: Path, task_dir: Path, adapter_dir: Path, run: Run
) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    foreign = tmp_path / "foreign"
    get_peft_model(base, LoHaConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(foreign)
    merged = tmp_path / "merged"
    PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model_dir), adapter_dir
    ).merge_and_unload().save_pretrained(merged)
    cut = tmp_path / "cut"
    shutil.copytree(adapter_dir, cut)
    weights = cut / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    pickled = tmp_path / "pickled"
    shutil.copytree(adapter_dir, pickled)
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    broken = tmp_path / "broken"
    shutil.copytree(adapter_dir, broken)
    (broken / "adapter_config.json").write_text('{"peft_type": ')
    other = tmp_path / "other"
    other.mkdir()
    (other / "adapter_config.json").write_text("[]")
    for folder, words in {
        tmp_path / "nowhere": "no adapter at",
        foreign: "LOHA adapter",
        merged: "full model, not an adapter",
        cut: "interrupted or not safetensors",
        pickled: "a pickle, which is not opened",
        broken: "not valid JSON",
        other: "no peft_type",
        task_dir: "no adapter_config.json",
    }.items():
        code, _, said = run("measure", folder, "--task", task_dir, "--model", tiny_model_dir, "--no-progress")
        assert code == 2
        line = one_line(said)
        assert words in line
        assert folder.name in line


def test_wrong_base_models(tmp_path: Path, tiny_model_dir: Path, task_dir: Path, adapter_dir: Path, run: Run) -> None:
    from tests.measuring.architectures import ARCHITECTURES

    larger = tmp_path / "larger"
    ARCHITECTURES["gpt2"].build().save_pretrained(larger)
    for item in tiny_model_dir.glob("token*"):
        shutil.copy(item, larger)
    code, _, said = run("measure", adapter_dir, "--task", task_dir, "--model", larger, "--no-progress")
    assert code == 2
    assert "does not fit base model" in one_line(said)

    changed = tmp_path / "changed"
    shutil.copytree(adapter_dir, changed)
    config = json.loads((changed / "adapter_config.json").read_text())
    (changed / "adapter_config.json").write_text(json.dumps(config | {"r": 3}))
    code, _, said = run("measure", changed, "--task", task_dir, "--no-progress")
    assert code == 2
    assert "which it names as its own" in one_line(said)

    shallow = tmp_path / "shallow"
    shutil.copytree(tiny_model_dir, shallow)
    AutoModelForCausalLM.from_pretrained(tiny_model_dir, num_hidden_layers=1).save_pretrained(shallow)
    code, _, said = run("measure", adapter_dir, "--task", task_dir, "--model", shallow, "--no-progress")
    assert code == 2
    assert "of its weights have no layer here" in one_line(said)

    out = tmp_path / "trained"
    assert run(*train_options(tiny_model_dir, task_dir, out))[0] == 0
    twin = tmp_path / "twin"
    shutil.copytree(tiny_model_dir, twin)
    model = AutoModelForCausalLM.from_pretrained(twin)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight += 1
    model.save_pretrained(twin)
    measure = ["measure", out / "adapter", "--task", task_dir, "--model", twin, "--no-progress"]
    code, _, said = run(*measure)
    assert code == 2
    assert "--any-base" in one_line(said)
    assert run(*measure, "--any-base")[0] == 0


GOOD = json.dumps(ROWS[0])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"question": "a"', ":2"),
        ("", ""),
        ('{"question": " ", "choices": ["a", "b"], "answer": 0}', ":2"),
        ('{"question": "a", "choices": ["a", "b"], "answer": 2}', ":2"),
        ('{"question": "a", "choices": ["a", "b"], "answer": -1}', ":2"),
        ('{"question": "a", "choices": ["a"], "answer": 0}', ":2"),
        ('{"question": "a", "choices": ["a", ""], "answer": 0}', ":2"),
        ('{"question": "a"}', ":2"),
        ("[1, 2]", ":2"),
        ("[" * 100_000, ":2"),
        ('{"question": "a", "choices": ["a", "b"], "answer": ' + "9" * 5000 + "}", ":2"),
        ('{"question": "\\ud800", "choices": ["a", "b"], "answer": 0}', ":2"),
    ],
)
def test_wrong_rows_are_named_by_file_and_line(
    tmp_path: Path, tiny_model_dir: Path, adapter_dir: Path, run: Run, line: str, words: str
) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "test.jsonl").write_text(f"{GOOD}\n{line}\n{GOOD}\n")
    code, _, said = run("measure", adapter_dir, "--task", folder, "--model", tiny_model_dir, "--no-progress")
    assert code == 2
    assert "test.jsonl" in one_line(said)
    assert words in one_line(said)


def test_rank_over_the_layers_size(tmp_path: Path, tiny_model_dir: Path, task_dir: Path, run: Run) -> None:
    code, _, said = run(*train_options(tiny_model_dir, task_dir, tmp_path / "out", "--rank", 9))
    assert code == 2
    assert "rank 9" in one_line(said)
    assert "k_proj" in said
    assert "8" in said


def test_no_pad_token(tmp_path: Path, tiny_model_dir: Path, task_dir: Path, adapter_dir: Path, run: Run) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model_dir, bare)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = bare / name
        if path.is_file():
            values = json.loads(path.read_text())
            values.pop("pad_token", None)
            path.write_text(json.dumps(values))
    measure = ["measure", adapter_dir, "--task", task_dir, "--model", bare, "--no-progress"]
    code, _, said = run(*measure)
    assert code == 2
    assert "--pad-token" in one_line(said)
    assert run(*measure, "--pad-token", "eos")[0] == 0


def test_prompts_longer_than_the_context_are_said_and_counted(
    tmp_path: Path, tiny_model_dir: Path, adapter_dir: Path, run: Run
) -> None:
    long = {"question": "a " * 80, "choices": ["a", "b"], "answer": 0}
    folder = write_rows(tmp_path / "long", [*ROWS, long])
    measure = ["measure", adapter_dir, "--task", folder, "--model", tiny_model_dir, "--no-progress"]
    code, _, said = run(*measure)
    assert code == 2
    assert "64" in one_line(said)
    assert "--overlong" in said
    for overlong, key in (("drop", "dropped"), ("truncate", "truncated")):
        out = tmp_path / overlong
        code, printed, _ = run(*measure, "--overlong", overlong, "--out", out)
        assert code == 0
        assert AdapterMeasurement.load(out / "result.json").counts[key] == 1
        assert "1 sample was" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["measure", "x", "--metrics", "miub"], "unknown metric 'miub': did you mean 'miub_js'"),
        (["train", "--out", "x", "--preset", "papr"], "did you mean 'paper'"),
        (["train", "--out", "x", "--rank", "-1"], "rank -1"),
        (["train", "--out", "x", "--seed", "99999999999999999999"], "seed 99999999999999999999"),
        (["train", "--out", "x", "--lr", "nan"], "learning_rate nan"),
        (["train", "--out", "x", "--config", "nowhere.yaml"], "no file 'nowhere.yaml'"),
        (["quickstart", "--ranks", "4,x"], "--ranks '4,x'"),
        (["report", "nowhere"], "nowhere"),
    ],
)
def test_wrong_options_end_in_one_line(
    arguments: list[str], words: str, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, said = run(*arguments)
    assert code == 2
    assert words in one_line(said)
    assert list(tmp_path.iterdir()) == []


def test_unknown_names_of_tasks_prompts_and_splits(
    tiny_model_dir: Path, task_dir: Path, adapter_dir: Path, run: Run
) -> None:
    measure = ["measure", adapter_dir, "--model", tiny_model_dir, "--no-progress"]
    for more, words in (
        (["--task", "arc_esy"], "did you mean 'arc_easy'"),
        (["--task", task_dir, "--prompt", "prompt9"], "unknown prompt 'prompt9'"),
        (["--task", task_dir, "--split", "dev"], "dev"),
        (["--task", task_dir, "--dtype", "int8"], "int8"),
        (["--task", task_dir, "--tokens", "first"], "first"),
        (["--task", task_dir, "--max-length", 65], "context of 64"),
    ):
        code, _, said = run(*measure, *more)
        assert code == 2
        assert words in one_line(said)


def test_output_folders_that_are_not_empty(
    tmp_path: Path, tiny_model_dir: Path, task_dir: Path, adapter_dir: Path, run: Run
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("years of work")
    for command in (
        train_options(tiny_model_dir, task_dir, taken),
        ["measure", adapter_dir, "--task", task_dir, "--model", tiny_model_dir, "--out", taken],
        ["quickstart", "--out", taken],
    ):
        code, _, said = run(*command)
        assert code == 2
        assert "taken' is not empty" in one_line(said)
    assert [path.name for path in taken.iterdir()] == ["thesis.txt"]


def test_a_full_disk_keeps_what_is_done(
    tmp_path: Path, tiny_model_dir: Path, task_dir: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "trained"
    real = os.fsync

    def full(handle: int) -> None:
        if (out / "adapter").is_dir():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        code, _, said = run(*train_options(tiny_model_dir, task_dir, out))
    assert code == 2
    assert "disk full" in one_line(said)
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    stamp = (out / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    assert run(*train_options(tiny_model_dir, task_dir, out))[0] == 0
    assert (out / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == stamp


def test_help_is_fast_and_the_package_needs_no_torch() -> None:
    seconds = []  # of processor time: a clock on the wall also counts whatever else runs on the machine
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-m", "lorascope", "--help"], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert "quickstart" in done.stdout
    code = "import sys, lorascope, lorascope.cli; dir(lorascope); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert min(seconds) < 0.5


def test_every_command_has_help_that_names_its_options(run: Run) -> None:
    for command, word in (
        ("quickstart", "--ranks"),
        ("train", "--preset"),
        ("measure", "--variant"),
        ("report", "--title"),
    ):
        code, printed, _ = run(command, "--help")
        assert code == 0
        assert word in printed


@pytest.mark.parametrize("text", ["", "4,,5", "0", "4,4", "a"])
def test_ranks_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="--ranks"):
        parse_ranks(text)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["train", "--foo", "1"], "no such option: --foo"),
        (["train", "--rank", "x", "--out", "y"], "invalid value for '--rank': "),
        (["measure", "a", "--batch-size", "0"], "invalid value for '--batch-size': "),
        (["train", "--rank"], "option '--rank' requires an argument: "),
        (["measure"], "missing argument '"),
        (["mesure", "adapter"], "no such command 'mesure'"),
    ],
)
def test_wrong_usage_ends_in_one_line(run: Run, typed: list[str], said: str) -> None:
    code, out, err = run(*typed)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith(f"lorascope: {said}")
    assert err.rstrip().endswith("--help'")


def test_a_help_paragraph_fills_the_terminal_and_a_table_keeps_its_lines() -> None:
    told = {info.name: info.help or "" for info in app.registered_commands}
    assert "Then each runs at its rate on other seeds" in told["compare-inits"]
    assert "random\nWith labels:" in told["select"]


def test_help_and_version_are_no_errors(run: Run) -> None:
    for typed in (["--help"], ["train", "-h"], ["--version"]):
        code, out, err = run(*typed)
        assert (code, err) == (0, "")
        assert out.startswith("lorascope ") or "Usage: " in out
    code, out, err = run()
    assert (code, err) == (2, "")
    assert "quickstart" in out


def test_a_file_of_one_row_is_measured_and_not_trained_on(
    tmp_path: Path, tiny_model_dir: Path, adapter_dir: Path, run: Run
) -> None:
    file = tmp_path / "one.JSONL"
    file.write_text(json.dumps(ROWS[0]) + "\n")
    code, out, err = run("measure", adapter_dir, "--model", tiny_model_dir, "--task", file, "--json", "--no-progress")
    assert code == 0, err
    result = json.loads(out)
    assert (result["counts"]["samples"], result["counts"]["questions"]) == (1, 1)
    assert result["totals"]["miub_js"] > 0
    assert result["settings"]["evaluation"]["errors"] == {}
    code, out, err = run(*train_options(tiny_model_dir, file, tmp_path / "out"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "has 1 row in one file, none for split 'train'" in err
