"""The paper's experiments in reduced form on the real 135M model: tables, verdicts, fit and recommendation.

Runs (or goes on with) the sweep of  lorascope reproduce  and writes what it shows as Markdown, with the runs as CSV and the
figures as SVG beside it. Nothing is trained again that FOLDER already holds. With --join, the runs of an earlier table with
other seeds are added, and cells that both have are compared. With --table nothing is run: the page is written anew from runs
that are there.

    python benchmarks/paper_reduced.py --out FOLDER [--seeds 2] [--first-seed 0] [--workers 2]
        [--join EARLIER.csv] [--wall SECONDS] --write docs/benchmarks/paper_reduced.md
    python benchmarks/paper_reduced.py --table docs/benchmarks/paper_reduced.csv [--first-seed 2] [--wall SECONDS]
        [--note TEXT] --write docs/benchmarks/paper_reduced.md
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import pandas as pd

from lorascope.cli.claims import make_ledger
from lorascope.core.files import atomic_write_text
from lorascope.core.provenance import collect
from lorascope.report.paper import paper_figures, paper_tables
from lorascope.scaling import compare_laws, read_table
from lorascope.scaling.cost import cost_of
from lorascope.scaling.cost_shapes import ModelShape
from lorascope.scaling.paper_layout import why_empty
from lorascope.scaling.plan import recommend
from lorascope.scaling.plan_costs import cost_book
from lorascope.scaling.plan_runs import prepare
from lorascope.sweeps import run_sweep
from lorascope.sweeps.paper import reduced_sweep
from lorascope.tasks import length_bins, load_task
from lorascope.tasks.embedded import load_tokenizer

TITLES = {
    "table-1": "Table 1: ranks and shared layers (largest training set, main prompt; means over seeds)",
    "table-2": "Table 2: prompts",
    "table-3": "Table 3: mutual information and its bounds",
}


FIGURES = {
    "figure-2-rank": "Figure 2, ranks: a line for each training size; means, and bars of one standard deviation, over seeds",
    "figure-2-size": "Figure 2, model size: half of the layers shared in groups of 8, 4, 2 and 1",
    "figure-2-data": "Beyond the paper, training rows: a line for each rank",
    "figure-3": "Figure 3, prompt length (one seed)",
}


ROWS = 16  # of a training step
ERRORS = ("median_error", "largest_error")
SMOLLM2 = ModelShape(
    hidden_size=576, layers=30, heads=9, kv_heads=3, intermediate_size=1536, vocab_size=49152, tied=True
)


def cell(item: object) -> str:
    """A number with four digits, a dash for what is not there."""
    if isinstance(item, float):
        return "–" if math.isnan(item) else f"{item:.4g}"
    return str(item)


def markdown(frame: pd.DataFrame) -> str:
    """A data frame as a Markdown table, without a library that only does that."""
    rows = [[cell(item) for item in row] for row in frame.to_numpy()]
    lines = ["| " + " | ".join(map(str, frame.columns)) + " |", "|" + "---|" * len(frame.columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def joined(earlier: pd.DataFrame, table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Both tables, a cell of both once, and how far apart the two runs of such cells are."""
    both = sorted(set(earlier["name"]) & set(table["name"]))
    told = []
    for name in both:
        a, b = (frame[frame["name"] == name].iloc[0] for frame in (earlier, table))
        gaps = {key: abs(float(a[key]) - float(b[key])) for key in ("accuracy", "ce", "miub_js", "mi_joint")}
        told.append(f"{name}: " + ", ".join(f"{key} {gap:.2g}" for key, gap in gaps.items()))
    said = f"Cells that two sessions ran, and the difference: {'; '.join(told)}." if told else ""
    return pd.concat([earlier, table]).drop_duplicates("name").reset_index(drop=True), said


def laws(table: pd.DataFrame) -> pd.DataFrame:
    """The four laws compared for each metric."""
    rows = []
    main = table[(table["prompt"] == "main") & table["length"].isna() & (table["R"] > 0)]
    for metric in ("accuracy", "ce", "miub_js", "mi_joint"):
        found = compare_laws(main, metric)
        rows.append({"metric": metric, "verdict": found.statement})
    return pd.DataFrame(rows)


