"""How fast the theory is, and how often it converges on a random grid.

Speed: single points of both stages and curves of 50 points, started warm. Grid: points drawn at random in the ranges below
until COUNT of them lie in the valid regime (no collapse of pre-training, the update not zero, jump within its limit); at
least 99 % of these must converge, the rest must be flagged, and no number of any point may be NaN. Results are kept in
FOLDER, so that the script can be stopped and started.

    python benchmarks/theory_convergence.py --out FOLDER [--count 1000] [--slice 600] [--speed] [--write FILE.md]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from lorascope.core.files import read_json, write_json
from lorascope.core.provenance import collect
from lorascope.theory import FineTuned, Pretrained, finetune_after, pretrain

GRID_SAMPLES = 2**10
SEED = 20
CHUNK = 50
PLAIN = {"alpha": 0.3, "kappa0": 0.5, "noise": 0.5, "ridge": 0.05}


def draw(index: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of both stages of the grid's point number ``index``."""
    rng = np.random.default_rng([SEED, index])

    def log_uniform(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(math.log(low), math.log(high))))

    softmax = rng.random() < 0.15
    first = {
        "alpha": log_uniform(0.05, 2.0),
        "tokens": 2 if softmax else int(rng.choice([1, 2, 3, 4], p=[0.1, 0.4, 0.4, 0.1])),
        "kappa0": log_uniform(0.1, 3.0),
        "noise": float(rng.choice([0.0, rng.uniform(0.0, 1.0)], p=[0.2, 0.8])),
        "ridge": log_uniform(0.003, 0.3),
        "penalty": "nuclear" if softmax else str(rng.choice(["nuclear", "frobenius"], p=[0.7, 0.3])),
        "activation": "softmax" if softmax else "linear",
    }
    second = {
        "alpha": log_uniform(1.0, 10.0),
        "ridge": log_uniform(0.02, 1.5) * (0.1 if softmax else 1.0),
        "data": str(rng.choice(["fresh", "reused", "recalibrated", "active"])),
        "fraction": log_uniform(0.05, 1.0),
    }
    return first, second


def regime(first: Pretrained, second: FineTuned) -> str:
    """Why a point is outside the valid regime, or ``valid``."""
    if first.collapsed:
        return "pre-training collapsed"
    if any("update collapsed" in word for word in second.warnings):
        return "update collapsed"
    if any("jump" in word for word in second.warnings):
        return "jump"
    return "valid"


def solve(index: int) -> dict[str, Any]:
    begun = time.perf_counter()
    one, two = draw(index)
    first = pretrain(**one, samples=GRID_SAMPLES)
    second = finetune_after(first, **two, samples=GRID_SAMPLES)
    numbers = [value for item in (first, second) for value in item.to_dict().values() if isinstance(value, float)]
    return {
        "index": index,
        "activation": one["activation"],
        "tokens": one["tokens"],
        "regime": regime(first, second),
        "pretrained": first.converged,
        "finetuned": second.converged,
        "flagged": bool(second.warnings),
        "finite": all(math.isfinite(value) for value in numbers),
        "iterations": second.iterations,
        "seconds": time.perf_counter() - begun,
    }


def speed() -> list[dict[str, Any]]:
    """Seconds of single points at full accuracy, and of curves of 50 points."""
    found = []
    for name, tokens, activation in (
        ("linear, T=2", 2, "linear"),
        ("linear, T=3", 3, "linear"),
        ("linear, T=4", 4, "linear"),
        ("linear, T=8", 8, "linear"),
        ("softmax, T=2", 2, "softmax"),
    ):
        ridge = 0.5 if activation == "linear" else 0.05
        begun = time.perf_counter()
        first = pretrain(**PLAIN, tokens=tokens, activation=activation)
        middle = time.perf_counter()
        second = finetune_after(first, alpha=3.0, ridge=ridge)
        end = time.perf_counter()
        found.append({"case": name, "first": middle - begun, "second": end - middle, "both": end - begun})
        last = second
        begun, converged = time.perf_counter(), 0
        for value in np.geomspace(0.01, 0.3, 50) if tokens <= 3 else []:
            first = pretrain(**{**PLAIN, "ridge": float(value)}, tokens=tokens, activation=activation, start=first)
            last = finetune_after(first, alpha=3.0, ridge=ridge, start=last)
            converged += first.converged and last.converged
        found[-1] |= {"curve": time.perf_counter() - begun if tokens <= 3 else None, "converged": converged}
    return found


