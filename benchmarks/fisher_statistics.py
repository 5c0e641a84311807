"""What the Fisher pass is worth and what it costs: errors, time beside a training step, memory beside the prediction.

    python benchmarks/fisher_statistics.py --out FOLDER [--parts errors step memory wide]
        [--write docs/benchmarks/fisher_statistics.md]

Each part writes FOLDER/PART.json and is not measured again while that is there. Times are medians; run it alone.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import SequenceClassifierOutput

from lorascope.core.files import atomic_write_text, read_json, write_json
from lorascope.core.provenance import collect
from lorascope.initialization import NEEDS, collect_statistics, initialize_lora_fisher
from lorascope.initialization.accumulators import Probes, ProductSum, SymmetricSum
from lorascope.measuring import load_model_and_tokenizer
from lorascope.quantization.resources import PeakMemory
from lorascope.tasks import PaddingCollator, encode_task, load_task
from lorascope.training import RunSpec, attach_lora

MODES = {
    "fisher": ("input_fisher",),
    "activation": ("input",),
    "gradient": ("mean_gradient",),
    "fisher_batch": ("input_fisher", "mean_gradient"),
    "natural_gradient": ("input", "output", "mean_gradient"),
    "fisher_whitened": ("input", "output"),
}

LIMITS = {
    "fisher": (40_000_000, 60_000_000),
    "activation": (40_000_000,),
    "fisher_batch": (90_000_000,),
    "natural_gradient": (140_000_000, 180_000_000),
    "fisher_select": (140_000_000, 180_000_000),
    "fisher_whitened": (140_000_000, 180_000_000),
}
"""Mode -> values of max_memory, in bytes."""

WIDER = {"natural_gradient": 720_000_000, "fisher_select": 720_000_000, "fisher_whitened": 560_000_000}
"""The same at twice the width, where what libraries take inside weighs less; one run each, minutes long."""

BATCHES = 4
"""Batches of the longer pass that is timed."""


class Two(nn.Module):
    """Two layers without biases; a row is a sample, as the independent library counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 20, bias=False), nn.Linear(20, 7, bias=False)

    def forward(self, pixel_values: torch.Tensor) -> SequenceClassifierOutput:
        """Logits of rows."""
        return SequenceClassifierOutput(logits=self.second(torch.tanh(self.first(pixel_values))))


def relative(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found.double() - truth.double()).norm() / truth.double().norm())


def errors() -> dict[str, Any]:
    """Largest relative errors (Frobenius) against curvlinops and against autograd in float64."""
    warnings.simplefilter("ignore")
    import curvlinops

    torch.manual_seed(0)
    model, x, y = Two(), torch.randn(64, 24), torch.randint(0, 7, (64,))

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return model(rows).logits

    loss, plain = nn.CrossEntropyLoss(reduction="sum"), Plain().double()
    parameters, data = list(plain.parameters()), [(x.double(), y)]
    operator = curvlinops.EFLinearOperator(plain, loss, parameters, data, check_deterministic=False)
    full = torch.as_tensor(operator @ torch.eye(operator.shape[1], dtype=torch.float64)) / len(x)
    kfac = curvlinops.KFACLinearOperator(
        plain, loss, parameters, data, check_deterministic=False, fisher_type="empirical"
    )
    kfac.compute_kronecker_factors()
    gradients = torch.autograd.grad(loss(plain(x.double()), y), parameters)
    plain.float()
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["first", "second"]))
    found = collect_statistics(adapted, [{"pixel_values": x, "labels": y}], need=NEEDS, progress=False).layers
    worst: dict[str, float] = {}
    start = 0
    for (name, rows, columns), gradient in zip((("first", 20, 24), ("second", 7, 20)), gradients, strict=True):
        size, layer = rows * columns, found[name]
        block = full[start : start + size, start : start + size].reshape(rows, columns, rows, columns)
        start += size
        total = {kind: getattr(layer, kind) for kind in NEEDS}
        pairs = {
            "F_in, curvlinops empirical Fisher": (total["input_fisher"].sum, torch.einsum("oioj->ij", block)),
            "F_out, curvlinops empirical Fisher": (total["output_fisher"].sum, torch.einsum("oipi->op", block)),
            "A, curvlinops KFAC": (total["input"].sum, kfac._input_covariances[f"model.{name}"]),
            "G, curvlinops KFAC": (total["output"].sum, kfac._gradient_covariances[f"model.{name}"] / len(x)),
        }
        errors_here = {kind: relative(made / layer.tokens, truth) for kind, (made, truth) in pairs.items()}
        errors_here["M, autograd"] = relative(total["mean_gradient"].matrix(1), gradient)
        worst = {kind: max(error, worst.get(kind, 0.0)) for kind, error in errors_here.items()}
    return {"errors": worst, "curvlinops": curvlinops.__name__}


