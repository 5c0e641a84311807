"""The paper's experiments in reduced form on the real 135M model: tables, verdicts, fit and recommendation.

Runs (or goes on with) the sweep of  lorascope reproduce  and writes what it shows as Markdown, with the runs as CSV beside
it. Nothing is trained again that FOLDER already holds.

    python benchmarks/paper_reduced.py --out FOLDER [--seeds 2] [--workers 2] --write docs/benchmarks/paper_reduced.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd

from lorascope.cli.claims import make_ledger
from lorascope.core.provenance import collect
from lorascope.report.paper import paper_tables
from lorascope.scaling import compare_laws, read_table
from lorascope.scaling.plan import recommend
from lorascope.sweeps import run_sweep
from lorascope.sweeps.paper import reduced_sweep

TITLES = {
    "table-1": "Table 1: ranks and shared layers (largest training set, main prompt; means over seeds)",
    "table-2": "Table 2: prompts (rank 16)",
    "table-3": "Table 3: mutual information and its bounds",
}


def markdown(frame: pd.DataFrame) -> str:
    """A data frame as a Markdown table, without a library that only does that."""
    rows = [[f"{item:.4g}" if isinstance(item, float) else str(item) for item in row] for row in frame.to_numpy()]
    lines = ["| " + " | ".join(map(str, frame.columns)) + " |", "|" + "---|" * len(frame.columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def laws(table: pd.DataFrame) -> pd.DataFrame:
    """The four laws compared for each metric."""
    rows = []
    main = table[(table["prompt"] == "main") & (table["R"] > 0)]
    for metric in ("accuracy", "ce", "miub_js", "mi_joint"):
        found = compare_laws(main, metric)
        rows.append({"metric": metric, "verdict": found.statement})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="towns")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    sweep = reduced_sweep(options.model, options.task, seeds=options.seeds)
    run_sweep(sweep, options.out, workers=options.workers)
    table = read_table(options.out)
    ledger = make_ledger(str(options.out), n_boot=10_000, seed=0)
    claims = pd.DataFrame(ledger["claims"])
    told = claims[claims["value"].notna()]
    parts = ["# The paper's experiments in reduced form", ""]
    parts += [
        f"{options.model} on {options.task}: ranks 4, 16 and 64 in place of 32, 128 and 512; 40, 120 and 320 training rows; "
        f"20 steps of 16 rows; 100 questions, 32 measured rows; {options.seeds} seeds (prompts: one). Information in nats, "
        "summed over layers. Orderings can be compared with the paper's, values cannot. Every run: the CSV file beside.",
        "",
    ]
    for name, frame in paper_tables(table).items():
        parts += [f"## {TITLES[name]}", "", markdown(frame.reset_index()), ""]
    parts += ["## Claims", "", f"{', '.join(f'{n} {v}' for v, n in ledger['verdicts'].items())}.", ""]
    parts += [markdown(told[["verdict", "statement", "explanation"]]), ""]
    parts += ["## Which metric to watch?", "", str(ledger["watch"]), ""]
    ranking = pd.DataFrame(ledger["ranking"])[["label", "better", "tau", "low", "high", "pairs"]]
    parts += [markdown(ranking), ""]
    parts += ["## Scaling laws", "", markdown(laws(table)), ""]
    parts += ["## Recommendation", "", "```", recommend(table, seed=0).summary(), "```", ""]
    seconds = table["seconds_total"].sum()
    parts += [f"All cells together took {seconds / 60:.0f} minutes of their own time.", ""]
    parts += ["```json", json.dumps(collect(seed=0), indent=1), "```", ""]
    text = "\n".join(parts)
    print(text)
    if options.write is not None:
        options.write.write_text(text, encoding="utf-8")
        table.to_csv(options.write.with_suffix(".csv"), index=False)


if __name__ == "__main__":
    main()