def costs(table: pd.DataFrame) -> pd.DataFrame:
    """The models of time and memory against the runs: as a plan has them, and from the model's dimensions alone."""
    rows = []
    every = table[table["R"] > 0]
    for label, runs in (("the runs that a plan takes", prepare(table).rows), ("all runs", every)):
        for name, found in cost_book(runs).calibration.items():
            what = f"{name.replace('_', ' ')}, left-out cells of {label}"
            rows.append({"model": what, "runs": int(found["rows"]), **{k: f"{found[k]:.1%}" for k in ERRORS}})
    if set(every["model"]) == {"smollm2"}:
        gaps = []
        for run in every[every["share"].isna()].itertuples():
            tokens = run.train_tokens_seen / run.train_steps
            cost = cost_of(SMOLLM2, rank=int(run.R), batch_size=ROWS, length=round(tokens / ROWS))
            gaps.append(1 - cost.peak_bytes / run.peak_memory_bytes)
        told = f"memory from dimensions alone (too little in every run, least {min(gaps):.1%})"
        error = (f"{pd.Series(gaps).median():.1%}", f"{max(gaps):.1%}")
        rows.append({"model": told, "runs": len(gaps), **dict(zip(ERRORS, error, strict=True))})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder of the runs")
    parser.add_argument("--table", type=Path, help="runs that are there, in place of --out")
    parser.add_argument("--note", default="", help="a sentence for the top of the page")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="towns")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--join", type=Path, help="an earlier table of the same cells with other seeds")
    parser.add_argument("--wall", type=float, help="seconds that the whole command took, for the record")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    if (options.out is None) == (options.table is None):
        parser.error("give --out or --table")
    said = options.note
    if options.table is not None:
        table = read_table(options.table)
        own = table[table["seed"] >= options.first_seed]
    else:
        bins = length_bins(load_task(options.task), load_tokenizer(options.model))
        sweep = reduced_sweep(
            options.model, options.task, seeds=options.seeds, first_seed=options.first_seed, lengths=bins
        )
        run_sweep(sweep, options.out, workers=options.workers)
        table = own = read_table(options.out)
    seconds = float(own["seconds_total"].sum())
    if options.join is not None:
        table, said = joined(read_table(options.join), table)
    runs = options.table or (options.out / "joined.csv" if options.write is None else options.write.with_suffix(".csv"))
    if options.table is None:
        table.to_csv(runs, index=False)
    ledger = make_ledger(str(runs), n_boot=10_000, seed=0)
    claims = pd.DataFrame(ledger["claims"])
    judged = claims[claims["value"].notna()]
    parts = ["# The paper's experiments in reduced form", ""]
    parts += [
        f"{options.model} on {options.task}: ranks 4, 16 and 64 in place of 32, 128 and 512; 40, 120 and 320 training rows; "
        f"20 steps of 16 rows; 100 questions, 32 measured rows; {table['seed'].nunique()} seeds (fewer for lengths and "
        f"prompts). Length bins: {', '.join(sorted(table['length'].dropna().unique()))} tokens. Information in nats, summed "
        "over layers. Orderings can be compared with the paper's, values cannot. Every run: the CSV file beside.",
        "",
        said,
        "",
    ]
    for name, frame in paper_tables(table).items():
        told = f"{why_empty(frame)} `share 1` is the run of rank {frame.attrs['share_rank']} without sharing."
        told += " The rows of `main` are those of Table 1." if name == "table-2" else ""
        parts += [f"## {TITLES[name]}", "", told.strip(), "", markdown(frame.reset_index()), ""]
    parts += ["## Figures", ""]
    for name, drawing in paper_figures(table).items():
        place = options.write or runs
        file = place.with_name(f"{place.stem}_{name}.svg")
        atomic_write_text(file, drawing)
        parts += [f"![{FIGURES[name]}]({file.name})", "", f"{FIGURES[name]}.", ""]
    parts += ["## Claims", "", f"{', '.join(f'{n} {v}' for v, n in ledger['verdicts'].items())}.", ""]
    parts += [markdown(judged[["verdict", "statement", "explanation"]]), ""]
    parts += ["## Which metric to watch?", "", str(ledger["watch"]), ""]
    ranking = pd.DataFrame(ledger["ranking"])[["label", "better", "tau", "low", "high", "pairs"]]
    parts += [markdown(ranking), ""]
    parts += ["## Scaling laws", "", markdown(laws(table)), ""]
    parts += ["## Recommendation", "", "```", recommend(table, seed=0).summary(), "```", ""]
    parts += ["## Costs: models against these runs", "", markdown(costs(table)), ""]
    took = f"; the whole command took {options.wall / 60:.1f} minutes by the clock" if options.wall else ""
    parts += [
        f"The {len(own)} cells of the last session (seeds from {options.first_seed}) together took {seconds / 60:.0f} "
        f"minutes of their own time{took}.",
        "",
    ]
    parts += ["```json", json.dumps(collect(seed=0, files=[runs]), indent=1), "```", ""]
    text = "\n".join(parts)
    print(text)
    if options.write is not None:
        options.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
