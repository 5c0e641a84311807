"""Is choosing rows better than drawing them? Each method against random choice, on the embedded model and the towns task.

Scores a part of the towns' train rows once. Each seed has a pool of its own (three quarters of those rows), from which each
method chooses; an adapter is trained on the chosen rows and scored on the same test questions. Runs are cells of a sweep:
nothing is done twice, and Ctrl-C or a kill loses little.

    python benchmarks/select_rows.py --out FOLDER [--budgets 16 48] [--seeds 3] --write docs/benchmarks/select_rows.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from lorascope.core.files import atomic_write_text
from lorascope.core.provenance import collect
from lorascope.core.seeds import derive_seed
from lorascope.initialization.selection import METHODS
from lorascope.initialization.selection_designs import at_random, greedy_d_optimal, largest
from lorascope.initialization.selection_options import ScoreOptions
from lorascope.initialization.selection_pool import Pool, load_pool, mapping_of
from lorascope.initialization.selection_scores import PoolScorer
from lorascope.measuring import load_model_and_tokenizer
from lorascope.sweeps import SweepSpec, run_sweep
from lorascope.tasks import load_task

BASE = {
    "preset": "quick",
    "rank": 8,
    "batch_size": 4,
    "max_steps": 24,
    "measure_limit": 2,
    "metrics": ["update_ratio"],
}


def numbers(scorer: PoolScorer, method: str) -> tuple[np.ndarray, bool]:
    """What a method goes by, for all rows, and whether it is a design's features."""
    if method.startswith("d_optimal"):
        labels = "expected" if method.endswith("expected") else "given"
        return scorer.gradients(labels=labels).weighted_features, True
    if method.startswith("energy"):
        return scorer.gradients(labels="expected" if method.endswith("expected") else "given").expected_energy, False
    found = {
        "smallest_logits": scorer.logit_norm,
        "smallest_attention": scorer.attention_norm,
        "entropy": scorer.entropy,
        "loss": scorer.loss,
    }[method]()
    return (-found if method.startswith("smallest") else found), False


