"""Two processes give the numbers of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lorascope.measuring import measure
from lorascope.measuring.processes import device
from tests.measuring.architectures import adapted, batch_for

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, sys, warnings
warnings.simplefilter("ignore")
from lorascope.measuring import measure
from tests.measuring.architectures import adapted, batch_for
batches = [batch_for("llama", seed=seed) for seed in range(5)]
result = measure(adapted("llama"), batches, metrics="all", progress=False)
few = measure(adapted("llama"), batches[:1], metrics="all", progress=False)
from accelerate import PartialState
state = PartialState()
json.dump([result.to_dict(), few.to_dict(), state.num_processes], open(f"{sys.argv[1]}/{state.process_index}.json", "w"))
state.destroy_process_group()
"""


def test_accelerate_launch_with_two_processes_gives_the_numbers_of_one(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    paths = [str(ROOT), *(path for path in sys.path if path)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    # --multi_gpu is accelerate's name for "start the processes with torchrun"; --cpu alone would want MPI.
    command = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    subprocess.run([sys.executable, *command, str(script), str(tmp_path)], check=True, env=environment, timeout=300)
    batches = [batch_for("llama", seed=seed) for seed in range(5)]
    for count, index in ((5, 0), (1, 1)):
        alone = measure(adapted("llama"), batches[:count], metrics="all", progress=False)
        for process in (0, 1):
            together = json.loads((tmp_path / f"{process}.json").read_text())
            assert together[2] == 2
            assert together[index]["totals"] == pytest.approx(alone.totals, rel=1e-6)
            assert together[index]["counts"] == alone.counts
            for a, b in zip(together[index]["layers"], alone.layers, strict=True):
                assert a["mi_joint"] == pytest.approx(b["mi_joint"], rel=1e-6)


def test_an_accelerator_without_a_driver_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert device() == torch.device("cpu")
