from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback, TrainerControl, TrainerState
from transformers.utils import logging as transformers_logging

from lorascope.core.errors import InputError, OutputError
from lorascope.tasks import PaddingCollator
from lorascope.training import RunSpec, attach_lora
from lorascope.training import fit as fit_module
from lorascope.training.fit import fit, training_arguments
from lorascope.training.observers import Interrupt, LossHistory

from .tiny import make_model

Rows = Callable[[int], list[dict[str, list[int]]]]
SPEC = RunSpec(rank=2, dropout=0.1, learning_rate=1e-2, batch_size=4, max_steps=8, save_steps=2, schedule="linear")


class Stop(TrainerCallback):  # type: ignore[misc]
    """Crashes, or presses Ctrl-C, when a step has been done."""

    def __init__(self, step: int, action: Callable[[], None]) -> None:
        self.step, self.action = step, action

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.action()


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for n, p in model.named_parameters() if "lora_" in n])


def train(folder: Path, rows: Any, spec: RunSpec = SPEC) -> tuple[torch.Tensor, list[dict[str, Any]], bool]:
    lines: list[dict[str, Any]] = []

    def rewind(step: int) -> None:
        lines[:] = [line for line in lines if line["step"] <= step]

    model = attach_lora(make_model(), spec)
    stop = fit(model, rows, PaddingCollator(256), spec, folder, write=lines.append, rewind=rewind, progress=False)
    return weights(model), lines, stop


def add_callback(monkeypatch: pytest.MonkeyPatch, callback: TrainerCallback) -> None:
    before = fit_module.AdapterTrainer.__init__

    def init(self: Any, *args: Any, callbacks: list[Any], **kwargs: Any) -> None:
        before(self, *args, callbacks=[callback, *callbacks], **kwargs)

    monkeypatch.setattr(fit_module.AdapterTrainer, "__init__", init)


def test_same_seed_same_numbers_and_no_global_trace(tmp_path: Path, features: Rows) -> None:
    # Python's own generator can't be watched here: the run-time checks of annotations draw from it.
    before = (np.random.get_state()[1].tolist(), torch.get_rng_state())  # noqa: NPY002
    verbosity, handler = transformers_logging.get_verbosity(), signal.getsignal(signal.SIGINT)
    first, history, _ = train(tmp_path / "a", features(18))
    assert torch.equal(torch.get_rng_state(), before[1])
    torch.manual_seed(99)
    second, again, _ = train(tmp_path / "b", features(18))
    torch.set_rng_state(before[1])
    assert torch.equal(first, second)
    assert history == again
    assert [line["step"] for line in history] == list(range(1, 9))
    assert history[-1]["loss"] < history[0]["loss"]
    assert np.random.get_state()[1].tolist() == before[0]  # noqa: NPY002
    assert transformers_logging.get_verbosity() == verbosity
    assert signal.getsignal(signal.SIGINT) is handler


def test_another_seed_other_numbers(tmp_path: Path, features: Rows) -> None:
    import dataclasses

    first, _, _ = train(tmp_path / "a", features(18))
    other, _, _ = train(tmp_path / "b", features(18), dataclasses.replace(SPEC, seed=1))
    assert not torch.allclose(first, other)


