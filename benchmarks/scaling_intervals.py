"""Which bootstrap gives intervals that cover? The measurement behind the choice in `lorascope.scaling`.

Small tables with known parameters are fitted; then the same fit is bootstrapped in four ways, and it is counted how often
the middle 95 % hold each parameter:

- runs: as many runs as there are, drawn with replacement (what lorascope does);
- weights: every run gets an exponential weight (the Bayesian bootstrap);
- residuals: the law plus residuals drawn with replacement, corrected for leverage;
- wild: the law plus each run's own residual times a random sign, corrected for leverage (HC3).

    python benchmarks/scaling_intervals.py [--repetitions 200] [--write docs/benchmarks/scaling_intervals.md]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from pathlib import Path

import numpy as np
import pandas as pd

from lorascope.core.provenance import collect
from lorascope.scaling import additive, multiplicative
from lorascope.scaling.laws import Form, derivatives
from lorascope.scaling.optimum import Optimum, fit_form
from lorascope.scaling.solve import solve
from lorascope.scaling.table import observe

RANGES = {"N": (1e8, 1e10), "R": (4.0, 512.0), "D": (1e3, 1e6)}
CASES: dict[str, tuple[str, dict[str, float], dict[str, int]]] = {
    "multiplicative with floor, 8 ranks": ("multiplicative", {"A": 1.0, "beta": 0.6, "E": 0.5}, {"R": 8}),
    "additive, 3 ranks x 3 sizes of data": (
        "additive",
        {"B": 0.5, "beta": 0.5, "C": 0.8, "gamma": 0.3},
        {"R": 3, "D": 3},
    ),
    "additive, 3 x 3 x 3": (
        "additive",
        {"A": 1.0, "alpha": 0.3, "B": 0.5, "beta": 0.5, "C": 0.8, "gamma": 0.2},
        {"N": 3, "R": 3, "D": 3},
    ),
    "multiplicative with floor, 3 x 3 x 3": (
        "multiplicative",
        {"A": 2.0, "alpha": 0.15, "beta": 0.05, "gamma": 0.2, "E": 0.5},
        {"N": 3, "R": 3, "D": 3},
    ),
}
NOISES = {"1 %": (0.01, 0.0), "5 %": (0.05, 0.0), "5 %, outliers 10 %": (0.05, 0.1)}
WAYS = ("runs", "weights", "residuals", "wild")
LAW = {"additive": additive, "multiplicative": multiplicative}


def leverages(found: Optimum) -> np.ndarray:
    """Diagonal of the hat matrix of the law linearised at the optimum."""
    _, slopes = derivatives(found.problem.form, found.theta[None], found.problem.x)
    basis, singular, _ = np.linalg.svd((slopes[0] / found.problem.scale).T, full_matrices=False)
    return np.minimum((basis[:, singular > 1e-9 * singular[0]] ** 2).sum(axis=1), 0.95)


def draws(way: str, found: Optimum, y: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    n = len(y)
    start = np.broadcast_to(found.theta, (count, len(found.theta)))
    if way in ("runs", "weights"):
        even = np.full(n, 1 / n)
        counts = (
            rng.multinomial(n, even, size=count).astype(float) if way == "runs" else rng.exponential(size=(count, n))
        )
        return solve(found.problem, np.broadcast_to(y, (count, n)), start, counts=counts, tolerance=1e-8)[0]
    left = y - found.fitted
    if way == "wild":
        noise = left / (1 - leverages(found)) * rng.choice([-1.0, 1.0], size=(count, n))
    else:
        scaled = left / found.spread / np.sqrt(1 - leverages(found))
        noise = found.spread * (scaled - scaled.mean())[rng.integers(0, n, size=(count, n))]
    return solve(found.problem, found.fitted + noise, start, tolerance=1e-8)[0]


def one(job: tuple[str, str, int, int]) -> dict[str, list[bool]]:
    name, noise, repetition, count = job
    law, truth, levels = CASES[name]
    steps = [np.geomspace(*RANGES[axis], number) for axis, number in levels.items()]
    places = dict(zip(levels, (column.ravel() for column in np.meshgrid(*steps, indexing="ij")), strict=True))
    reference = {axis: float(np.exp(np.log(column).mean())) for axis, column in places.items()}
    rng = np.random.default_rng([list(CASES).index(name), list(NOISES).index(noise), repetition])
    y = LAW[law](**places, **truth, reference=reference)
    sigma, outliers = NOISES[noise]
    y = y * (1 + sigma * rng.standard_normal(len(y)))
    y = np.where(rng.random(len(y)) < outliers, y * rng.choice([0.5, 2.0], size=len(y)), y)
    seen = observe(pd.DataFrame({**places, "ce": y}), "ce")
    form = Form(law, seen.axes, "E" in truth)
    found, unit = fit_form(form, seen, loss="bisquare", relative=True, signs="auto")
    target = np.array([truth[each] / (unit if len(each) == 1 else 1.0) for each in form.names])
    covered = {}
    for way in WAYS:
        low, high = np.quantile(draws(way, found, y / unit, count, rng), [0.025, 0.975], axis=0, method="weibull")
        covered[way] = ((low <= target) & (target <= high)).tolist()
    return covered


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--n-boot", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    lines = [
        "# Which bootstrap covers",
        "",
        f"Coverage in % of 95 % percentile intervals, {options.repetitions} tables a row, {options.n_boot} bootstrap fits: "
        "mean over the parameters, and in brackets the parameter with the least. The ways are described in "
        "`benchmarks/scaling_intervals.py`.",
        "",
        "| law and runs | noise | runs | weights | residuals | wild |",
        "|---|---|---|---|---|---|",
    ]
    with multiprocessing.Pool(options.processes) as pool:
        for name in CASES:
            for noise in NOISES:
                jobs = [(name, noise, i, options.n_boot) for i in range(options.repetitions)]
                found = pool.map(one, jobs, chunksize=10)
                rates = {way: 100 * np.mean([each[way] for each in found], axis=0) for way in WAYS}
                cells = " | ".join(f"{rates[way].mean():.1f} ({rates[way].min():.1f})" for way in WAYS)
                lines.append(f"| {name} | {noise} | {cells} |")
                print(lines[-1], flush=True)
    facts = collect(seed=0)
    lines += [
        "",
        "```json",
        json.dumps({k: facts[k] for k in ("created", "versions", "machine", "seed")}, indent=1),
        "```",
    ]
    text = "\n".join(lines) + "\n"
    if options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
