"""Memory of training a LoRA adapter: a base quantised by ICQ, by bitsandbytes' NF4, and dense; and of quantising on load.

Each variant runs in a process of its own: imports, then the model, a LoRA adapter on all linear layers, and some steps of
AdamW. Counted is the resident size above that after the imports: when the model is there, and at most during the steps. The
ICQ model is loaded from a folder that was quantised before, bitsandbytes quantises on load.

    python benchmarks/icq_memory.py [--model smollm2] [--batch 4] [--length 128] [--write docs/benchmarks/icq_memory.md]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

VARIANTS = ("dense", "nf4", "icq")


def load(variant: str, source: str, device: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    import lorascope.quantization  # noqa: F401  makes the method known

    options: dict[str, Any] = {"dtype": torch.float32, "device_map": {"": device}}
    if variant == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    return AutoModelForCausalLM.from_pretrained(source, **options)


def train(
    variant: str, source: str, batch: int, length: int, steps: int, checkpointing: bool, device: str
) -> dict[str, float]:
    import gc

    import psutil
    import torch
    from peft import LoraConfig, get_peft_model

    from lorascope.adapters import support_quantised
    from lorascope.quantization.resources import PeakMemory, weights_mib

    torch.manual_seed(0)
    process = psutil.Process()

    def memory() -> float:
        return (torch.cuda.memory_allocated() if device == "cuda" else process.memory_info().rss) / 2**20

    _ = torch.ones(4, 4, device=device) @ torch.ones(4, 4, device=device)
    gc.collect()
    before = memory()
    model = load(variant, source, device)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = support_quantised(LoraConfig(r=16, lora_alpha=16, target_modules=names))
    model = get_peft_model(model, config)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    stored = weights_mib(model)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    ids = torch.randint(0, 1000, (batch, length), generator=torch.Generator().manual_seed(0)).to(device)
    gc.collect()
    there = memory()
    with PeakMemory(torch.device(device)) as peak:
        for _ in range(steps):
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
    return {
        "tensors": stored,
        "loaded": there - before,
        "step": stored + peak.mib,
        "rise": peak.mib,
    }


def quantise(source: str, folder: str) -> dict[str, float]:
    """Rise of memory while a model is quantised on load and saved."""
    import psutil

    from lorascope.quantization import ICQConfig
    from lorascope.quantization.resources import PeakMemory, weights_mib
    from lorascope.quantization.whole import load_model

    before = psutil.Process().memory_info().rss
    with PeakMemory() as peak:
        model = load_model(source, config=ICQConfig(n=10))
    after = (psutil.Process().memory_info().rss - before) / 2**20
    model.save_pretrained(folder)
    return {"tensors": weights_mib(model), "loaded": after, "peak": peak.mib}


def in_a_process(*words: object) -> dict[str, float]:
    command = [sys.executable, __file__, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--write", type=Path)
    parser.add_argument("--only", choices=[*VARIANTS, "quantise"])
    parser.add_argument("--folder")
    options = parser.parse_args()

    from lorascope.tasks.embedded import resolve_model

    source = str(resolve_model(options.model))
    if options.only == "quantise":
        print(json.dumps(quantise(source, options.folder)))
        return
    if options.only:
        given = options.folder or source
        sizes = (options.batch, options.length, options.steps)
        print(json.dumps(train(options.only, given, *sizes, options.checkpointing, options.device)))
        return

    from lorascope.core.files import atomic_write_text
    from lorascope.core.provenance import collect

    with tempfile.TemporaryDirectory() as folder:
        loading = in_a_process("--only", "quantise", "--model", options.model, "--folder", folder)
        place = "the process" if options.device == "cpu" else "tensors on the GPU"
        sizes = ("--batch", options.batch, "--length", options.length, "--steps", options.steps)
        lines = [
            "# Memory of training on a quantised base",
            "",
            f"`{options.model}` in float32 with LoRA of rank 16 on all linear layers, {options.batch} rows of "
            f"{options.length} tokens, {options.steps} steps of AdamW. MiB of {place} above what it had after its imports. "
            "Most in a step: all tensors and the rise, after what loading left behind was given back to the system.",
            "",
            "| base | checkpointing | all tensors | model there | most in a step | against NF4 | rise in a step |",
            "|---|---|---|---|---|---|---|",
        ]
        for checkpointing in (False, True):
            found = {}
            for variant in VARIANTS:
                extra = ["--folder", folder] if variant == "icq" else []
                extra += ["--checkpointing"] if checkpointing else []
                found[variant] = in_a_process(
                    "--only", variant, "--model", options.model, *sizes, "--device", options.device, *extra
                )
            for variant, row in found.items():
                lines.append(
                    f"| {variant} | {'yes' if checkpointing else 'no'} | {row['tensors']:.0f} | {row['loaded']:.0f} | "
                    f"{row['step']:.0f} | {row['step'] / found['nf4']['step']:.3f} | {row['rise']:.0f} |"
                )
    lines += [
        "",
        f"Quantising on load: the model has {loading['tensors']:.0f} MiB of tensors afterwards; memory rises by "
        f"{loading['peak']:.0f} MiB at most and by {loading['loaded']:.0f} MiB in the end, which counts pages of the mapped "
        "checkpoint that the system may take back.",
        "",
    ]
    facts = collect(seed=0)
    kept = {key: facts[key] for key in ("created", "command", "versions", "machine", "seed")}
    lines += ["```json", json.dumps(kept, indent=1), "```"]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        atomic_write_text(options.write, text)


if __name__ == "__main__":
    main()
