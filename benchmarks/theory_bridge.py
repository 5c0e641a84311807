"""Does a real model follow the theory's shape? LoRA on several amounts of data beside the solvable model's curve.

Runs and scores are kept in FOLDER: the script can be stopped and started.

    python benchmarks/theory_bridge.py --out FOLDER [--sizes 12,48,192] [--seeds 2] [--steps 12]
        [--write docs/benchmarks/theory_bridge.md]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd

from lorascope.bridge import BridgePlan, bridge
from lorascope.cli.theory_bridge import write_bridge
from lorascope.core.files import atomic_write_text
from lorascope.report.bridge import bridge_frames
from lorascope.report.sections import Table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="towns")
    parser.add_argument("--sizes", default="16,48,120,320")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--write", type=Path, default=Path("docs/benchmarks/theory_bridge.md"))
    options = parser.parse_args()
    plan = BridgePlan(
        model=options.model,
        task=options.task,
        sizes=tuple(int(size) for size in options.sizes.split(",")),
        seeds=tuple(range(options.seeds)),
        steps=options.steps,
    )
    result = bridge(plan, options.out)
    facts = result.to_dict()
    write_bridge(facts, options.out)
    kept = {key: value for key, value in facts.items() if key != "layers"}
    command = f"theory_bridge.py --out FOLDER --sizes {options.sizes} --seeds {options.seeds} --steps {options.steps}"
    kept["provenance"] = {**kept["provenance"], "command": command}
    atomic_write_text(options.write, page(facts))
    atomic_write_text(options.write.with_suffix(".json"), json.dumps(kept, indent=1, allow_nan=False) + "\n")
    print(page(facts))


def page(facts: dict[str, Any]) -> str:
    plan, theory = facts["plan"], facts["theory"]
    lines = [
        "# The theory beside a real model",
        "",
        f"{plan['model']} on {plan['task']}, rank {plan['rank']} ({facts['parameters']:,} numbers an adapter): "
        f"{', '.join(map(str, plan['sizes']))} training rows, {len(plan['seeds'])} seeds, {plan['steps']} steps of 16 rows. "
        f"The largest run, which stands in for the theory's target, has {plan['reference_rows']} rows, "
        f"{plan['reference_steps']} steps and another seed. All are scored on the same {plan['questions']} questions. "
        f"Theory: rank {theory['rank']}, T = {theory['tokens']}, lambda' = {theory['ridge']:g}, Dn = {theory['noise']:.2f}. "
        "What each number means: [theory_bridge.md](../science/theory_bridge.md).",
        "",
        "## What the numbers say",
        "",
        *(f"- {line}" for line in facts["findings"]),
        "",
        *(f"- Note: {line}" for line in facts["warnings"]),
        "",
    ]
    for caption, frame in bridge_frames(facts).items():
        lines += [f"## {caption}", "", *markdown(Table.from_frame(frame, caption)), ""]
    curve = pd.DataFrame(facts["curve"])[["data", "overlap", "error", "jump", "valid"]]
    lines += ["## The theory's curve", "", *markdown(Table.from_frame(curve, "curve")), ""]
    lines += ["## Layers", "", "Runs of the largest size; mean over layers of one kind, chance taken out.", ""]
    layers = pd.DataFrame(facts["layers"])
    kinds = layers.groupby("projection", sort=True)[["column_above", "row_above", "update"]].mean().reset_index()
    lines += [*markdown(Table.from_frame(kinds, "layers")), ""]
    provenance = facts["provenance"]
    versions = ", ".join(f"{name} {value}" for name, value in provenance["versions"].items())
    runs = provenance["runs"]
    lines += [
        f"Seeds {plan['seeds']} and {provenance['seed']} (largest run); {versions}; {runs['machine'].get('cpu')}, "
        f"{runs['machine'].get('cores')} cores, {runs['machine'].get('torch_threads')} threads, shared with other work; "
        f"{runs['seconds_training'] / 60:.0f} minutes of training in {runs['count']} runs. Made by "
        f"`python benchmarks/theory_bridge.py --sizes {','.join(map(str, plan['sizes']))} --seeds {len(plan['seeds'])} "
        f"--steps {plan['steps']}`; the numbers are in the JSON file beside this one.",
        "",
    ]
    return "\n".join(lines)


def markdown(table: Table) -> list[str]:
    lines = ["| " + " | ".join(table.columns) + " |", "| " + " | ".join("---" for _ in table.columns) + " |"]
    return [*lines, *("| " + " | ".join(row) + " |" for row in table.rows)]


if __name__ == "__main__":
    main()