def choices(
    pool: Pool, methods: list[str], budgets: list[int], seeds: int, cache: Path, layers: str
) -> dict[str, list[int]]:
    """Name of the run -> rows of the pool that it is trained on."""
    model, tokenizer = load_model_and_tokenizer("smollm2")
    scorer = PoolScorer(model, tokenizer, pool, ScoreOptions(fisher_rows=64, target_modules=layers), cache=cache)
    known = {method: numbers(scorer, method) for method in methods if METHODS[method].model}
    found = {}
    for seed in range(seeds):
        here = np.sort(at_random(len(pool), len(pool) * 3 // 4, derive_seed(seed, "pool")))
        for method in methods:
            for budget in budgets:
                if method == "random":
                    picked = at_random(len(here), budget, seed)
                else:
                    values, design = known[method]
                    part = values[here]
                    picked = greedy_d_optimal(part, budget).order if design else largest(part, budget)
                found[f"{method}-b{budget}-s{seed}"] = [int(here[index]) for index in picked]
    return found


def folders(pool: Pool, found: dict[str, list[int]], test: int, root: Path) -> None:
    """A folder of rows for each run."""
    rows = load_task("towns").rows("test", limit=test)
    text = "".join(json.dumps(mapping_of(row), ensure_ascii=False) + "\n" for row in rows)
    for name, picked in found.items():
        train = "".join(pool.lines[index] + "\n" for index in picked)
        for split, content in (("train", train), ("test", text)):
            path = root / name / f"{split}.jsonl"
            if not path.is_file() or path.read_text(encoding="utf-8") != content:
                atomic_write_text(path, content)


def table_of(out: Path) -> pd.DataFrame:
    """The runs that are done: method, budget, seed, accuracy, ce."""
    table = pd.read_csv(out / "table.csv")
    table = table[table["status"] == "done"].copy()
    parts = table["task"].str.extract(r"([a-z_]+)-b(\d+)-s(\d+)$")
    table["method"], table["budget"] = parts[0], parts[1].astype(int)
    return table[["method", "budget", "seed", "accuracy", "ce", "seconds_training"]].sort_values(
        ["budget", "method", "seed"]
    )


def against_random(table: pd.DataFrame) -> pd.DataFrame:
    """Mean differences to random choice, paired by seed (same pool, same order of training), with 95 % t intervals."""
    rows = []
    budgets = sorted(table["budget"].unique())
    for method in table["method"].unique():
        for budget in [*budgets, "all"]:
            part = table if budget == "all" else table[table["budget"] == budget]
            wide = part.pivot_table(index=["seed", "budget"], columns="method", values=["ce", "accuracy"])
            if method not in wide["ce"] or "random" not in wide["ce"]:
                continue
            row = {"method": method, "budget": budget}
            for metric in ("ce", "accuracy"):
                row[metric] = wide[metric][method].mean()
                gap = (wide[metric][method] - wide[metric]["random"]).dropna()
                if budget == "all":  # budgets of one seed share a pool: the seed is the unit
                    gap = gap.groupby("seed").mean()
                row[f"{metric}_gap"] = gap.mean()
                half = stats.t.ppf(0.975, len(gap) - 1) * stats.sem(gap) if len(gap) > 1 else np.nan
                row[f"{metric}_low"], row[f"{metric}_high"] = gap.mean() - half, gap.mean() + half
            row["seeds"] = len(gap)
            rows.append(row)
    return pd.DataFrame(rows)


def gap(row: pd.Series, metric: str) -> str:
    return f"{row[f'{metric}_gap']:+.3f} ({row[f'{metric}_low']:+.3f} to {row[f'{metric}_high']:+.3f})"


def verdict(row: pd.Series) -> str:
    if row["method"] == "random":
        return ""
    if row["ce_high"] < 0:
        return "better than random"
    if row["ce_low"] > 0:
        return "worse than random"
    return "undecided"


def document(found: pd.DataFrame, runs: pd.DataFrame, options: argparse.Namespace) -> str:
    budgets = sorted(runs["budget"].unique())
    lines = [
        "# Choosing rows against drawing them",
        "",
        f"SmolLM2-135M on the towns task. {options.pool} train rows were scored once; each of {runs['seed'].nunique()} "
        f"seeds has a pool of {options.pool * 3 // 4} of them, and from it each method takes "
        f"{' or '.join(map(str, budgets))} rows. Training: preset `quick` with rank {BASE['rank']}, {options.steps} "
        f"steps of {BASE['batch_size']} rows, layers {options.layers or 'all-linear'}; the method and random choice share "
        f"pool and training seed. Scored on the same {options.test} test questions. Differences to random choice, paired "
        "by seed, with 95 % t intervals over seeds (for budgets together: over seeds' means). Labels given: `energy`, "
        "`d_optimal`, `loss`; the others see none. The verdict is about cross-entropy (nats a token of the right answer); "
        f"with {found['method'].nunique() - 1} methods looked at, one in twenty intervals misses by chance.",
        "",
    ]
    for budget in ["all", *budgets]:
        lines += [f"## {'Budgets together' if budget == 'all' else f'{budget} rows'}", ""]
        lines += [
            "| method | ce | ce minus random's | accuracy | accuracy minus random's | verdict |",
            "|---|---|---|---|---|---|",
        ]
        part = found[found["budget"] == budget].sort_values("ce")
        for _, row in part.iterrows():
            gaps = [
                ""
                if row["method"] == "random"
                else f"{row[f'{m}_gap']:+.3f} ({row[f'{m}_low']:+.3f} to {row[f'{m}_high']:+.3f})"
                for m in ("ce", "accuracy")
            ]
            lines.append(
                f"| `{row['method']}` | {row['ce']:.3f} | {gaps[0]} | {row['accuracy']:.3f} | {gaps[1]} | {verdict(row)} |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--budgets", nargs="+", type=int, default=[16, 48])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pool", type=int, default=320)
    parser.add_argument("--test", type=int, default=80)
    parser.add_argument("--steps", type=int, default=BASE["max_steps"], help="training steps of 4 rows")
    parser.add_argument("--layers", help="regular expression of the trained layers; default: all linear ones")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--score-only", action="store_true")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--notes", type=Path, help="Markdown to put below the tables")
    options = parser.parse_args()
    base = {**BASE, "max_steps": options.steps, "target_modules": options.layers or "all-linear"}
    rows = load_task("towns").rows("train", limit=options.pool)
    pool = load_pool([mapping_of(row) for row in rows])
    place = options.out / f"choices-{'-'.join(map(str, options.budgets))}-{options.seeds}.json"
    found = choices(
        pool, options.methods, options.budgets, options.seeds, options.out / "scores", options.layers or "all-linear"
    )
    place.write_text(json.dumps(found))
    if options.score_only:
        return
    folders(pool, found, options.test, options.out / "rows")
    # All methods of a seed and budget come before the next, so that what is there can always be compared.
    names = sorted(found, key=lambda name: (name.rsplit("-s")[1], name.rsplit("-b")[1]))
    cells = [
        {"task": str((options.out / "rows" / name).resolve()), "seed": int(name.rsplit("-s")[1])} for name in names
    ]
    run_sweep(
        SweepSpec(base=base, cells=cells),
        options.out / "sweep",
        workers=options.workers,
        on_event=lambda event: print(event.kind, event.name, event.settled, event.total, event.reason, flush=True),
    )
    runs = table_of(options.out / "sweep")
    compared = against_random(runs)
    text = document(compared, runs, options)
    print(text)
    if options.write is not None:
        notes = options.notes.read_text(encoding="utf-8") if options.notes else ""
        seconds = runs["seconds_training"].sum()
        facts = json.dumps(collect(seed=0), indent=1)
        end = f"\nTraining took {seconds / 60:.0f} minutes in all.\n\n```json\n{facts}\n```\n"
        atomic_write_text(options.write, text + notes + end)
        atomic_write_text(options.write.with_suffix(".csv"), runs.to_csv(index=False))


if __name__ == "__main__":
    main()
