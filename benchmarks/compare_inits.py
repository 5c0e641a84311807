"""The comparison of initialisations as Markdown, and where their directions lie: why one is (not) better than another.

    lorascope compare-inits --out FOLDER ...
    python benchmarks/compare_inits.py FOLDER --write docs/benchmarks/compare_inits.md [--overlap --targets REGEX]

With --overlap, the subspaces of fisher, fisher_batch, activation and gradient are compared on the same rows: the mean
squared cosine of their principal angles, per kind of layer, beside what random subspaces would have, and how much of the
traces they hold.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lorascope.core.files import atomic_write_text, read_json
from lorascope.core.provenance import collect
from lorascope.initialization import LayerStatistics, collect_statistics, directions
from lorascope.measuring import load_model_and_tokenizer
from lorascope.report.inits import inits_frame
from lorascope.sweeps.inits import metric_label
from lorascope.tasks import PaddingCollator, encode_task, load_task
from lorascope.training import RunSpec, attach_lora

KINDS = ("fisher", "fisher_batch", "activation", "gradient")
PAIRS = (
    ("fisher", "activation"),
    ("fisher", "gradient"),
    ("activation", "gradient"),
    ("fisher_batch", "fisher"),
    ("fisher_batch", "gradient"),
)
BATCH = 4
"""Rows of a training step, which fisher_batch takes its number of tokens from."""


def markdown(frame: pd.DataFrame) -> str:
    """A data frame as a Markdown table."""

    def text(item: Any) -> str:
        if isinstance(item, float):
            return "" if np.isnan(item) else f"{item:.4g}"
        return "" if item is None else str(item)

    rows = [[text(item) for item in row] for row in frame.to_numpy()]
    lines = ["| " + " | ".join(map(str, frame.columns)) + " |", "|" + "---|" * len(frame.columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def overlap(rank: int, rows: int, targets: str) -> pd.DataFrame:
    """One row a layer: overlaps of the leading subspaces on one half of the rows, and with those of the other half."""
    model, tokenizer = load_model_and_tokenizer("smollm2")
    features = encode_task(load_task("towns"), tokenizer, "train", limit=2 * rows).features
    collate = PaddingCollator(tokenizer)
    peft_model = attach_lora(model, RunSpec(rank=rank, target_modules=targets))

    def subspaces(layer: LayerStatistics) -> dict[str, Any]:
        assert layer.input_fisher is not None and layer.mean_gradient is not None
        square = float(layer.mean_gradient.matrix(layer.tokens).square().sum())
        starts = {
            "fisher": directions.fisher(layer, None, rank),
            "fisher_batch": directions.fisher_batch(layer, None, rank, batches=max(1, rows // BATCH)),
            "activation": directions.activation(layer, None, rank),
            "gradient": directions.gradient(layer, None, rank),
        }
        found: dict[str, Any] = {kind: start.directions[:, :rank].clone() for kind, start in starts.items()}
        fisher = layer.input_fisher.sum / layer.tokens
        held = {kind: float((found[kind] * (fisher @ found[kind])).sum() / layer.fisher_trace) for kind in KINDS}
        assert layer.input is not None
        inputs, trace = layer.input.sum, float(layer.input.trace)
        seen = {kind: float((found[kind] * (inputs @ found[kind])).sum() / trace) for kind in KINDS}
        pulled = layer.mean_gradient.matrix(layer.tokens)
        mean = {kind: float((pulled @ found[kind]).square().sum() / square) for kind in KINDS}
        return {
            **found,
            "fisher held": held,
            "input held": seen,
            "gradient held": mean,
            "signal": square * layer.tokens / layer.fisher_trace,
        }

    halves = []
    for half in (features[:rows], features[rows:]):
        batches = [collate(half[start : start + 8]) for start in range(0, rows, 8)]
        need = ("input_fisher", "input", "mean_gradient")
        halves.append(collect_statistics(peft_model, batches, need=need, reduce=subspaces).layers)
    table = []
    for name, one in halves[0].items():
        two = halves[1][name]
        row: dict[str, Any] = {"layer": name.split(".")[-1], "random": rank / len(one["fisher"])}
        for first, second in PAIRS:
            row[f"{first}-{second}"] = float((one[first].T @ one[second]).square().sum() / rank)
        for kind in KINDS:
            row[f"{kind} again"] = float((one[kind].T @ two[kind]).square().sum() / rank)
            row[f"F_in held by {kind}"] = one["fisher held"][kind]
            row[f"M held by {kind}"] = one["gradient held"][kind]
            row[f"A held by {kind}"] = one["input held"][kind]
        row["signal"] = one["signal"]
        table.append(row)
    return pd.DataFrame(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", type=Path, required=True)
    parser.add_argument("--notes", type=Path, help="Markdown to put after the headline")
    parser.add_argument("--overlap", action="store_true")
    parser.add_argument(
        "--targets", default="all-linear", help="layers of the overlaps: all-linear or a regular expression"
    )
    parser.add_argument("--rows", type=int, default=32, help="rows of each half for the overlaps")
    options = parser.parse_args()
    facts = read_json(options.folder / "inits.json")
    summary, runs = pd.DataFrame(facts["summary"]), pd.DataFrame(facts["runs"])
    labels = {metric: metric_label(metric) for metric in summary["metric"].unique()}
    parts = ["# Does an initialisation help?", "", facts["form"], "", f"**{facts['headline']}**", ""]
    parts += [f"- {note}" for note in facts["notes"]]
    parts += [f"- failed: {name}: {reason}" for name, reason in facts["failed"].items()]
    parts += ["", options.notes.read_text(encoding="utf-8") if options.notes else ""]
    parts += ["## Every number", ""]
    parts += [
        "Intervals: a bootstrap over seeds, widened for their number. t, p: Student's on the same differences; where an"
    ]
    parts += ["interval ends near 0 the two may differ. Adjusted p: Holm over methods.", ""]
    parts += [markdown(inits_frame(summary, labels)), ""]
    tuning = pd.DataFrame(facts["tuning"]).pivot(index="method", columns="learning_rate", values="loss").reset_index()
    parts += [
        "## Learning rates",
        "",
        "Validation loss at the end of training on the tuning seed.",
        "",
        markdown(tuning),
        "",
    ]
    kept = options.folder / "overlap.csv"
    if options.overlap and not kept.is_file():
        atomic_write_text(kept, overlap(8, options.rows, options.targets).to_csv(index=False))
    if kept.is_file():
        means = pd.read_csv(kept).groupby("layer").mean().reset_index()
        parts += ["## Where the directions lie", ""]
        parts += [
            f"Two halves of {options.rows} rows each, rank 8, means over layers of a kind (layers: {options.targets})."
        ]
        parts += [
            "Overlap: mean squared cosine of the principal angles, 1 for the same subspace, `random` for random ones."
        ]
        parts += [
            "`again`: the same method on the other half. `F_in held`, `M held`, `A held`: share of tr F_in, |M|^2, tr A"
        ]
        parts += [
            "in its 8 directions. `signal`: |M|^2 times the number of tokens over tr F_in, 1 if M were only noise."
        ]
        overlaps = ["layer", "random", *(f"{a}-{b}" for a, b in PAIRS), *(f"{kind} again" for kind in KINDS)]
        shares = ["layer", *(f"{what} held by {kind}" for what in ("F_in", "M", "A") for kind in KINDS), "signal"]
        parts += ["", markdown(means[overlaps]), "", markdown(means[shares]), ""]
    machine = json.dumps(facts["provenance"], indent=1)
    parts += [f"Training took {runs['seconds_training'].sum() / 60:.0f} minutes in the runs that are compared.", ""]
    parts += ["```json", machine, "```", "", f"Written with lorascope {collect()['versions'].get('lorascope')}.", ""]
    atomic_write_text(options.write, "\n".join(parts))
    atomic_write_text(options.write.with_suffix(".csv"), runs.to_csv(index=False))
    print("\n".join(parts))


if __name__ == "__main__":
    main()
