"""The comparison of initialisations as Markdown, and where their directions lie: why one is (not) better than another.

    lorascope compare-inits --out FOLDER ...
    python benchmarks/compare_inits.py FOLDER --write docs/benchmarks/compare_inits.md [--overlap]

With --overlap, the subspaces of fisher, activation and gradient are compared on the same rows: the mean squared cosine
of their principal angles, per kind of layer, beside what random subspaces would have, and each one's share of the traces.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from lorascope.core.files import atomic_write_text, read_json
from lorascope.core.provenance import collect
from lorascope.initialization import LayerStatistics, collect_statistics
from lorascope.initialization.selection_scores import leading_directions
from lorascope.measuring import load_model_and_tokenizer
from lorascope.report.inits import inits_frame
from lorascope.sweeps.inits import metric_label
from lorascope.tasks import PaddingCollator, encode_task, load_task
from lorascope.training import RunSpec, attach_lora

KINDS = ("fisher", "activation", "gradient")


def markdown(frame: pd.DataFrame) -> str:
    """A data frame as a Markdown table."""

    def text(item: Any) -> str:
        if isinstance(item, float):
            return "" if np.isnan(item) else f"{item:.4g}"
        return "" if item is None else str(item)

    rows = [[text(item) for item in row] for row in frame.to_numpy()]
    lines = ["| " + " | ".join(map(str, frame.columns)) + " |", "|" + "---|" * len(frame.columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def overlap(rank: int, rows: int, targets: tuple[str, ...]) -> pd.DataFrame:
    """One row a layer: overlaps of the leading subspaces on one half of the rows, and with those of the other half."""
    model, tokenizer = load_model_and_tokenizer("smollm2")
    features = encode_task(load_task("towns"), tokenizer, "train", limit=2 * rows).features
    collate = PaddingCollator(tokenizer)
    peft_model = attach_lora(model, RunSpec(rank=rank, target_modules=targets))

    def subspaces(layer: LayerStatistics) -> dict[str, Any]:
        assert layer.input_fisher is not None and layer.input is not None and layer.mean_gradient is not None
        gradient = layer.mean_gradient.matrix(layer.tokens)
        square = gradient.T @ gradient
        values, vectors = torch.linalg.eigh(square)
        fisher, activation = (leading_directions(x, layer.tokens, rank) for x in (layer.input_fisher, layer.input))
        return {
            "fisher": fisher,
            "activation": activation,
            "gradient": vectors.flip(1)[:, :rank],
            "shares": {
                "fisher": float((fisher * (layer.input_fisher.sum / layer.tokens @ fisher)).sum() / layer.fisher_trace),
                "activation": float(
                    (activation * (layer.input.sum / layer.tokens @ activation)).sum() / layer.input_energy
                ),
                "gradient": float(values.flip(0)[:rank].sum() / values.sum()),
            },
            "signal": float(square.trace() * layer.tokens / layer.fisher_trace),
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
        for first, second in (("fisher", "activation"), ("fisher", "gradient"), ("activation", "gradient")):
            row[f"{first}-{second}"] = float((one[first].T @ one[second]).square().sum() / rank)
        for kind in KINDS:
            row[f"{kind} again"] = float((one[kind].T @ two[kind]).square().sum() / rank)
            row[f"{kind} share"] = one["shares"][kind]
        row["signal"] = one["signal"]
        table.append(row)
    return pd.DataFrame(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", type=Path, required=True)
    parser.add_argument("--notes", type=Path, help="Markdown to put after the headline")
    parser.add_argument("--overlap", action="store_true")
    parser.add_argument("--rows", type=int, default=32, help="rows of each half for the overlaps")
    options = parser.parse_args()
    facts = read_json(options.folder / "inits.json")
    summary, runs = pd.DataFrame(facts["summary"]), pd.DataFrame(facts["runs"])
    labels = {metric: metric_label(metric) for metric in summary["metric"].unique()}
    parts = ["# Does an initialisation help?", "", facts["form"], "", f"**{facts['headline']}**", ""]
    parts += [f"- {note}" for note in facts["notes"]]
    parts += [f"- failed: {name}: {reason}" for name, reason in facts["failed"].items()]
    parts += ["", options.notes.read_text(encoding="utf-8") if options.notes else ""]
    parts += ["## Every number", "", markdown(inits_frame(summary, labels)), ""]
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
        atomic_write_text(kept, overlap(8, options.rows, ("q_proj", "v_proj")).to_csv(index=False))
    if kept.is_file():
        means = pd.read_csv(kept).groupby("layer").mean().reset_index()
        parts += [
            "## Where the directions lie",
            "",
            f"Two halves of {options.rows} rows each, rank 8, means over layers. ",
        ]
        parts += [
            "Overlap: mean squared cosine of the principal angles, 1 for the same subspace, `random` for random ones. "
        ]
        parts += [
            "`again`: the same method on the other half. `share`: of the method's own trace in its 8 directions. "
        ]
        parts += [
            "`signal`: |M|^2 times the number of tokens over tr F_in; about 1 if the mean gradient were only noise.",
            "",
        ]
        parts += [markdown(means), ""]
    machine = json.dumps(facts["provenance"], indent=1)
    parts += [f"Training took {runs['seconds_training'].sum() / 60:.0f} minutes in the runs that are compared.", ""]
    parts += ["```json", machine, "```", "", f"Written with lorascope {collect()['versions'].get('lorascope')}.", ""]
    atomic_write_text(options.write, "\n".join(parts))
    atomic_write_text(options.write.with_suffix(".csv"), runs.to_csv(index=False))
    print("\n".join(parts))


if __name__ == "__main__":
    main()