def towns(rows: int) -> tuple[Any, list[dict[str, Any]], Any]:
    """The embedded model with a fresh adapter on every linear layer, and one batch of towns rows."""
    model, tokenizer = load_model_and_tokenizer("smollm2")
    features = encode_task(load_task("towns"), tokenizer, "train", limit=rows).features
    peft_model = attach_lora(model, RunSpec(rank=8))
    return peft_model, [PaddingCollator(tokenizer)(features)], model


def median_seconds(call: Callable[[], Any], times: int) -> float:
    call()
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def step(rows: int = 16, times: int = 3) -> dict[str, Any]:
    """Seconds of the pass for each mode, beside a training step of the same adapter on the same batch."""
    peft_model, data, _ = towns(rows)
    trainable = [p for p in peft_model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=0.0)

    def train() -> None:
        optimiser.zero_grad()
        peft_model(**data[0]).loss.backward()
        optimiser.step()

    peft_model.train()
    found: dict[str, Any] = {"rows": rows, "tokens": int(data[0]["attention_mask"].sum()), "times": times}
    found["threads"] = torch.get_num_threads()
    found["step_before"] = median_seconds(train, times)
    found["pass"] = {}
    for mode, need in MODES.items():
        call = lambda count, need=need: collect_statistics(  # noqa: E731
            peft_model, data * count, need=need, progress=False
        )
        one = median_seconds(functools.partial(call, 1), times)
        found["pass"][mode] = [one, median_seconds(functools.partial(call, BATCHES), times) / BATCHES]
    found["step_after"] = median_seconds(train, times)
    return found