@pytest.mark.parametrize("crash", [3, 5, 7])
def test_resumed_run_equals_an_undisturbed_one(
    tmp_path: Path, features: Rows, monkeypatch: pytest.MonkeyPatch, crash: int
) -> None:
    """18 rows in batches of 4 are 5 steps an epoch: the crash comes within, at the end of, and after the first."""
    whole, history, _ = train(tmp_path / "whole", features(18))

    def boom() -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        add_callback(patch, Stop(crash, boom))
        with pytest.raises(RuntimeError, match="power cut"):
            train(tmp_path / "cut", features(18))
    newest = max(int(path.name.split("-")[1]) for path in (tmp_path / "cut").iterdir())
    assert newest == crash - 1
    resumed, later, _ = train(tmp_path / "cut", features(18))
    torch.testing.assert_close(resumed, whole, rtol=0, atol=1e-6)
    assert [line["step"] for line in later] == list(range(newest + 1, 9))
    for line, other in zip(later, history[newest:], strict=True):
        assert line["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert line["learning_rate"] == pytest.approx(other["learning_rate"])


def test_gradient_accumulation_is_resumed_too(tmp_path: Path, features: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    spec = dataclasses.replace(SPEC, micro_batch_size=2)
    whole, _, _ = train(tmp_path / "whole", features(18), spec)

    def boom() -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        add_callback(patch, Stop(3, boom))
        with pytest.raises(RuntimeError):
            train(tmp_path / "cut", features(18), spec)
    resumed, _, _ = train(tmp_path / "cut", features(18), spec)
    torch.testing.assert_close(resumed, whole, rtol=0, atol=1e-6)


def test_ctrl_c_saves_the_step_and_the_rerun_goes_on(
    tmp_path: Path, features: Rows, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, _, _ = train(tmp_path / "whole", features(18))
    with monkeypatch.context() as patch:
        add_callback(patch, Stop(3, lambda: os.kill(os.getpid(), signal.SIGINT)))
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut", features(18))
    assert "press Ctrl-C again" in capsys.readouterr().err
    assert (tmp_path / "cut" / "checkpoint-3").is_dir()
    resumed, later, _ = train(tmp_path / "cut", features(18))
    assert later[0]["step"] == 4
    torch.testing.assert_close(resumed, whole, rtol=0, atol=1e-6)


def test_ctrl_c_in_the_last_step_finishes_first(
    tmp_path: Path, features: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_callback(monkeypatch, Stop(8, lambda: os.kill(os.getpid(), signal.SIGINT)))
    _, lines, stop = train(tmp_path, features(18))
    assert stop
    assert lines[-1]["step"] == 8
    assert not (tmp_path / "checkpoint-8").exists()


def test_second_ctrl_c_stops_at_once() -> None:
    interrupt = Interrupt()
    interrupt.handle(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        interrupt.handle(signal.SIGINT, None)


def test_broken_checkpoint_is_said_and_the_previous_one_used(
    tmp_path: Path, features: Rows, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, _, _ = train(tmp_path / "whole", features(18))

    def boom() -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        add_callback(patch, Stop(5, boom))
        with pytest.raises(RuntimeError):
            train(tmp_path / "cut", features(18))
    broken = tmp_path / "cut" / "checkpoint-4"
    (broken / "optimizer.pt").write_bytes((broken / "optimizer.pt").read_bytes()[:200])
    resumed, later, _ = train(tmp_path / "cut", features(18))
    assert f"skipping interrupted checkpoint '{broken}'" in capsys.readouterr().err
    assert later[0]["step"] == 3
    torch.testing.assert_close(resumed, whole, rtol=0, atol=1e-6)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full: Linux has one, macOS none")
def test_full_disk_is_said_and_earlier_checkpoints_stay(tmp_path: Path, features: Rows) -> None:
    later = tmp_path / "checkpoint-4"
    later.mkdir()
    (later / "optimizer.pt").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="disk full") as caught:
        train_keeping(tmp_path, features(18))
    assert "\n" not in str(caught.value)
    assert (tmp_path / "checkpoint-2" / "trainer_state.json").is_file()


def train_keeping(folder: Path, rows: Any) -> None:
    """Train without deleting the prepared folder first."""
    import unittest.mock

    from lorascope.training.checkpoints import Resume

    with unittest.mock.patch.object(fit_module, "find_resume", return_value=Resume(None, 0, ())):
        train(folder, rows)


def test_checkpoints_hold_the_adapter_only_and_no_pickled_arguments(tmp_path: Path, features: Rows) -> None:
    train(tmp_path, features(18))
    names = {path.name for path in (tmp_path / "checkpoint-6").iterdir()}
    assert "adapter_model.safetensors" in names
    assert "training_args.bin" not in names
    assert not any(name.startswith(("model", "pytorch_model")) for name in names)


def test_divergence_names_step_and_learning_rate(
    tmp_path: Path, features: Rows, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    spec = RunSpec(rank=2, learning_rate=1e30, batch_size=4, max_steps=8, max_grad_norm=0)
    with pytest.raises(InputError, match=r"loss is (nan|inf) at step \d+ with learning_rate 1e\+30.*smaller"):
        train(tmp_path, features(18), spec)


def test_loss_history_ignores_other_logs(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = []
    args = training_arguments(SPEC, 8, tmp_path)
    LossHistory(lines.append).on_log(args, TrainerState(), TrainerControl(), logs={"eval_loss": 1.0})
    assert lines == []


def test_arguments_follow_the_spec(tmp_path: Path) -> None:
    args = training_arguments(RunSpec.from_mapping({"preset": "paper", "micro_batch_size": 8}), 1000, tmp_path)
    assert (args.learning_rate, args.adam_beta1, args.adam_beta2, args.weight_decay) == (4e-5, 0.9, 0.999, 0.0)
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 32
    assert args.save_steps == 8
    assert args.report_to == []
    with pytest.raises(InputError, match="unknown tracker in report_to 'wandbb': did you mean 'wandb'"):
        training_arguments(RunSpec(report_to="wandbb"), 10, tmp_path)
