"""Do fitted laws find the exponents that made the data, and do their intervals cover them?

Tables are drawn from each law with known parameters: N in [1e8, 1e10], R in [4, 512], D in [1e3, 1e6] on a full grid, each
metric multiplied by 1 + sigma z. With outliers, one run in ten is also multiplied by a half or by two. Each table is
fitted twice: with the defaults, which are not told whether the truth has a floor, and told so. It is counted how often the
95 % intervals hold the truth, for the parameters and for the prediction at four times the largest N, R and D. The time of
1,000 bootstrap fits of 200 runs is taken on its own.

    python benchmarks/scaling_recovery.py [--repetitions 200] [--keep FOLDER] [--write docs/benchmarks/scaling_recovery.md]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lorascope.core.files import atomic_write_text
from lorascope.core.provenance import collect
from lorascope.scaling import AXES, additive, fit_scaling_law, multiplicative

TRUTHS: dict[str, tuple[str, dict[str, float]]] = {
    "additive": (
        "additive",
        {"A": 1.0, "alpha": 0.3, "B": 0.5, "beta": 0.5, "C": 0.8, "gamma": 0.2},
    ),
    "additive with floor": (
        "additive",
        {"A": 1.0, "alpha": 0.3, "B": 0.5, "beta": 0.5, "C": 0.8, "gamma": 0.2, "E": 0.7},
    ),
    "multiplicative with floor": (
        "multiplicative",
        {"A": 2.0, "alpha": 0.15, "beta": 0.05, "gamma": 0.2, "E": 0.5},
    ),
    "multiplicative": ("multiplicative", {"A": 2.0, "alpha": 0.15, "beta": 0.05, "gamma": 0.2}),
}
GRIDS = {"3x3x3": (3, 3, 3), "4x4x3": (4, 4, 3), "4x5x10": (4, 5, 10)}
WAYS = ("default", "told")
NOISES = {"1 %": (0.01, 0.0), "5 %": (0.05, 0.0), "5 %, outliers 10 %": (0.05, 0.1)}
RANGES = {"N": (1e8, 1e10), "R": (4.0, 512.0), "D": (1e3, 1e6)}
LAW = {"additive": additive, "multiplicative": multiplicative}


def grid(levels: tuple[int, ...]) -> dict[str, np.ndarray]:
    steps = [np.geomspace(*RANGES[axis], count) for axis, count in zip(AXES, levels, strict=True)]
    return dict(zip(AXES, (column.ravel() for column in np.meshgrid(*steps, indexing="ij")), strict=True))


def draw(y: np.ndarray, sigma: float, outliers: float, rng: np.random.Generator) -> np.ndarray:
    y = y * (1 + sigma * rng.standard_normal(len(y)))
    return np.where(rng.random(len(y)) < outliers, y * rng.choice([0.5, 2.0], size=len(y)), y)


def one(job: tuple[str, str, str, int, int, int]) -> dict[str, Any]:
    """Fit one table and compare it with the truth."""
    name, size, noise, repetition, n_boot, seed = job
    law, truth = TRUTHS[name]
    table = grid(GRIDS[size])
    reference = {axis: float(np.exp(np.log(column).mean())) for axis, column in table.items()}
    place = [list(TRUTHS).index(name), list(GRIDS).index(size), list(NOISES).index(noise)]
    rng = np.random.default_rng([seed, *place, repetition])
    y = LAW[law](**table, **truth, reference=reference)
    noisy = {**table, "ce": draw(y, *NOISES[noise], rng)}
    return {way: judged(noisy, law, truth, reference, way, n_boot, repetition) for way in WAYS}


def judged(
    noisy: dict[str, np.ndarray],
    law: str,
    truth: dict[str, float],
    reference: dict[str, float],
    way: str,
    n_boot: int,
    seed: int,
) -> dict[str, Any]:
    """One fit beside the truth. Where the default reports no floor, its interval goes from 0 to that of the other choice."""
    fit = fit_scaling_law(noisy, law, "ce", floor="E" in truth if way == "told" else None, n_boot=n_boot, seed=seed)
    if "E" not in fit.params:
        fit.params["E"] = 0.0
        fit.intervals["E"] = (0.0, float(np.quantile(fit.rival[:, -1], 0.975)) if len(fit.rival) else 0.0)
    far = {axis: 4 * RANGES[axis][1] for axis in AXES}
    beyond = float(LAW[law](**far, **truth, reference=reference))
    low, high = fit.predict_interval(**far)
    return {
        "error": {key: fit.params[key] - value for key, value in truth.items()},
        "covered": {key: fit.intervals[key][0] <= value <= fit.intervals[key][1] for key, value in truth.items()}
        | {"prediction": bool(low <= beyond <= high)},
        "width": {key: fit.intervals[key][1] - fit.intervals[key][0] for key in truth},
        "prediction": abs(float(fit.predict(**far)) / beyond - 1),
    }


def row(found: list[dict[str, Any]]) -> tuple[str, list[float]]:
    """A row of the table, and its coverages in %."""
    rates = {key: 100 * float(np.mean([each["covered"][key] for each in found])) for key in found[0]["covered"]}
    greek = [key for key in rates if key in ("alpha", "beta", "gamma")]
    latin = [key for key in rates if len(key) == 1]
    errors = {key: float(np.median([abs(each["error"][key]) for each in found])) for key in greek}
    widths = {key: float(np.median([each["width"][key] for each in found])) for key in greek}
    cells = [
        ", ".join(f"{key} {rates[key]:.1f}" for key in greek),
        ", ".join(f"{key} {rates[key]:.1f}" for key in latin),
        f"{rates['prediction']:.1f}",
        ", ".join(f"{key} {errors[key]:.4f}" for key in greek),
        ", ".join(f"{key} {widths[key]:.3f}" for key in greek),
        f"{np.median([each['prediction'] for each in found]):.1%}",
    ]
    return " | ".join(cells), list(rates.values())


def speed(seed: int) -> Iterator[str]:
    """Seconds for 1,000 bootstrap fits of 200 runs with the defaults, which fit the law with and without a floor."""
    yield "| law | 200 runs, 1,000 bootstrap fits: seconds, median of 5 | largest | without the bootstrap, median |"
    yield "|---|---|---|---|"
    for name, (law, truth) in TRUTHS.items():
        table = grid(GRIDS["4x5x10"])
        reference = {axis: float(np.exp(np.log(column).mean())) for axis, column in table.items()}
        y = LAW[law](**table, **truth, reference=reference)
        rng = np.random.default_rng(seed)
        times: dict[int, list[float]] = {1000: [], 0: []}
        for _ in range(5):
            noisy = {**table, "ce": draw(y, 0.05, 0.1, rng)}
            for n_boot, seconds in times.items():
                start = time.perf_counter()
                fit_scaling_law(noisy, law, "ce", n_boot=n_boot)
                seconds.append(time.perf_counter() - start)
        yield f"| {name} | {np.median(times[1000]):.2f} | {max(times[1000]):.2f} | {np.median(times[0]):.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--n-boot", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--truth", action="append", choices=list(TRUTHS), help="one of several; all if not given")
    parser.add_argument("--keep", type=Path, help="folder of what is done: a later run goes on from there")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Recovery of known scaling laws",
        "",
        "Tables drawn from each law on full grids of N in [1e8, 1e10], R in [4, 512], D in [1e3, 1e6]; each metric times "
        "1 + sigma z, and with outliers one run in ten also halved or doubled. "
        f"{options.repetitions} tables a row, n_boot = {options.n_boot}. Coverage: how many of the 95 % intervals hold the "
        "truth. Prediction: at four times the largest N, R and D. Width: median width of the exponents' intervals. Goal: "
        "coverage of 90 to 99 %. One row's coverage has a standard error of 1.5 points.",
    ]
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    rows: dict[str, list[str]] = {way: [] for way in WAYS}
    with multiprocessing.Pool(options.processes) as pool:
        for name in options.truth or TRUTHS:
            for size, levels in GRIDS.items():
                for noise in NOISES:
                    jobs = [(name, size, noise, i, options.n_boot, options.seed) for i in range(options.repetitions)]
                    kept = options.keep and options.keep / f"{name}, {size}, {noise.replace(' ', '')}.json"
                    if kept and kept.is_file():
                        found = json.loads(kept.read_text(encoding="utf-8"))
                    else:
                        found = pool.map(one, jobs, chunksize=10)
                        if kept:
                            atomic_write_text(kept, json.dumps(found))
                    for way in WAYS:
                        line, covered = row([each[way] for each in found])
                        rates[way] += covered
                        rows[way].append(f"| {name} | {int(np.prod(levels))} | {noise} | {line} |")
                        print(way, rows[way][-1], flush=True)
    for way, title, note in (
        (
            "default",
            "With the defaults",
            "`fit_scaling_law(table, law, metric)`: the fit is not told whether there is a floor.",
        ),
        (
            "told",
            "Told whether there is a floor",
            "The same tables with `floor=True` or `floor=False`, as the truth is.",
        ),
    ):
        lines += [
            "",
            f"## {title}",
            "",
            note,
            "",
            "| truth | runs | noise | coverage of the exponents | of amplitudes and floor | of the prediction | "
            "median error of the exponents | width | of the prediction |",
            "|---|---|---|---|---|---|---|---|---|",
            *rows[way],
            "",
            f"Smallest and largest coverage of all {len(rates[way])}: {min(rates[way]):.1f} and {max(rates[way]):.1f} %; "
            f"mean {np.mean(rates[way]):.1f} %; {sum(90 <= rate <= 99 for rate in rates[way])} lie within 90 and 99 %.",
        ]
    lines += ["", "## Time", "", *speed(options.seed)]
    facts = collect(seed=options.seed)
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
