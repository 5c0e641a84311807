"""What the elastic connection costs: a training step and an evaluation pass, against plain LoRA and after folding.

Three adapters sit on one model (plain LoRA, elastic, and the elastic one folded), and take turns in one run, so that
whatever else the machine does meets all alike. Ratios are of neighbouring measurements.

    python benchmarks/elastic_step.py [--rounds 12] [--write docs/benchmarks/elastic_step.md]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel

from lorascope.adapters import attach_adapter, elastic_parameter_groups, fold_adapter
from lorascope.adapters.elastic import betas
from lorascope.core.files import atomic_write_text
from lorascope.core.provenance import collect
from lorascope.measuring import load_model_and_tokenizer
from lorascope.training import RunSpec, attach_lora

Pair = tuple[Callable[[], None], Callable[[], None]]
"""What comes before the clock, and what is timed."""

NAMES = ("plain", "elastic", "folded")


def adapters(rank: int, quantize: str | None, device: str) -> tuple[PeftModel, float]:
    """A model with the three adapters, and the largest difference of logits that folding made."""
    generator = torch.Generator().manual_seed(1)
    base, _ = load_model_and_tokenizer("smollm2", quantize=quantize, device=device)
    model = attach_lora(base, RunSpec(rank=rank, elastic="both", quantize=quantize))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = 0.1 if name.endswith("beta") else 0.01
            parameter.data.add_(scale * torch.randn(parameter.shape, generator=generator).to(device))
    ids = torch.randint(0, 40_000, (4, 25), generator=generator).to(device)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(f"{folder}/elastic")
        fold_adapter(f"{folder}/elastic", f"{folder}/folded")
        before = model.eval()(input_ids=ids).logits
        model = attach_adapter(model.unload(), f"{folder}/elastic", name="elastic")
        model.load_adapter(f"{folder}/folded", "folded")
        model.set_adapter("folded")
        off = float((model(input_ids=ids).logits - before).abs().max() / before.abs().max())
    layers = model.peft_config["folded"].target_modules
    model.add_adapter("plain", LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers))
    return model, off


def timed(rounds: int, run: Callable[[str], Pair]) -> dict[str, list[tuple[float, float]]]:
    """Seconds by the clock and of the processor, each adapter in turn; the order is reversed every other round."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in NAMES}
    for index in range(rounds + 2):
        for name in NAMES[:: 1 if index % 2 else -1]:
            prepare, work = run(name)
            prepare()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            spent = time.perf_counter() - wall, time.process_time() - cpu
            if index > 1:  # the first two rounds warm up
                found[name].append(spent)
    return found


def summary(found: dict[str, list[tuple[float, float]]]) -> dict[str, dict[str, float]]:
    """Median seconds, and median ratio to plain LoRA of the same round with its quartiles."""
    rows = {}
    for name in NAMES:
        row = {}
        for kind, index in (("clock", 0), ("processor", 1)):
            mine = [pair[index] for pair in found[name]]
            ratios = [a / b[index] for a, b in zip(mine, found["plain"], strict=True)]
            low, _, high = statistics.quantiles(ratios, n=4)
            row |= {f"{kind}_s": statistics.median(mine), f"{kind}_ratio": statistics.median(ratios)}
            row |= {f"{kind}_low": low, f"{kind}_high": high}
        rows[name] = row
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 2], help="rows of 25 tokens a step")
    parser.add_argument("--quantize", help="of the base, such as icq-nf4; by default dense")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    model, off = adapters(options.rank, options.quantize, options.device)
    connected = len(betas(model))
    tables = []
    for rows in options.rows:
        ids = torch.randint(0, 40_000, (rows, 25), generator=torch.Generator().manual_seed(0)).to(options.device)
        optimizers = {}
        for name in NAMES:
            model.set_adapter(name)
            optimizers[name] = torch.optim.AdamW(
                elastic_parameter_groups(model, learning_rate=1e-4, elastic_learning_rate=1e-3)
            )

        def training(name: str, ids: torch.Tensor = ids, optimizers: Any = optimizers) -> Pair:
            def work() -> None:
                model(input_ids=ids, labels=ids).loss.backward()
                optimizers[name].step()
                optimizers[name].zero_grad()

            def prepare() -> None:
                model.set_adapter(name)
                model.train()

            return prepare, work

        def evaluating(name: str, ids: torch.Tensor = ids) -> Pair:
            def work() -> None:
                with torch.no_grad():
                    model(input_ids=ids)

            def prepare() -> None:
                model.set_adapter(name)
                model.eval()

            return prepare, work

        for title, run in (("training step", training), ("evaluation pass", evaluating)):
            tables.append((f"{title}, {rows} rows of 25 tokens", summary(timed(options.rounds, run))))
            print(tables[-1], flush=True)
    target = {name: tables[0][1][name]["clock_ratio"] for name in NAMES}
    where = f"{torch.get_num_threads()} threads" if options.device == "cpu" else f"one {torch.cuda.get_device_name()}"
    lines = [
        "# What the elastic connection costs",
        "",
        f"SmolLM2-135M ({options.quantize or 'dense'}), rank {options.rank} on all dense layers, {connected} connections, "
        f"{where}, float32. Three adapters on one model take turns, {options.rounds} rounds after "
        "two to warm up; ratios are to plain LoRA in the same round (median, and quartiles in brackets).",
        "",
        f"A training step with the elastic connection takes **{target['elastic']:.3f} times** that of plain LoRA (wanted: "
        f"at most 1.08). Folded, it takes {target['folded']:.3f} times; folding changed logits by {off:.1e} of the largest.",
        "",
        "| | adapter | seconds | ratio, clock | ratio, processor time |",
        "|---|---|---|---|---|",
    ]
    for title, rows_of in tables:
        for name, row in rows_of.items():
            ratios = [
                f"{row[f'{kind}_ratio']:.3f} ({row[f'{kind}_low']:.3f} to {row[f'{kind}_high']:.3f})"
                for kind in ("clock", "processor")
            ]
            lines.append(f"| {title} | {name} | {row['clock_s']:.3f} | {ratios[0]} | {ratios[1]} |")
    facts = collect(seed=0)
    lines += [
        "",
        "```json",
        json.dumps({key: facts[key] for key in ("created", "versions", "machine")}, indent=1),
        "```",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        atomic_write_text(options.write, text)


if __name__ == "__main__":
    main()
