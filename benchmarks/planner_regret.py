"""Is the planner's advice worth taking? Its regret and its cost against rules of thumb, random search and Optuna's TPE.

A full sweep is the truth; each strategy sees only the cells that it pays for.

    python benchmarks/planner_regret.py sweep/table.csv            # a real sweep: writes docs/benchmarks/planner_regret.*
    python benchmarks/planner_regret.py --synthetic                # known truths of several shapes
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lorascope.core import provenance
from lorascope.core.errors import InputError
from lorascope.core.files import atomic_write_text, write_json
from lorascope.core.seeds import derive_seed
from lorascope.scaling.design import next_cells
from lorascope.scaling.laws import AXES
from lorascope.scaling.plan import recommend
from lorascope.scaling.plan_costs import cost_book
from lorascope.scaling.plan_runs import prepare
from lorascope.scaling.table import read_table

CAP = 0.2
REPEATS = 5


@dataclass(frozen=True)
class Truth:
    """A full grid: ``values`` (cells, seeds) of the metric times its sign, ``cells`` (m, 3), ``cost`` of one run of each."""

    name: str
    metric: str
    sign: int
    cells: np.ndarray
    values: np.ndarray
    cost: np.ndarray
    rows: pd.DataFrame
    mean: np.ndarray | None = None  # the exact means, of a synthetic truth

    @property
    def means(self) -> np.ndarray:
        """Mean metric of each cell, exact for a synthetic truth."""
        return self.values.mean(1) if self.mean is None else self.mean

    @property
    def noise(self) -> float:
        """Run-to-run spread about cell and seed means."""
        if self.values.shape[1] < 2:
            return math.nan
        left = self.values - self.values.mean(1, keepdims=True) - self.values.mean(0) + self.values.mean()
        return float(np.sqrt((left**2).sum() / ((self.values.shape[0] - 1) * (self.values.shape[1] - 1))))

    @property
    def total(self) -> float:
        """Cost of the whole grid with all seeds."""
        return float(self.cost.sum() * self.values.shape[1])


def truth_of(table: pd.DataFrame, metric: str, name: str) -> Truth:
    """The cells of a table that have every seed."""
    runs = prepare(table, metric)
    wide = runs.frame.pivot_table(index=list(AXES), columns="seed", values="y")
    whole = wide.dropna()
    if len(whole) < 4:
        raise InputError(f"'{name}': only {len(whole)} cells have all {wide.shape[1]} seeds: a truth needs at least 4")
    cells = np.array(whole.index.to_list(), dtype=float)
    cost = cost_book(runs.rows).of(cells)["flops"]
    return Truth(name, runs.metric, runs.sign, cells, runs.sign * whole.to_numpy(), cost, runs.rows)


class Purse:
    """What a strategy has bought: rows of its own table and what they cost."""

    def __init__(self, truth: Truth, order: list[int]) -> None:
        self.truth, self.order = truth, order
        self.bought: list[tuple[int, int]] = []
        self.spent = 0.0
        self.position = {tuple(cell): index for index, cell in enumerate(truth.cells)}

    def left(self, cell: int) -> bool:
        """Whether a seed of the cell is not bought yet."""
        return sum(item == cell for item, _ in self.bought) < len(self.order)

    def buy(self, cell: int, place: int | None = None) -> float:
        """The metric times its sign of one more run: the next seed of that cell, or the place-th."""
        place = sum(item == cell for item, _ in self.bought) if place is None else place
        if (cell, place) in self.bought or place >= len(self.order):
            raise ValueError(f"cell {cell}, seed {place} cannot be bought again")
        self.bought.append((cell, place))
        self.spent += float(self.truth.cost[cell])
        return float(self.truth.values[cell, self.order[place]])

    def table(self) -> pd.DataFrame:
        """The runs bought, as the planner reads them."""
        t = self.truth
        costs = ("train_tokens_seen", "train_steps", "adapter_parameters", "D_tokens", "model", "share")
        known = t.rows.drop_duplicates([axis for axis in AXES if axis in t.rows])
        rows = []
        for cell, place in self.bought:
            row: dict[str, Any] = dict(zip(AXES, t.cells[cell], strict=True))
            match = np.logical_and.reduce([known[a].astype(float) == row[a] for a in AXES if a in known])
            found = known[match].iloc[0]
            row |= {name: found[name] for name in costs if name in known}
            rows.append({**row, "seed": place, t.metric: t.sign * t.values[cell, self.order[place]]})
        return pd.DataFrame(rows)

    def best_seen(self) -> int:
        """The cell with the best mean of what was bought."""
        means: dict[int, list[float]] = {}
        for cell, place in self.bought:
            means.setdefault(cell, []).append(float(self.truth.values[cell, self.order[place]]))
        return max(means, key=lambda cell: float(np.mean(means[cell])))


def planner(truth: Truth, order: list[int], rng: np.random.Generator, cap: float) -> tuple[int, float]:
    """`next_cells` until it is settled or the cap is reached, then `recommend`."""
    purse, seed = Purse(truth, order), int(rng.integers(2**31))
    grid = [dict(zip(AXES, cell, strict=True)) for cell in truth.cells.tolist()]
    places = list(range(len(order)))
    while True:
        table = purse.table() if purse.bought else None
        # FLOPs as the planner predicts them decide; those of the truth are paid.
        asked = next_cells(table, grid, 1, metric=truth.metric, seeds=places, seed=seed)
        if not asked:
            break
        cell = purse.position[tuple(float(asked[0][axis]) for axis in AXES)]
        if purse.spent + truth.cost[cell] > cap * truth.total:
            room = [c for c in range(len(truth.cells)) if purse.spent + truth.cost[c] <= cap * truth.total]
            open_cells = [grid[c] for c in room if purse.left(c)]
            asked = open_cells and next_cells(table, open_cells, 1, metric=truth.metric, seeds=places, seed=seed)
            if not asked:
                break
            cell = purse.position[tuple(float(asked[0][axis]) for axis in AXES)]
        purse.buy(cell, int(asked[0]["seed"]))
    if len(purse.bought) < 2:
        return purse.best_seen() if purse.bought else int(np.argmin(truth.cost)), purse.spent
    plan = recommend(purse.table(), metric=truth.metric, candidates=grid, seed=seed)
    return purse.position[tuple(float(plan.choice[axis]) for axis in AXES)], purse.spent


def nearest(truth: Truth, rank: float) -> int:
    """The cell of the largest model and data with the rank nearest in ratio."""
    top = truth.cells[:, 0] == truth.cells[:, 0].max()
    top &= truth.cells[:, 2] == truth.cells[top, 2].max()
    gap = np.where(top, np.abs(np.log(truth.cells[:, 1] / rank)), np.inf)
    return int(np.argmin(gap))


def fixed(truth: Truth, order: list[int], rng: np.random.Generator, cap: float) -> tuple[int, float]:
    """Rank 16, the largest model, all data: one run."""
    cell = nearest(truth, 16)
    return cell, float(truth.cost[cell])


def thumb(truth: Truth, order: list[int], rng: np.random.Generator, cap: float) -> tuple[int, float]:
    """8, 16, 32 or 64 for under 1k, 10k, 100k or more rows; the largest model, all data: one run."""
    rows = truth.cells[:, 2].max()
    cell = nearest(truth, 8 if rows < 1e3 else 16 if rows < 1e4 else 32 if rows < 1e5 else 64)
    return cell, float(truth.cost[cell])


def random_search(truth: Truth, order: list[int], rng: np.random.Generator, cap: float) -> tuple[int, float]:
    """Cells at random among those that still fit the cost."""
    purse = Purse(truth, order)
    while True:
        room = cap * truth.total - purse.spent + 1e-9 * truth.total
        fits = [c for c in range(len(truth.cells)) if truth.cost[c] <= room and purse.left(c)]
        if not fits:
            return (purse.best_seen(), purse.spent) if purse.bought else (int(np.argmin(truth.cost)), 0.0)
        purse.buy(int(rng.choice(fits)))


def tpe(truth: Truth, order: list[int], rng: np.random.Generator, cap: float) -> tuple[int, float]:
    """Optuna's TPE over the grid's values; a trial that does not fit the cost any more is failed."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    purse = Purse(truth, order)
    sampler = optuna.samplers.TPESampler(seed=int(rng.integers(2**31)), n_startup_trials=5)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    values = [sorted(set(truth.cells[:, column])) for column in range(3)]
    misses = 0
    while misses < 30:
        trial = study.ask()
        place = tuple(v[trial.suggest_int(axis, 0, len(v) - 1)] for axis, v in zip(AXES, values, strict=True))
        cell = purse.position.get(place, -1)
        if cell < 0 or not purse.left(cell) or purse.spent + truth.cost[cell] > (cap + 1e-9) * truth.total:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            misses += 1
            continue
        misses = 0
        study.tell(trial, purse.buy(cell))
    return (purse.best_seen(), purse.spent) if purse.bought else (int(np.argmin(truth.cost)), 0.0)