def document(kept: dict[str, Any]) -> str:
    grid, times = kept["grid"], kept.get("speed", [])
    valid = [row for row in grid if row["regime"] == "valid"]
    good = [row for row in valid if row["pretrained"] and row["finetuned"]]
    silent = [row for row in grid if not (row["pretrained"] and row["finetuned"]) and not row["flagged"]]
    lines = [
        "# Speed and convergence of the theory",
        "",
        "## Convergence on a random grid",
        "",
        f"{len(grid)} points drawn, {len(valid)} of them in the valid regime ({GRID_SAMPLES} quasi-random points instead "
        "of the default, so that the grid takes minutes; the equations are the same).",
        "",
        f"- Converged in the valid regime: **{len(good)} of {len(valid)}** ({len(good) / max(1, len(valid)):.2%}).",
        f"- Stage 1 converged at {sum(row['pretrained'] for row in grid)} of all {len(grid)} points.",
        f"- Not converged and not flagged, in or out of the regime: {len(silent)}.",
        f"- Points with a number that is not finite, in or out of the regime: {sum(not row['finite'] for row in grid)}.",
        "",
        "| | points | both stages converged |",
        "|---|---|---|",
    ]
    for name, count in Counter(row["regime"] for row in grid).most_common():
        chosen = [row for row in grid if row["regime"] == name]
        lines.append(f"| {name} | {count} | {sum(row['pretrained'] and row['finetuned'] for row in chosen)} |")
    lines += [
        "",
        "Valid points by kind:",
        "",
        "| activation | T | points | converged | median seconds |",
        "|---|---|---|---|---|",
    ]
    for activation, tokens in sorted({(row["activation"], row["tokens"]) for row in valid}):
        chosen = [row for row in valid if (row["activation"], row["tokens"]) == (activation, tokens)]
        fine = sum(row["pretrained"] and row["finetuned"] for row in chosen)
        middle = sorted(row["seconds"] for row in chosen)[len(chosen) // 2]
        lines.append(f"| {activation} | {tokens} | {len(chosen)} | {fine} | {middle:.2f} |")
    lines += [
        "",
        "Ranges: alpha .05-2, kappa0 .1-3, lambda or lambda_F .003-.3, alpha' 1-10, lambda' .02-1.5 (softmax a tenth), "
        "fraction .05-1, all log-uniform; Delta 0 (a fifth) or uniform to 1; T 1-4; both penalties; four kinds of data.",
        "",
    ]
    if times:
        lines += [
            "## Speed",
            "",
            "Default accuracy. A curve varies lambda of stage 1 over 50 values and runs both stages, each point from "
            "the one before.",
            "",
            "| | stage 1 (s) | stage 2 (s) | both (s) | 50-point curve (s) | curve points converged |",
            "|---|---|---|---|---|---|",
        ]
        for row in times:
            curve = "" if row["curve"] is None else f"{row['curve']:.1f}"
            lines.append(
                f"| {row['case']} | {row['first']:.2f} | {row['second']:.2f} | {row['both']:.2f} | {curve} | "
                f"{row['converged'] or ''} |"
            )
        lines.append("")
    lines += ["```json", json.dumps(collect(seed=SEED), indent=1), "```", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1000, help="Points in the valid regime.")
    parser.add_argument("--slice", type=float, default=float("inf"), help="Stop the grid after this many seconds.")
    parser.add_argument("--speed", action="store_true", help="Measure the speed (again); on a quiet machine only.")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    path = options.out / "convergence.json"
    kept: dict[str, Any] = read_json(path) if path.is_file() else {"grid": []}
    begun = time.perf_counter()
    if options.speed:
        kept["speed"] = speed()
        write_json(path, kept)
    while (valid := sum(row["regime"] == "valid" for row in kept["grid"])) < options.count:
        if time.perf_counter() - begun > options.slice:
            break
        start = len(kept["grid"])
        kept["grid"] += [solve(index) for index in range(start, start + CHUNK)]
        write_json(path, kept)
        print(f"{len(kept['grid'])} points, {valid} valid before them, {time.perf_counter() - begun:.0f} s", flush=True)
    text = document(kept)
    if options.write is not None:
        options.write.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
