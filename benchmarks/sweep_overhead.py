"""What a sweep costs beside training, measuring and evaluating, and what a second worker gains.

python benchmarks/sweep_overhead.py [--ranks 4,16,64 --limits 50,100,200 --seeds 0,1,2 --steps 20 --workers 1,2]
    [--model smollm2 --task towns] [--keep DIR] [--write docs/benchmarks/sweep_overhead.md]
python benchmarks/sweep_overhead.py --of DIR --wall SECONDS --workers 2 [--note TEXT]    # a sweep that ran in one go

Runs the command ``lorascope sweep`` once for each number of workers, in a fresh folder, and reads the seconds that each cell
noted for its stages. Outside is everything else that the workers' time went into: imports, loading models and data, saving,
waiting for the next cell, and the end of the sweep, when one worker has nothing left to do.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from lorascope.core.provenance import machine, package_versions
from lorascope.core.spec import dump_yaml

STAGES = ["seconds_training", "seconds_measuring", "seconds_evaluating"]


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def sweep(options: argparse.Namespace, workers: int, folder: Path) -> dict[str, float]:
    """One whole sweep: cells, wall time, and where the workers' time went."""
    spec = {
        "base": {
            "model": options.model,
            "task": options.task,
            "preset": "quick",
            "max_steps": options.steps,
            "eval_limit": options.questions,
            "measure_limit": options.measured,
        },
        "grid": {
            "rank": numbers(options.ranks),
            "train_limit": numbers(options.limits),
            "seed": numbers(options.seeds),
        },
    }
    folder.mkdir(parents=True)
    (folder / "sweep.yaml").write_text(dump_yaml(spec), encoding="utf-8")
    command = [sys.executable, "-m", "lorascope", "sweep", str(folder / "sweep.yaml"), "--out", str(folder / "out")]
    start = time.perf_counter()
    subprocess.run([*command, "--workers", str(workers), "--no-progress"], check=True)
    wall = time.perf_counter() - start
    return shares(pd.read_csv(folder / "out" / "table.csv"), workers, wall)


def shares(table: pd.DataFrame, workers: int, wall: float) -> dict[str, float]:
    """Where the workers' time went, from the seconds that the cells noted."""
    inside = float(table[STAGES].sum().sum())
    runs = float(table["seconds_total"].sum())
    return {
        "workers": workers,
        "cells": len(table),
        "wall seconds": wall,
        "seconds a cell": runs / len(table),
        "in training, measuring, evaluating": inside / (workers * wall),
        "in cells beside that (loading, saving)": (runs - inside) / (workers * wall),
        "outside of cells (imports, waiting)": 1 - runs / (workers * wall),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="towns")
    parser.add_argument("--ranks", default="4,16,64")
    parser.add_argument("--limits", default="50,100,200")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--measured", type=int, default=48)
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--keep", type=Path, help="new folder for the sweeps; by default they are deleted")
    parser.add_argument("--of", type=Path, help="folder of a sweep that ran in one go, instead of running one")
    parser.add_argument("--wall", type=float, help="with --of: seconds that it took")
    parser.add_argument("--note", default="", help="with --of: what a reader should know of it")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    if options.of is not None:
        if options.wall is None:
            parser.error("--of needs --wall")
        (workers,) = numbers(options.workers)
        rows = [shares(pd.read_csv(options.of / "table.csv"), workers, options.wall)]
        report(rows, options)
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = options.keep or Path(temporary)
        rows = [sweep(options, workers, root / f"workers-{workers}") for workers in numbers(options.workers)]
    report(rows, options)


def report(rows: list[dict[str, float]], options: argparse.Namespace) -> None:
    """Print the table, and write it if that was asked for."""
    names = list(rows[0])
    lines = [
        "# What a sweep costs beside training",
        "",
        "| " + " | ".join(names) + " |",
        "|---" * len(names) + "|",
    ]
    for row in rows:
        shown = [f"{row[name]:.1%}" if name.startswith(("in ", "outside")) else f"{row[name]:.4g}" for name in names]
        lines.append("| " + " | ".join(shown) + " |")
    first = rows[0]
    lines += [
        "",
        *(
            f"{row['workers']:g} workers against {first['workers']:g}: "
            f"{first['wall seconds'] / row['wall seconds']:.2f} times as fast."
            for row in rows[1:]
        ),
    ]
    if options.of is None:
        skipped = ("write", "keep", "of", "wall", "note")
        asked = " ".join(f"--{key} {value}" for key, value in vars(options).items() if key not in skipped)
    else:
        asked = f"--of FOLDER --wall {options.wall:g} --workers {options.workers}"
    lines += ["", options.note] if options.note else []
    lines += ["", f"`python benchmarks/sweep_overhead.py {asked}`", "", f"{machine()}", f"{package_versions()}"]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