Strategy = Callable[[Truth, list[int], np.random.Generator, float], tuple[int, float]]
LABELS = {
    "plan": "`lorascope plan`",
    "fixed": "rank 16, all data",
    "thumb": "rule by data size",
    "random": "random, plan's cost",
    "tpe": "TPE, plan's cost",
    "random_cap": f"random, {CAP:.0%}",
    "tpe_cap": f"TPE, {CAP:.0%}",
}


def play(truths: list[Truth], seed: int, repeats: int = REPEATS) -> pd.DataFrame:
    """One row a problem, seed order and strategy: regret, share of the grid's compute, and whether within the noise."""
    rows = []
    for truth in truths:
        seeds = truth.values.shape[1]
        best = float(truth.means.max())
        for first in range(seeds):
            order = [(first + step) % seeds for step in range(seeds)]
            caps = {}
            strategies: dict[str, tuple[Strategy, str | None]] = {
                "plan": (planner, None),
                "fixed": (fixed, None),
                "thumb": (thumb, None),
                "random": (random_search, "plan"),
                "tpe": (tpe, "plan"),
                "random_cap": (random_search, None),
                "tpe_cap": (tpe, None),
            }
            for name, (strategy, like) in strategies.items():
                times = repeats if name.startswith(("random", "tpe")) else 1
                for repeat in range(times):
                    rng = np.random.default_rng(derive_seed(seed, truth.name, first, name, repeat))
                    cell, spent = strategy(truth, order, rng, caps[like] if like else CAP)
                    if name == "plan":
                        caps["plan"] = spent / truth.total
                    regret = best - float(truth.means[cell])
                    place = dict(zip(AXES, truth.cells[cell].tolist(), strict=True))
                    rows.append(
                        {
                            "problem": truth.name,
                            "first_seed": first,
                            "strategy": name,
                            "repeat": repeat,
                            "regret": regret,
                            "compute": spent / truth.total,
                            "within": regret <= truth.noise,
                            "noise": truth.noise,
                            **place,
                        }
                    )
    return pd.DataFrame(rows)


