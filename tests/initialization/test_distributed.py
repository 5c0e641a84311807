"""Two processes start an adapter as one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from lorascope import initialize_lora_fisher
from tests.measuring.architectures import ARCHITECTURES, batch_for

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
from lorascope.measuring.processes import processes
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from lorascope import initialize_lora_fisher
from tests.measuring.architectures import ARCHITECTURES, batch_for
state = processes()
for mode, count, options in CASES:
    torch.manual_seed(0)
    base = ARCHITECTURES["llama"].build()
    torch.manual_seed(state.process_index)  # as a careless program: PEFT's own start differs between processes
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear")).eval()
    data = [batch_for("llama", seed=seed) for seed in range(count)]
    initialize_lora_fisher(model, data, mode, progress=False, **options)
    kept = {name: p.detach().contiguous() for name, p in model.named_parameters() if "lora_" in name}
    save_file(kept, f"{sys.argv[1]}/{mode}-{count}-{state.process_index}.safetensors")
state.destroy_process_group()
"""
CASES = [
    ("fisher", 5, {}),
    ("fisher", 1, {"budget": 3000}),  # one process has no batch at all
    ("natural_gradient", 4, {"max_memory": 60_000}),
    ("random", 1, {}),
]


def test_two_processes_give_the_weights_of_one(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("CASES", repr(CASES)))
    paths = [str(ROOT), *(path for path in sys.path if path)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    command = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    subprocess.run([sys.executable, *command, str(script), str(tmp_path)], check=True, env=environment, timeout=300)
    for mode, count, options in CASES:
        first, second = (load_file(str(tmp_path / f"{mode}-{count}-{process}.safetensors")) for process in (0, 1))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = get_peft_model(ARCHITECTURES["llama"].build(), LoraConfig(r=4, target_modules="all-linear")).eval()
        data = [batch_for("llama", seed=seed) for seed in range(count)]
        initialize_lora_fisher(model, data, mode, progress=False, **options)
        alone = {name: p.detach() for name, p in model.named_parameters() if "lora_" in name}
        assert first.keys() == second.keys() == alone.keys()
        for name in alone:
            assert torch.equal(first[name], second[name]), "both processes have the same"
            if "lora_A" in name:
                basis = torch.linalg.qr(alone[name].double().T).Q
                same = torch.linalg.qr(first[name].double().T).Q
                assert float((basis.T @ same).square().sum()) > len(alone[name]) * (1 - 1e-3), (mode, name)
