"""ICQ's search against quantising the matrix anew for each candidate; its codes against bitsandbytes; its layer against a
dense one.

The plain implementation does for each of the 201 shifts what a person would write down: shift, scale, codes,
histogram, entropy, squared error, and keeps what is best (highest entropy, then lowest error). "Entropy only" leaves
the error out. Both get the same matrix, type and threads, and alternate. Seconds on the processor count all threads and
are what other work on the machine changes least. All exact shifts and scales (no 8 bits), so that the two search
the same candidates.

    python benchmarks/icq_speed.py [--size 2048] [--rounds 3] [--devices cpu cuda] [--write docs/benchmarks/icq_speed.md]
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import statistics
import time
import unittest.mock
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorascope.core.files import atomic_write_text
from lorascope.core.provenance import collect
from lorascope.quantization import IcqLinear, codebook, compiled, quantize_icq
from lorascope.quantization.codebooks import borders
from lorascope.quantization.grid import WINDOW_UNIT
from lorascope.quantization.packing import unpack


def one_at_a_time(
    weight: torch.Tensor, n: int, lam: float, *, errors: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Best entropy of each block, and the lowest error with that entropy."""
    values = codebook("nf", 4).to(weight.device)
    middles = borders(values)
    rows = weight.view(-1, 64)
    median = rows.median(dim=1, keepdim=True).values
    reach = (rows - median).abs().amax(dim=1, keepdim=True)
    best = torch.full((rows.shape[0],), -1.0, dtype=torch.float64, device=rows.device)
    least = torch.full_like(best, torch.inf)
    for f in (torch.arange(-n, n + 1) / n * lam * WINDOW_UNIT).tolist():
        shift = median + f * reach
        away = rows - shift
        scale = away.abs().amax(dim=1, keepdim=True)
        codes = torch.bucketize(away / scale, middles)
        counts = torch.zeros(rows.shape[0], 16, device=rows.device)
        counts.scatter_add_(1, codes, torch.ones(1, device=rows.device).expand_as(codes))
        entropy = torch.special.entr(counts.double() / 64).sum(dim=1) / 0.6931471805599453
        if errors:
            error = (values[codes] * scale + shift - rows).square().sum(dim=1).double()
            better = (entropy > best + 1e-9) | ((entropy > best - 1e-9) & (error < least))
            best, least = torch.where(better, entropy, best), torch.where(better, error, least)
        else:
            best = torch.maximum(best, entropy)
    return best, least if errors else None


def seconds(work: Callable[[], Any], device: torch.device) -> tuple[float, float, Any]:
    """Seconds by the clock, seconds of all threads on the processor, and the result."""
    start, busy = time.perf_counter(), time.process_time()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - busy, result


def against_plain(size: int, rounds: int, device: torch.device) -> list[str]:
    weight = torch.randn(size, size, generator=torch.Generator().manual_seed(0)).to(device)
    numba_is_there = importlib.util.find_spec("numba") is not None and device.type == "cpu"
    first, _, _ = seconds(lambda: quantize_icq(weight, double_quant=False), device)
    one_at_a_time(weight[:64], 2, 0.1, errors=True)

    def by_torch_alone() -> Any:
        with unittest.mock.patch.object(compiled, "is_quicker", return_value=False):
            return quantize_icq(weight, double_quant=False)

    kinds: dict[str, Callable[[], Any]] = {
        "lorascope": lambda: quantize_icq(weight, double_quant=False),
        **({"lorascope without numba": by_torch_alone} if numba_is_there else {}),
        "plain": lambda: one_at_a_time(weight, 100, 0.1, errors=True),
        "plain, entropy only": lambda: one_at_a_time(weight, 100, 0.1, errors=False),
    }
    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    results = {}
    for _ in range(rounds):
        for kind, work in kinds.items():
            clock, busy, results[kind] = seconds(work, device)
            times[kind].append((clock, busy))
    ours = results["lorascope"]
    entropy, error = results["plain"]
    found = ours.block_entropy_bits
    lost = (ours.dequantize() - weight).view(-1, 64).square().sum(dim=1).double()
    differ = int(((found - entropy).abs() > 1e-5).sum())
    lower = int((found < entropy - 1e-5).sum())
    worse = int((lost > error * (1 + 1e-4)).sum())
    lines = [
        f"## {size} x {size} normal numbers, 201 candidates, on {device.type} ({torch.get_num_threads()} threads)",
        "",
        f"| | seconds by the clock, median of {rounds} | on the processor | times lorascope's, by the clock "
        "| on the processor |",
        "|---|---|---|---|---|",
    ]
    for kind, took in times.items():
        cells = []
        for i in (0, 1):
            cells.append(", ".join(f"{a[i] / b[i]:.1f}" for a, b in zip(took, times["lorascope"], strict=True)))
        clock, busy = (statistics.median(t[i] for t in took) for i in (0, 1))
        lines.append(f"| {kind} | {clock:.2f} | {busy:.2f} | {' | '.join(cells)} |")
    how = "by the loop that numba compiles" if numba_is_there else "by torch alone"
    lines += [
        "",
        "Both with shifts and scales in floats (`double_quant=False`), so that they search the same candidates. "
        f"Wanted: at least 30 times, 100 if possible. lorascope searches {how}; its first call in a process, not in the "
        f"table, took {first:.2f} s.",
        "",
        f"Of {found.numel():,} blocks the entropy differs by more than 1e-5 in {differ} (lower in {lower}); mean entropy "
        f"{float(found.mean()):.6f} against {float(entropy.mean()):.6f} bits. The squared error is larger by more than "
        f"1e-4 of it in {worse} blocks.",
        "",
    ]
    return lines


