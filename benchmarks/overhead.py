"""What a measurement costs beside a plain forward pass, on the embedded SmolLM2-135M.

Time: the same batches pass through the same adapted model plainly and measured, alternating, and the ratio of the
two is taken pair by pair; the median is reported with its quartiles. Memory: the peak resident set of a process that
does nothing else, one process for each mode, counted from after the model is loaded.

    python benchmarks/overhead.py [--rounds 7] [--rank 16] [--write docs/benchmarks/overhead.md]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MODES: dict[str, dict[str, Any]] = {
    "plain forward": {},
    "miub_js": {"metrics": ("miub_js",)},
    "miub_js, update_ratio, spectrum": {"metrics": ("miub_js", "update_ratio", "spectrum")},
    "miub_js and mi_joint": {"metrics": ("miub_js", "mi_joint")},
    "the same, joint_dim=2048 (no lumping)": {"metrics": ("miub_js", "mi_joint"), "joint_dim": 2048},
}
ROWS = 64


def prepare(rank: int, batch_size: int) -> tuple[Any, list[dict[str, Any]]]:
    """The model with an adapter whose update is about as large as a trained one's, and the batches."""
    import torch
    from peft import LoraConfig, get_peft_model

    from lorascope.measuring.batches import make_batches
    from lorascope.tasks import load_task
    from lorascope.tasks.embedded import load_model_and_tokenizer

    model, tokenizer = load_model_and_tokenizer("smollm2")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")).eval()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=2e-3)
    batches, _ = make_batches(load_task("towns"), tokenizer=tokenizer, batch_size=batch_size, limit=ROWS)
    return model, [{k: v for k, v in batch.items() if k != "labels"} for batch in batches]


def run_mode(model: Any, batches: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    import torch

    from lorascope.measuring import measure

    if settings:
        measure(model, batches, **settings, progress=False)
    else:
        with torch.no_grad():
            for batch in batches:
                model(**batch)


def forget_peak() -> None:
    """Let the peak count from now on (Linux), so that loading the model does not hide what comes after."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """The largest resident set since `forget_peak`, or of the whole process where the system can't say."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peak_memory_mib(mode: str, rank: int, batch_size: int) -> float:
    command = [sys.executable, __file__, "--only", mode, "--rank", str(rank), "--batch-size", str(batch_size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["peak_mib"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--only", choices=list(MODES))
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    model, batches = prepare(options.rank, options.batch_size)
    if options.only:
        forget_peak()
        run_mode(model, batches, MODES[options.only])
        print(json.dumps({"mode": options.only, "peak_mib": peak_mib()}))
        return

    from lorascope.core.provenance import collect

    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    for mode in MODES:
        run_mode(model, batches, MODES[mode])  # warm up
    for _ in range(options.rounds):
        for mode, settings in MODES.items():
            start = time.perf_counter()
            run_mode(model, batches, settings)
            seconds[mode].append(time.perf_counter() - start)
    tokens = int(sum(int(batch["attention_mask"].sum()) for batch in batches))
    memory = {mode: peak_memory_mib(mode, options.rank, options.batch_size) for mode in MODES}
    lines = [
        "# Cost of a measurement",
        "",
        f"SmolLM2-135M with rank {options.rank} on 210 layers, {ROWS} rows of the towns task in batches of "
        f"{options.batch_size} ({tokens} tokens); {options.rounds} alternating rounds. "
        "Limits aimed at: 1.35 for `miub_js`, 2.5 with the joint, "
        "1.5 for memory.",
        "",
        "| mode | time against plain, median (quartiles) | seconds, median | peak memory MiB | against plain |",
        "|---|---|---|---|---|",
    ]
    plain = seconds["plain forward"]
    for mode in MODES:
        ratios = [a / b for a, b in zip(seconds[mode], plain, strict=True)]
        q1, q2, q3 = statistics.quantiles(ratios, n=4, method="inclusive")
        lines.append(
            f"| {mode} | {q2:.2f} ({q1:.2f} to {q3:.2f}) | {statistics.median(seconds[mode]):.2f} | {memory[mode]:.0f} "
            f"| {memory[mode] / memory['plain forward']:.2f} |"
        )
    facts = collect(seed=0)
    lines += [
        "",
        "```json",
        json.dumps({k: facts[k] for k in ("created", "versions", "machine", "seed")}, indent=1),
        "```",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
