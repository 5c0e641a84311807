from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorascope.core.errors import InputError
from lorascope.measuring import measure
from lorascope.tasks import PaddingCollator
from lorascope.training import InformationCallback, RunSpec, attach_lora

from .test_fit import Rows, weights
from .tiny import make_model, make_tokenizer

SPEC = RunSpec(rank=2, dropout=0.1)


def make_trainer(folder: Path, rows: Any, callbacks: list[TrainerCallback], **options: Any) -> Trainer:
    options = {"eval_dataset": rows[:6], "metric_for_best_model": None, "load_best_model_at_end": False} | options
    use_cpu = bool(options.pop("use_cpu", False))
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        learning_rate=1e-2,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        logging_steps=1,
        report_to=[],
        use_cpu=use_cpu,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        load_best_model_at_end=options["load_best_model_at_end"],
        metric_for_best_model=options["metric_for_best_model"],
    )
    return Trainer(
        model=attach_lora(make_model(), SPEC),
        args=arguments,
        train_dataset=rows,
        eval_dataset=options["eval_dataset"],
        data_collator=PaddingCollator(256),
        callbacks=callbacks,
    )


class Spy(TrainerCallback):  # type: ignore[misc]
    """What a tracker such as tensorboard would see."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append({**logs, "step": state.global_step})


def logged(trainer: Trainer, name: str) -> dict[int, float]:
    return {line["step"]: line[name] for line in trainer.state.log_history if name in line}


def test_values_reach_history_trackers_and_the_returned_metrics(tmp_path: Path, features: Rows) -> None:
    spy = Spy()
    trainer = make_trainer(tmp_path, features(16), [InformationCallback(), spy])
    trainer.train()
    values = logged(trainer, "eval_miub_js")
    assert set(values) == {2, 4}
    assert 0 < values[2] < values[4]
    assert {line["step"] for line in spy.logs if "eval_update_ratio" in line} == {2, 4}
    assert trainer.evaluate()["eval_miub_js"] == pytest.approx(values[4])


def test_the_values_are_those_of_measure(tmp_path: Path, features: Rows) -> None:
    rows = features(16)
    trainer = make_trainer(tmp_path, rows, [InformationCallback(metrics=("miub_js", "ce"), max_samples=5)])
    trainer.train()
    found = measure(
        trainer.model, rows[:5], tokenizer=make_tokenizer(), metrics=("miub_js", "ce"), batch_size=4, progress=False
    )
    assert logged(trainer, "eval_miub_js")[4] == pytest.approx(found.totals["miub_js"], rel=1e-6)
    assert logged(trainer, "eval_ce")[4] == pytest.approx(found.totals["ce"], rel=1e-6)


def test_training_is_untouched_to_the_last_bit(tmp_path: Path, features: Rows) -> None:
    plain = make_trainer(tmp_path / "a", features(16), [])
    plain.train()
    callback = InformationCallback(metrics="all", variant="base")
    watched = make_trainer(tmp_path / "b", features(16), [callback])
    watched.train()
    assert torch.equal(weights(plain.model), weights(watched.model))
    assert logged(plain, "loss") == logged(watched, "loss")
    assert logged(plain, "eval_loss") == logged(watched, "eval_loss")
    assert plain.model.training == watched.model.training


def test_mode_and_gradients_stay(tmp_path: Path, features: Rows) -> None:
    trainer = make_trainer(tmp_path, features(8), [InformationCallback()])
    before: list[tuple[bool, bool]] = []

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            before.append((model.training, any(p.grad is not None for p in model.parameters())))

    for place in (0, len(trainer.callback_handler.callbacks) + 1):
        trainer.callback_handler.callbacks.insert(place, Watch())
    trainer.evaluate()
    assert before == [before[0]] * 2
    assert sum(p.requires_grad for p in trainer.model.parameters()) == 28


def test_best_model_can_be_chosen_by_information(tmp_path: Path, features: Rows) -> None:
    trainer = make_trainer(
        tmp_path,
        features(16),
        [InformationCallback()],
        metric_for_best_model="eval_miub_js",
        load_best_model_at_end=True,
    )
    trainer.args.greater_is_better = False
    trainer.train()
    assert trainer.state.best_global_step == 2
    assert trainer.state.best_metric == pytest.approx(logged(trainer, "eval_miub_js")[2])


def test_several_evaluation_sets_have_their_own_names(tmp_path: Path, features: Rows) -> None:
    rows = features(16)
    trainer = make_trainer(tmp_path, rows, [InformationCallback()], eval_dataset={"near": rows[:4], "far": rows[8:12]})
    metrics = trainer.evaluate()
    assert {"eval_near_miub_js", "eval_far_miub_js"} <= set(metrics)


def test_own_data_prefix_and_metrics(tmp_path: Path, features: Rows) -> None:
    rows = features(16)
    callback = InformationCallback(rows[8:12], metrics=("effective_rank",), prefix="probe/")
    trainer = make_trainer(tmp_path, [row for row in rows if len(row["input_ids"]) == 6], [callback])
    trainer.processing_class = trainer.callback_handler.processing_class = make_tokenizer()
    trainer.train()
    assert set(logged(trainer, "probe/effective_rank")) == {2, 4}
    assert not logged(trainer, "probe/miub_js")


def test_bad_values_are_refused_when_it_is_made() -> None:
    with pytest.raises(InputError, match="unknown metric 'mub_js': did you mean 'miub_js'"):
        InformationCallback(metrics=("mub_js",))
    with pytest.raises(InputError, match="max_samples 0"):
        InformationCallback(max_samples=0)
    with pytest.raises(InputError, match="unknown variant 'both'"):
        InformationCallback(variant="both")
    with pytest.raises(InputError, match="unknown tokens 'some'"):
        InformationCallback(tokens="some")


def test_without_data_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no data: pass data="):
        InformationCallback().on_evaluate(
            TrainingArguments(output_dir=str(tmp_path), report_to=[]), TrainerState(), TrainerControl(), {}, model=None
        )


def test_outside_a_trainer_values_are_kept_and_said(tmp_path: Path, features: Rows) -> None:
    rows = [features(1)[0]] * 3
    model, state, metrics = attach_lora(make_model(), SPEC), TrainerState(), {}
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[])
    with pytest.warns(UserWarning, match="called by no Trainer"):
        InformationCallback(rows).on_evaluate(arguments, state, TrainerControl(), metrics, model=model)
    assert metrics["eval_miub_js"] == 0
    assert state.log_history[0]["eval_miub_js"] == 0


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")  # TRL's own default
def test_trl_sft_trainer(tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = Dataset.from_list([{"prompt": f"Town {i}?", "completion": f" Land {i % 3}"} for i in range(12)])
    spy = Spy()
    trainer = SFTTrainer(
        model=make_model(),
        args=SFTConfig(
            output_dir=str(tmp_path),
            max_steps=4,
            per_device_train_batch_size=4,
            per_device_eval_batch_size=4,
            learning_rate=1e-2,
            eval_strategy="steps",
            eval_steps=2,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
            bf16=False,
            max_length=64,
        ),
        train_dataset=rows,
        eval_dataset=rows.select(range(4)),
        processing_class=make_tokenizer(),
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[InformationCallback(tokens="completion"), spy],
    )
    trainer.train()
    assert isinstance(trainer.model, PeftModel)
    values = logged(trainer, "eval_miub_js")
    assert set(values) == {2, 4}
    assert 0 < values[2] < values[4]
    assert any("eval_miub_js" in line for line in spy.logs)
    assert all("eval_mean_token_accuracy" in line for line in spy.logs if "eval_loss" in line)


SCRIPT = """
import json, sys
from pathlib import Path
import torch
from tests.training.test_callback import make_trainer
from lorascope.training import InformationCallback