def per_million(rounds: int, device: torch.device) -> list[str]:
    weight = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(1)).to(device)
    million = weight.numel() / 1e6
    lines = [
        f"## Seconds of the {'GPU' if device.type == 'cuda' else 'processor'} a million weights",
        "",
        "| bits | n | 8-bit shifts | float shifts | no search |",
        "|---|---|---|---|---|",
    ]
    for bits in (2, 3, 4):
        for n in (10, 100):
            cells = []
            for options in ({}, {"double_quant": False}, {"objective": "none"}):
                work = functools.partial(quantize_icq, weight, bits, n=n, **options)
                took = [seconds(work, device)[1] for _ in range(rounds)]
                cells.append(f"{statistics.median(took) / million:.3f}")
            lines.append(f"| {bits} | {n} | {' | '.join(cells)} |")
    return [*lines, ""]


def across_devices(size: int) -> list[str]:
    weight = torch.randn(size, size, generator=torch.Generator().manual_seed(4))
    here, there = quantize_icq(weight), quantize_icq(weight.cuda())
    differ = int((here.codes != there.codes.cpu()).sum())
    gap = float((here.block_entropy_bits - there.block_entropy_bits.cpu()).abs().max())
    name = torch.cuda.get_device_name()
    return [
        f"The GPU is one {name}. Of {weight.numel():,} codes {differ} differ from those made on the processor; entropies of "
        f"blocks by at most {gap:.1e} bits.",
        "",
    ]


def against_bitsandbytes() -> list[str]:
    import bitsandbytes.functional as bnb

    lines = [
        "## Codes without a shift against bitsandbytes",
        "",
        "| weights | type | nested scales | codes that differ |",
        "|---|---|---|---|",
    ]
    for count in (2**22, 1_000_003):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for nested in (False, True):
                weight = torch.randn(count, generator=torch.Generator().manual_seed(2)).to(dtype)
                packed, _ = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=nested)
                ours = quantize_icq(weight, objective="none", double_quant=nested)
                differ = int((unpack(packed.flatten(), 4, count) != ours.codes).sum())
                lines.append(
                    f"| {count:,} | {str(dtype).removeprefix('torch.')} | {'yes' if nested else 'no'} | {differ} |"
                )
    return [*lines, ""]


def against_dense(device: torch.device) -> list[str]:
    generator = torch.Generator().manual_seed(3)
    lines = [
        "## Layer against a dense layer with the decoded weight",
        "",
        "| type | forward, largest relative difference | gradient, largest relative difference |",
        "|---|---|---|",
    ]
    weight = torch.randn(512, 576, generator=generator) * 0.04
    layer = IcqLinear.from_weight(weight.to(device), None)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = torch.randn(64, 576, generator=generator).to(device, dtype).requires_grad_()
        reference = x.detach().double().requires_grad_()
        y, z = layer(x), nn.functional.linear(reference, layer.dequantize(torch.float64))
        grad = torch.randn(y.shape, generator=generator).to(device, dtype)
        (ours,) = torch.autograd.grad(y, x, grad)
        (theirs,) = torch.autograd.grad(z, reference, grad.double())
        forward, backward = (
            float((a.detach().double() - b.detach()).abs().max() / b.detach().abs().max())
            for a, b in ((y, z), (ours, theirs))
        )
        lines.append(f"| {str(dtype).removeprefix('torch.')} | {forward:.1e} | {backward:.1e} |")
    return [*lines, "", "The reference is computed in float64 with the same codes.", ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--devices", nargs="+", choices=("cpu", "cuda"), help="by default all there are")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    there = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    devices = [torch.device(name) for name in options.devices or there]
    lines = ["# Speed and exactness of ICQ", ""]
    for device in devices:
        lines += against_plain(options.size, options.rounds, device)
        lines += per_million(options.rounds, device)
    if devices[-1].type == "cuda":
        lines += across_devices(options.size)
    lines += against_bitsandbytes() + against_dense(devices[-1])
    facts = collect(seed=0)
    kept = {key: facts[key] for key in ("created", "command", "versions", "machine", "seed")}
    lines += ["```json", json.dumps(kept, indent=1), "```"]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        atomic_write_text(options.write, text)


if __name__ == "__main__":
    main()