def child(mode: str, limit: int, times: int = 1) -> None:
    """Print by how many bytes a model's own pass, and an initialisation, make this process grow; and the prediction."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"hidden_size": 768 * times, "intermediate_size": 2048 * times}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 8}
    ids = torch.randint(3, 64, (2, 64), generator=generator)
    data = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}] * 2

    def start(limit: int | None, **given: int) -> dict[str, int]:
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **given))
        peft_model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
        with PeakMemory() as own:
            collect_statistics(peft_model, data, need=(), progress=False)
        with PeakMemory() as peak:
            made = initialize_lora_fisher(peft_model, data, mode, max_memory=limit, progress=False)
        found = {key: made.counts[key] for key in ("passes", "sketched", "predicted_bytes")}
        return {"own": int(own.mib * 2**20), "peak": int(peak.mib * 2**20), **found}

    start(None, **{**sizes, "hidden_size": 64, "intermediate_size": 128})  # what libraries take once
    print(json.dumps(start(limit or None, **sizes)))


def memory(times: int = 3) -> dict[str, Any]:
    """Growth of a process during an initialisation of a model whose own pass takes little, a fresh process each time."""
    found: dict[str, Any] = {"modes": []}
    asked = [(mode, limit, 1) for mode, limits in LIMITS.items() for limit in (0, *limits)]
    for mode, limit, wider in [*asked, *((mode, limit, 2) for mode, limit in WIDER.items())]:
        command = [sys.executable, __file__, "--out", ".", "--child", mode, str(limit), str(wider)]
        runs = []
        for _ in range(times if wider == 1 else 1):
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
        found["modes"].append({"mode": mode, "limit": limit, "width": 768 * wider, "runs": runs})
    return found


def wide(d_in: int = 14336, d_out: int = 4096, tokens: int = 2048, rank: int = 16) -> dict[str, Any]:
    """One layer as wide as Llama-3-8B's down projection, whole and sketched, on inputs with a falling spectrum."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(512, d_in, generator=generator) * torch.arange(1, 513).pow(-0.75).unsqueeze(1)
    batches = []
    for _ in range(tokens // 512):
        a = torch.randn(512, 512, generator=generator) @ mixing + 0.05 * torch.randn(512, d_in, generator=generator)
        batches.append((a, torch.randn(512, d_out, generator=generator) / d_out**0.5))
    device = torch.device("cpu")
    found: dict[str, Any] = {"d_in": d_in, "d_out": d_out, "tokens": tokens, "rank": rank}
    vectors: dict[str, torch.Tensor] = {}
    for name, probes in (("whole", None), ("sketch of 256", Probes(256, 0, device))):
        if probes is not None:
            probes(d_in)  # made once for all layers of this width
        started = time.perf_counter()
        total = SymmetricSum(d_in, device, probes)
        for a, g in batches:
            total.update(a, g.square().sum(1))
        summed = time.perf_counter()
        spectrum = total.spectrum(tokens, rank, leading=True)
        ended = time.perf_counter()
        vectors[name] = spectrum.vectors[:, :rank].double()
        size = sum(t.numel() * t.element_size() for t in total.tensors())
        found[name] = {"seconds_sum": summed - started, "seconds_vectors": ended - summed, "bytes": size}
        found[name]["captured"] = float(spectrum.values[:rank].double().sum()) / spectrum.trace
    probe = Probes(256, 0, device)
    found["sketch of 256"]["probe_bytes"] = probe(d_in).numel() * 4
    cosines = torch.linalg.svdvals(vectors["whole"].T @ vectors["sketch of 256"]).clamp(max=1.0)
    found["angles_degrees"] = torch.rad2deg(cosines.acos()).tolist()
    found["mean_squared_cosine"] = float(cosines.square().mean())
    product = ProductSum(d_out, d_in, device, Probes(256, 0, device))
    found["mean_gradient_bytes"] = {
        "whole": 4 * d_in * d_out,
        "sketch of 256": sum(t.numel() * t.element_size() for t in product.tensors()),
    }
    return found


PARTS: dict[str, Callable[[], dict[str, Any]]] = {"errors": errors, "step": step, "memory": memory, "wide": wide}


def document(found: dict[str, Any]) -> str:
    lines = ["# The pass for Fisher statistics: errors, time, memory", ""]
    if "errors" in found:
        lines += ["## Errors", "", "A classifier of two layers, 64 rows, in float32 against references in float64.", ""]
        lines += ["| statistic, reference | largest relative error |", "|---|---|"]
        lines += [f"| {kind} | {error:.1e} |" for kind, error in found["errors"]["errors"].items()]
        worst = max(found["errors"]["errors"].values())
        lines += ["", f"Aim: 1e-5. Largest: {worst:.1e}: {'met' if worst <= 1e-5 else 'missed'}.", ""]
    if "step" in found:
        part = found["step"]
        unit = (part["step_before"] + part["step_after"]) / 2
        lines += [
            "## Time",
            "",
            f"SmolLM2-135M, an adapter of rank 8 on every linear layer, one batch of {part['rows']} rows ",
        ]
        lines += [
            f"({part['tokens']} tokens), {part['threads']} threads, medians of {part['times']}. A training step (forward, "
        ]
        lines += [
            f"backward, AdamW) took {part['step_before']:.2f} s before and {part['step_after']:.2f} s after. The pass keeps "
        ]
        lines += [
            "the sums; decompositions come once an init, not once a batch, and are not in it. Of one batch, a part is "
        ]
        lines += [f"the first touch of the sums' memory; of {BATCHES} batches in one pass each has its share.", ""]
        lines += [f"| mode | one batch, s | over a training step | a batch of {BATCHES}, s | over a training step |"]
        lines += ["|---|---|---|---|---|"]
        lines += [
            f"| {mode} | {one:.2f} | {one / unit:.2f} | {each:.2f} | {each / unit:.2f} |"
            for mode, (one, each) in part["pass"].items()
        ]
        ratio = part["pass"]["fisher"][0] / unit
        over = [f"{mode} ({one / unit:.2f})" for mode, (one, _) in part["pass"].items() if one > 2 * unit]
        lines += ["", f"Aim: at most 2.0. `fisher`: {ratio:.2f}; over it: {', '.join(over) or 'none'}.", ""]
    if "memory" in found:
        part = found["memory"]
        lines += [
            "## Memory",
            "",
            "How far the resident memory of a process rises while `initialize_lora_fisher` works on two random blocks of a ",
            "Llama (768 or 1536 wide, 2048 or 4096 in the MLP, seven matrices each; 128 tokens a batch), less what the ",
            "model's own pass takes.",
            "",
            "| mode | width | limit, MB | passes | sketched | own pass, MB | predicted, MB | measured, MB | of the limit |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        over = []
        for row in part["modes"]:
            runs, limit = row["runs"], row["limit"]
            above = sorted((run["peak"] - run["own"]) / 1e6 for run in runs)
            middle = statistics.median(above)
            shown = f"{middle:,.0f} ({above[0]:,.0f} to {above[-1]:,.0f})"
            if limit and round(middle - limit / 1e6) >= 1:
                over.append(f"{row['mode']} at {limit / 1e6:,.0f} MB by {middle - limit / 1e6:,.0f} MB")
            own = statistics.median(run["own"] for run in runs) / 1e6
            cells = (
                row["mode"],
                row["width"],
                f"{limit / 1e6:,.0f}" if limit else "none",
                runs[0]["passes"],
                runs[0]["sketched"],
            )
            cells += (f"{own:,.0f}", f"{runs[0]['predicted_bytes'] / 1e6:,.0f}", shown)
            lines.append(f"| {' | '.join(map(str, cells))} | {f'{middle * 1e6 / limit:.2f}' if limit else ''} |")
        lines += [
            "",
            f"Medians of {len(part['modes'][0]['runs'])} runs (one at 1536), smallest and largest in brackets. Resident ",
            "memory has what an allocator keeps and a library takes inside, too: tens of MB, whatever the limit. Tensors ",
            "are counted one by one in `tests/initialization/test_memory.py`. A ",
            "smaller limit may need fewer passes, because layers that do not fit whole are sketched.",
            "",
            f"Over the limit: {'; '.join(over) or 'none'}.",
            "",
        ]
    if "wide" in found:
        part = found["wide"]
        lines += ["## One wide layer", "", f"F_in of a layer with {part['d_in']} inputs and {part['d_out']} outputs, "]
        lines += [
            f"{part['tokens']} tokens, rank {part['rank']}. Inputs: 512 directions whose standard deviation falls as "
        ]
        lines += ["k^-0.75, and noise.", ""]
        lines += ["| | sum, s | eigenvectors, s | MB of the sum | share of the trace in the first directions |"]
        lines += ["|---|---|---|---|---|"]
        for name in ("whole", "sketch of 256"):
            row = part[name]
            lines.append(
                f"| {name} | {row['seconds_sum']:.1f} | {row['seconds_vectors']:.1f} | {row['bytes'] / 1e6:,.0f} | "
                f"{row['captured']:.3f} |"
            )
        angles = part["angles_degrees"]
        lines += ["", f"Angles between the two subspaces: median {statistics.median(angles):.1f} degrees, largest "]
        lines += [
            f"{max(angles):.1f}; mean squared cosine {part['mean_squared_cosine']:.4f} (1: the same). The test matrix takes "
        ]
        lines += [f"{part['sketch of 256']['probe_bytes'] / 1e6:,.0f} MB once for all layers of that width. M takes "]
        sizes = part["mean_gradient_bytes"]
        lines += [f"{sizes['whole'] / 1e6:,.0f} MB whole and {sizes['sketch of 256'] / 1e6:,.0f} MB as a sketch.", ""]
    if lacking := [name for name in PARTS if name not in found]:
        lines += [f"Not measured yet: {', '.join(lacking)}.", ""]
    lines += [
        "## Machine",
        "",
        "Of the call that wrote this page; parts may be of earlier ones.",
        "",
        "```json",
        json.dumps(found["provenance"], indent=1),
        "```",
        "",
    ]
    return "\n".join(line.rstrip() for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--write", type=Path)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], *map(int, options.child[1:]))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.parts:
        if not (options.out / f"{name}.json").is_file():
            write_json(options.out / f"{name}.json", PARTS[name]())
    found = {name: read_json(path) for name in PARTS if (path := options.out / f"{name}.json").is_file()}
    found["provenance"] = collect(seed=0)
    text = document(found)
    print(text)
    if options.write is not None:
        atomic_write_text(options.write, text)


if __name__ == "__main__":
    main()
