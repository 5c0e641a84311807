"""A whole model quantised by ICQ: how long it takes, what each kind of layer keeps and loses, what it does to the outputs,
and the studies of `lorascope quantize-study` on its weights.

Outputs: rows of held-out text pass through the dense model and through its quantised forms; reported is the mean
Kullback-Leibler divergence of the next token's distribution from the dense model's, with a 95 % interval over rows, and the
cross-entropy. Forms are compared on the same rows.

    python benchmarks/icq_model.py [--model smollm2] [--other FOLDER] [--rows 32] [--write docs/benchmarks/icq_model.md]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorascope.cli._quantize_study import loader
from lorascope.core.files import atomic_write_text
from lorascope.core.provenance import collect
from lorascope.quantization import ICQConfig, icq_layers, quantize_model
from lorascope.quantization.resources import resources
from lorascope.quantization.starts import STARTS, median_start
from lorascope.quantization.studies import ceiling, sample_blocks, sensitivity
from lorascope.quantization.whole import load_model, quantizable_weights
from lorascope.tasks.embedded import quiet_transformers, resolve_model

FORMS = {
    "NF4, no shift": ICQConfig(objective="none"),
    "ICQ-NF4, entropy (default)": ICQConfig(),
    "ICQ-NF4, mse": ICQConfig(objective="mse"),
    "NF3, no shift": ICQConfig(bits=3, objective="none"),
    "ICQ-NF3, entropy": ICQConfig(bits=3),
    "ICQ-NF3, mse": ICQConfig(bits=3, objective="mse"),
}


def whole(source: str) -> tuple[list[str], Any]:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        report = quantize_model(source, Path(folder) / "q", ICQConfig(), compare=False)
        alone = time.perf_counter() - start
        start = time.perf_counter()
        report = quantize_model(source, Path(folder) / "q2", ICQConfig())
        compared = time.perf_counter() - start
    totals = report.totals
    lines = [
        "## Whole",
        "",
        f"{totals['quantized_weights'] / 1e6:.1f} million weights with the defaults (4 bits, n = 100, lambda = 0.1, 8-bit "
        f"scales and shifts), on {torch.get_num_threads()} threads: {alone:.1f} s from the dense folder to the quantised "
        f"one, {compared:.1f} s with the comparison without a search that `lorascope quantize` makes too "
        "(the first of the two calls waits for numba to compile). "
        f"{totals['bytes_before'] / 2**20:.0f} MiB become {totals['bytes_after'] / 2**20:.0f} MiB: "
        f"{totals['kept_weights'] / 1e6:.1f} million weights stay dense, quantised ones take "
        f"{totals['bits_per_weight']:.3f} bits.",
        "",
        "| layers | entropy of the codes, bits | without a search | relative error | without a search |",
        "|---|---|---|---|---|",
    ]
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in report.layers:
        groups.setdefault(record["name"].rpartition(".")[2], []).append(record)
    keys = ("entropy_bits", "entropy_bits_plain", "relative_error", "relative_error_plain")
    for name, members in groups.items():
        cells = [f"{np.mean([member[key] for member in members]):.4f}" for key in keys]
        lines.append(f"| {name} ({len(members)}) | {' | '.join(cells)} |")
    lines.append(f"| all | {' | '.join(f'{totals[key]:.4f}' for key in keys)} |")
    return [*lines, ""], report


def outputs(source: str, count: int, length: int) -> list[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    rows = text_rows(tokenizer, count, length)
    with quiet_transformers(reports=True):
        dense = load_model(source, dtype="float32")
    reference = logits(dense, rows)
    ids = rows[:, 1:, None]
    plain = -reference.gather(2, ids).squeeze(2).mean()
    lines = [
        "## What it does to the outputs",
        "",
        f"{rows.shape[0]} rows of {length} tokens; cross-entropy of the dense model {float(plain):.4f} nats a token.",
        "",
        "| weights | entropy of the codes, bits | relative error | KL from the dense model, nats a token (95 %) "
        "| cross-entropy | against NF4 on the same rows (95 %) |",
        "|---|---|---|---|---|---|",
    ]
    weights = dict(quantizable_weights(dense))
    first = None
    for name, config in FORMS.items():
        with quiet_transformers(reports=True):
            model = load_model(source, dtype="float32", config=config)
        entropy = blocks = 0.0
        lost = square = 0.0
        for key, layer in icq_layers(model).items():
            found = layer.block_entropy_bits()
            entropy, blocks = entropy + float(found.sum()), blocks + found.numel()
            lost += float((layer.dequantize(torch.float32) - weights[key]).double().square().sum())
            square += float(weights[key].double().square().sum())
        given = logits(model, rows)
        del model
        divergence = (reference.exp() * (reference - given)).sum(dim=2).mean(dim=1).double().numpy()
        loss = -given.gather(2, ids).squeeze(2).mean()
        if first is None or name.startswith("NF3"):
            first = divergence
        gap = divergence - first
        wide, apart = (1.96 * d.std(ddof=1) / len(d) ** 0.5 for d in (divergence, gap))
        against = "" if first is divergence else f"{gap.mean():+.4f} ± {apart:.4f}"
        lines.append(
            f"| {name} | {entropy / blocks:.4f} | {(lost / square) ** 0.5:.4f} | {divergence.mean():.4f} ± {wide:.4f} | "
            f"{float(loss):.4f} | {against} |"
        )
    return [*lines, "", "NF3 forms are compared with NF3 without a shift.", ""]


def text_rows(tokenizer: Any, count: int, length: int) -> torch.Tensor:
    """The first tokens of test speeches of the task `sotu`."""
    from lorascope.tasks.sotu import sotu

    speeches = sotu()[0]["test"]
    found = [tokenizer(row.text[: length * 12])["input_ids"][:length] for row in speeches]
    return torch.tensor([ids for ids in found if len(ids) == length][:count])


def logits(model: Any, rows: torch.Tensor) -> torch.Tensor:
    found = []
    with torch.no_grad():
        for part in torch.split(rows, 4):
            found.append(model(input_ids=part).logits[:, :-1].float().log_softmax(dim=2))
    return torch.cat(found)


def studies(models: dict[str, Any]) -> list[str]:
    lines = ["## Sensitivity to n and lambda", ""]
    ns, lams = (1, 5, 10, 25, 50, 100, 200), (0.02, 0.05, 0.1, 0.2, 0.4)
    for name, blocks in models.items():
        rows = sensitivity(blocks, ns=ns, lams=lams)
        for key, label, digits in (
            ("gain_bits", "entropy gained, bits", 4),
            ("error_ratio", "squared error over that without a shift", 3),
        ):
            lines += [
                f"`{name}`, {label}:",
                "",
                f"| lambda | {' | '.join(f'n = {n}' for n in ns)} |",
                f"|{'---|' * (len(ns) + 1)}",
            ]
            for lam in lams:
                cells = [f"{row[key]:.{digits}f}" for row in rows if row["lam"] == lam]
                lines.append(f"| {lam:g} | {' | '.join(cells)} |")
            lines.append("")
    lines += ["## Ceiling, and how much of the gain is noise", ""]
    rows = ceiling(models)
    keys = [key for key in rows[0] if key not in ("model", "bits", "levels_bits")]
    lines += [f"| model | bits | {' | '.join(keys)} |", f"|{'---|' * (len(keys) + 2)}"]
    lines += [f"| {r['model']} | {r['bits']} | {' | '.join(f'{r[k]:.4f}' for k in keys)} |" for r in rows]
    lines += ["", "## The median as a start", ""]
    found, _ = median_start(models)
    shape = ("off_centre", "skewness", "excess_kurtosis", "beyond_4_sigma", "not_normal")
    lines += [f"| model | kind | layers | {' | '.join(shape)} |", f"|{'---|' * (len(shape) + 3)}"]
    lines += [
        f"| {r['model']} | {r['kind']} | {r['layers']} | {' | '.join(f'{r[k]:.4f}' for k in shape)} |" for r in found
    ]
    starts = [f"{start}{after}" for start in STARTS for after in ("", "_searched")]
    lines += ["", f"| model | kind | {' | '.join(starts)} |", f"|{'---|' * (len(starts) + 2)}"]
    lines += [f"| {r['model']} | {r['kind']} | {' | '.join(f'{r[k]:.3f}' for k in starts)} |" for r in found]
    return [*lines, ""]


def passes(source: str, rounds: int) -> list[str]:
    """Memory and time of a pass, by batch and length; what `lorascope quantize-study resources` measures."""
    load, vocabulary = loader(source, bits=4, dtype="float32", device="cpu")
    lengths = (1, 32, 128)
    rows = resources(load, vocabulary=vocabulary, lengths=lengths, rounds=rounds, progress=True)
    lines = [
        "## Memory and time of a pass",
        "",
        f"float32, {torch.get_num_threads()} threads; median of {rounds} passes after one. `backward`: forward, and "
        "backward to the embeddings, which is what a step of training adapters costs but for the adapters. nf4: "
        "bitsandbytes with nested scales, computing in float32. Rise: of the process's memory during a pass.",
        "",
        "| base | weights, MiB | pass | rows | tokens | rise, MiB | seconds | over dense |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['variant']} | {row['weights_mib']:.0f} | {row['mode']} | {row['batch']} | {row['length']} | "
            f"{row['peak_mib']:.0f} | {row['seconds']:.3f} | {row['time_ratio']:.2f} |"
        )
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--other", type=Path, action="append", default=[], help="folder of another model to study")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--limit", type=int, default=64, help="blocks of a layer in the studies")
    parser.add_argument("--parts", default="whole,outputs,studies", help="whole, outputs, studies, resources")
    parser.add_argument("--rounds", type=int, default=3, help="passes that are timed in the part resources")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    source = str(resolve_model(options.model))
    parts = options.parts.split(",")
    lines = [
        f"# `{options.model}` quantised by ICQ",
        "",
        "The weights of `smollm2` come from a 4-bit file, so that they lie on a grid already.",
        "",
    ]
    if "whole" in parts:
        lines += whole(source)[0]
    if "outputs" in parts:
        lines += outputs(source, options.rows, options.length)
    if "studies" in parts:
        models = {}
        for name, place in {options.model: source, **{path.name: path for path in options.other}}.items():
            dense = load_model(place)
            models[name] = sample_blocks(quantizable_weights(dense), block_size=64, limit=options.limit, seed=0)
        lines += [f"Studies: {options.limit} random blocks of 64 weights a layer.", "", *studies(models)]
    if "resources" in parts:
        lines += passes(source, options.rounds)
    facts = collect(seed=0)
    kept = {key: facts[key] for key in ("created", "command", "versions", "machine", "seed")}
    lines += ["```json", json.dumps(kept, indent=1), "```"]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        atomic_write_text(options.write, text)


if __name__ == "__main__":
    main()