def summarise(found: pd.DataFrame, seed: int, draws: int = 2000) -> pd.DataFrame:
    """Means with 95 % intervals by resampling problems, and seeds within them; differences to the planner are paired."""
    rng = np.random.default_rng(derive_seed(seed, "bootstrap"))
    each = found.groupby(["problem", "first_seed", "strategy"])[["regret", "compute", "within"]].mean()
    wide = each.unstack("strategy")
    problems = wide.index.get_level_values(0)
    places = {name: np.flatnonzero(problems == name) for name in problems.unique()}
    names = list(places)
    picks = []
    for _ in range(draws):
        drawn = rng.choice(len(names), size=len(names))
        picks.append(np.concatenate([rng.choice(places[names[i]], size=len(places[names[i]])) for i in drawn]))
    rows = []
    for name in LABELS:
        values = {key: wide[key][name].to_numpy(dtype=float) for key in ("regret", "compute", "within")}
        values["extra"] = values["regret"] - wide["regret"]["plan"].to_numpy(dtype=float)
        row: dict[str, Any] = {"strategy": name}
        for key, column in values.items():
            means = [float(column[pick].mean()) for pick in picks]
            row |= {key: float(column.mean()), f"{key}_low": float(np.quantile(means, 0.025))}
            row[f"{key}_high"] = float(np.quantile(means, 0.975))
        rows.append(row)
    return pd.DataFrame(rows)


def synthetic(seed: int, seeds: int = 3, kinds: tuple[str, ...] = ()) -> list[Truth]:
    """Grids of 3 models, 6 ranks and 4 sizes of data with a known truth, in several shapes."""
    truths = []
    kinds = kinds or (
        "saturating",
        "rising",
        "flat",
        "overfitting",
        "small ranks best",
        "noisy",
        "rank only",
        "step",
        "less data best",
    )
    for kind in kinds:
        rng = np.random.default_rng(derive_seed(seed, kind))
        models = [1.35e8] if kind == "rank only" else [3.4e7, 6.8e7, 1.35e8]
        sizes = [1600.0] if kind == "rank only" else [100.0, 400.0, 800.0, 1600.0]
        ranks = [2.0, 4.0, 8.0, 16.0, 32.0, 64.0]
        cells = np.array([(n, r, d) for n in models for r in ranks for d in sizes])
        n, r, d = cells.T
        mean = 0.35 + 0.10 * np.log10(n / 3.4e7) + 0.10 * np.log10(d / 100)
        if kind in ("saturating", "noisy", "rank only"):
            mean += 0.08 * (1 - np.exp(-r / 6))
        elif kind == "rising":
            mean += 0.05 * np.log2(r / 2) / 2
        elif kind == "overfitting":  # large ranks overfit, the more the less data
            mean += 0.10 * (1 - np.exp(-r / 4)) - 0.03 * np.log2(r / 2) * (1600 / d) ** 0.3
        elif kind == "small ranks best":
            mean -= 0.02 * np.log2(r / 2)
        elif kind == "step":  # nothing below rank 16, no more above
            mean += 0.08 * (r >= 16)
        elif kind == "less data best":  # a fixed number of steps on easy rows: more rows do harm
            mean += 0.06 * (1 - np.exp(-r / 6)) - 0.18 * np.log10(d / 100)
        noise = 0.03 if kind == "noisy" else 0.012
        shared = rng.normal(0, 0.01, seeds)
        values = mean[:, None] + shared + rng.normal(0, noise, (len(cells), seeds))
        adapter = 30_000 * r * (n / 3.4e7) ** 0.67
        tokens = 25 * d
        rows = pd.DataFrame(cells, columns=list(AXES))
        rows = rows.assign(train_tokens_seen=tokens, adapter_parameters=adapter)
        cost = tokens * (4 * n + 6 * adapter)
        truths.append(Truth(kind, "accuracy", 1, cells, values, cost, rows, mean))
    return truths