out, rows = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
trainer = make_trainer(out / "run", rows, [InformationCallback()], use_cpu=True)
for name, parameter in trainer.model.named_parameters():
    if "lora_B" in name:
        torch.nn.init.constant_(parameter, 0.02)
metrics = trainer.evaluate()
trainer.train()
history = [line["step"] for line in trainer.state.log_history if "eval_miub_js" in line]
record = {"world": trainer.args.world_size, "history": history, **metrics}
(out / f"rank{trainer.args.process_index}.json").write_text(json.dumps(record))
"""


def launch(script: Path, out: Path, rows: Path, count: int) -> list[dict[str, Any]]:
    root = Path(__file__).parents[2]
    paths = [str(root), *(path for path in sys.path if path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    environment |= {"ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(count), "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--multi_gpu", "--main_process_port", "0"] if count > 1 else ["--cpu"]
    out.mkdir()
    done = subprocess.run(
        [*command, str(script), str(out), str(rows)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(path.read_text()) for path in sorted(out.glob("rank*.json"))]
    assert [metrics["world"] for metrics in found] == [count] * count
    return found


def test_two_processes_agree_with_one_and_train(tmp_path: Path, features: Rows) -> None:
    script, rows = tmp_path / "script.py", tmp_path / "rows.json"
    script.write_text(SCRIPT)
    rows.write_text(json.dumps(features(16)))
    (one,) = launch(script, tmp_path / "one", rows, 1)
    for metrics in launch(script, tmp_path / "two", rows, 2):
        assert metrics["history"] == [2, 4]
        for name in ("eval_miub_js", "eval_update_ratio"):
            assert one[name] > 0
            assert metrics[name] == pytest.approx(one[name], rel=1e-6)