def document(found: pd.DataFrame, summary: pd.DataFrame, truths: list[Truth], seed: int, source: str) -> str:
    facts = provenance.collect(seed=seed)
    machine, versions = facts["machine"], facts["versions"]
    plan = summary.set_index("strategy").loc["plan"]
    lines = [
        "# Is the planner's advice worth taking?",
        "",
        f"{source}: {len(truths)} problem{'s' * (len(truths) != 1)}, {truths[0].values.shape[1]} seeds, up to "
        f"{max(len(t.cells) for t in truths)} cells each; metric {truths[0].metric}. Every strategy sees only the runs that "
        "it pays for; each seed takes its turn as the first. Regret: mean over seeds of the best cell minus that of the "
        "chosen one. Noise: run-to-run standard deviation about cell and seed means. Compute: FLOPs of training as a "
        "share of the whole grid with all seeds. Intervals: 95 %, by resampling problems and seeds. A rule of thumb pays "
        "for the one run that it picks; random search and TPE stop at the planner's cost, or at "
        f"{CAP:.0%}, and take the best mean they saw ({REPEATS} repetitions).",
        "",
        f"The goal, within the noise of the best cell for at most {CAP:.0%} of the compute, is "
        f"met in {plan['within']:.0%} of the cases, for {plan['compute']:.1%} of the compute on average.",
        "",
        "| strategy | regret | within noise | compute | regret more than the planner's (paired) |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for _, row in summary.iterrows():
        more = "" if row["strategy"] == "plan" else f"{row.extra:+.4f} ({row.extra_low:+.4f} to {row.extra_high:+.4f})"
        lines.append(
            f"| {LABELS[row['strategy']]} | {row.regret:.4f} ({row.regret_low:.4f} to {row.regret_high:.4f}) | "
            f"{row.within:.0%} | {row.compute:.1%} ({row.compute_low:.1%} to {row.compute_high:.1%}) | {more} |"
        )
    lines += ["", "Regret by problem:", "", f"| problem | noise | {' | '.join(LABELS.values())} |"]
    lines.append("| --- | ---: |" + " ---: |" * len(LABELS))
    means = found.groupby(["problem", "strategy"])["regret"].mean()
    for truth in truths:
        values = " | ".join(f"{means[truth.name, name]:.4f}" for name in LABELS)
        lines.append(f"| {truth.name} | {truth.noise:.4f} | {values} |")
    kept = {name: versions[name] for name in ("lorascope", "python", "numpy", "scipy") if name in versions}
    kept["optuna"] = importlib.metadata.version("optuna")
    lines += [
        "",
        f"Seed {seed}; {', '.join(f'{name} {version}' for name, version in kept.items())}; {machine['cpu']}, "
        f"{machine['cores']} cores. Made by `python benchmarks/planner_regret.py`; every choice is in the JSON file beside "
        "this one.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", nargs="?", type=Path, help="CSV or sweep folder with the full grid")
    parser.add_argument("--synthetic", action="store_true", help="known truths instead of a table")
    parser.add_argument("--metric", default="accuracy")
    parser.add_argument("--problem", default=None, help="column whose values are separate problems, such as task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    options = parser.parse_args()
    if options.synthetic:
        truths, source, name = synthetic(options.seed), "Synthetic grids with a known truth", "planner_regret_synthetic"
    else:
        if options.table is None:
            parser.error("give a table, or --synthetic")
        table = read_table(options.table)
        groups = [("the sweep", table)] if options.problem is None else list(table.groupby(options.problem))
        truths = [truth_of(rows, options.metric, str(key)) for key, rows in groups]
        source, name = "A real sweep, the full grid as the truth", "planner_regret"
    found = play(truths, options.seed)
    summary = summarise(found, options.seed)
    text = document(found, summary, truths, options.seed, source)
    versions = {"optuna": importlib.metadata.version("optuna")}
    facts = {"provenance": provenance.collect(seed=options.seed, extra=versions), "cap": CAP, "repeats": REPEATS}
    facts |= {"summary": summary.to_dict("records"), "runs": found.to_dict("records")}
    write_json(options.out / f"{name}.json", facts)
    atomic_write_text(options.out / f"{name}.md", text)
    print(text)


if __name__ == "__main__":
    main()
