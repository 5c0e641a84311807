"""The ablation of IR-QLoRA on a small model: does calibrated quantisation (ICQ) or the elastic connection (IEC) help?

Every arm is trained with the same steps, rate and seeds, and compared with its own reference on the same seed. Runs are
kept on disk: stop at any time and run the same command again.

    python benchmarks/ir_qlora.py --out FOLDER [--data NAME=FOLDER] [--seeds 0 1 2] [--workers 2]
    python benchmarks/ir_qlora.py --read FOLDER [FOLDER ...] --write docs/benchmarks/ir_qlora.md [--notes FILE]

FOLDER of --data holds train.jsonl and test.jsonl of a known task (see docs/tasks.md); the embedded towns need none.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import pandas as pd

from lorascope.core.files import atomic_write_text
from lorascope.core.provenance import collect
from lorascope.core.spec import load_yaml
from lorascope.sweeps import SweepSpec, run_sweep, sweep_table
from lorascope.sweeps.folder import SweepFolder
from lorascope.sweeps.paired import holm, paired_difference, verdict

ARMS: dict[str, dict[str, Any]] = {
    "float LoRA": {},
    "NF4 QLoRA": {"quantize": "nf4"},
    "LoftQ": {"quantize": "nf4", "init": "loftq"},
    "NF4 + U1": {"quantize": "nf4", "elastic": "u1"},
    "NF4 + U2": {"quantize": "nf4", "elastic": "u2"},
    "NF4 + IEC": {"quantize": "nf4", "elastic": "both"},
    "ICQ": {"quantize": "icq-nf4"},
    "ICQ + IEC": {"quantize": "icq-nf4", "elastic": "both"},
    "NF2": {"quantize": "plain-nf2"},
    "ICQ, NF2": {"quantize": "icq-nf2"},
    "ICQ + IEC, NF2": {"quantize": "icq-nf2", "elastic": "both"},
    "NF3": {"quantize": "plain-nf3"},
    "ICQ, NF3": {"quantize": "icq-nf3"},
}

QUESTIONS = {
    "Is NF4 better than float?": ("NF4 QLoRA", "float LoRA"),
    "Does LoftQ help?": ("LoftQ", "NF4 QLoRA"),
    "Does U1 help?": ("NF4 + U1", "NF4 QLoRA"),
    "Does U2 help?": ("NF4 + U2", "NF4 QLoRA"),
    "Does IEC help?": ("NF4 + IEC", "NF4 QLoRA"),
    "Does ICQ help?": ("ICQ", "NF4 QLoRA"),
    "Do both help?": ("ICQ + IEC", "NF4 QLoRA"),
    "Does IEC help on top of ICQ?": ("ICQ + IEC", "ICQ"),
    "Does ICQ help at 2 bits?": ("ICQ, NF2", "NF2"),
    "Do both help at 2 bits?": ("ICQ + IEC, NF2", "NF2"),
    "Does ICQ help at 3 bits?": ("ICQ, NF3", "NF3"),
}
"""Question -> the arm, and the arm it is compared with."""

METRICS = {"ce": "lower", "accuracy": "higher"}
# Seconds of the processor: runs take turns with whatever else the machine does.
SHOWN = (
    "accuracy",
    "ce",
    "miub_js",
    "code_entropy_bits",
    "bits_per_weight",
    "cpu_seconds_training",
    "peak_memory_bytes",
)


def sweep(options: argparse.Namespace) -> SweepSpec:
    """Seed by seed, so that a benchmark stopped early still has whole tables; untrained bases first."""
    name, _, folder = options.data.partition("=")
    base = {
        "model": options.model,
        "task": name,
        "data_dir": str(Path(folder).resolve()) if folder else None,
        "preset": "quick",
        "max_steps": options.steps,
        "learning_rate": options.lr,
        "metrics": ["miub_js"],
        "eval_limit": options.questions,
        "measure_limit": options.rows,
        "max_length": options.max_length,
        "overlong": "drop",
    }
    arms = {name: ARMS[name] for name in (options.arms or ARMS)}
    bases = {json.dumps(values.get("quantize")) for values in arms.values()}
    cells: list[dict[str, Any]] = [{"rank": 0, "quantize": json.loads(text)} for text in sorted(bases)]
    for seed in options.seeds:
        for values in arms.values():
            rate = {"beta_learning_rate": options.beta_lr} if "elastic" in values else {}
            cells.append({"rank": options.rank, "seed": seed, **values, **rate})
    return SweepSpec(base=base, cells=cells)


def arm_of(row: dict[str, Any]) -> str:
    """The arm that a run belongs to; of an untrained base, its quantisation."""
    found = {name: row[name] for name in ("quantize", "elastic", "init") if isinstance(row[name], str)}
    if found.get("init") == "default":
        del found["init"]
    if row["R"] == 0:
        return f"untrained {found.get('quantize', 'float')}"
    return next((name for name, values in ARMS.items() if values == found), json.dumps(found))


def read(folder: Path) -> pd.DataFrame:
    """Finished runs, with their arms."""
    table = sweep_table(folder)
    for name in ("quantize", "elastic", "init"):
        if name not in table:
            table[name] = None
    table = table[table["status"] == "done"].copy()
    table["arm"] = [arm_of(row) for row in table.to_dict("records")]
    return table


def compared(table: pd.DataFrame) -> pd.DataFrame:
    """One row a question and metric: the paired difference, its interval and the verdict."""
    rows = []
    for metric, better in METRICS.items():
        wide = table[table["R"] > 0].pivot_table(index="seed", columns="arm", values=metric)
        here = []
        for question, (arm, reference) in QUESTIONS.items():
            if arm not in wide or reference not in wide:
                continue
            gaps = (wide[arm] - wide[reference]).dropna()
            if gaps.empty:
                continue
            found = paired_difference(gaps.tolist())
            known = wide[reference].dropna()
            noise = float(known.std(ddof=1)) if len(known) > 1 else None
            here.append(
                {
                    "question": question,
                    "arm": arm,
                    "against": reference,
                    "metric": metric,
                    "difference": found.mean,
                    "low": found.low,
                    "high": found.high,
                    "pairs": found.pairs,
                    "p": found.p,
                    "noise": noise,
                    "helped": verdict(found, better, noise),
                }
            )
        for row, adjusted in zip(here, holm([row["p"] for row in here]), strict=True):
            row["p_holm"] = adjusted
        rows += here
    return pd.DataFrame(rows)


def shown(values: list[float], metric: str) -> str:
    if not values:
        return "-"
    scale, form = (2**20, ".0f") if metric == "peak_memory_bytes" else (1.0, ".1f" if "seconds" in metric else ".3f")
    mean = format(statistics.fmean(values) / scale, form)
    spread = metric in ("accuracy", "ce", "miub_js") and len(values) > 1
    return f"{mean} ± {statistics.stdev(values):.3f}" if spread else mean


def markdown_table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def document(folder: Path) -> list[str]:
    """The section about one task."""
    table, spec = read(folder), load_yaml(folder / "sweep.yaml")
    base = spec["base"]
    trained = table[table["R"] > 0]
    place = SweepFolder(folder)
    first = place.store.load(trained["name"].iloc[0])
    expected = sum(1 for cell in spec["cells"] if cell.get("rank"))
    lines = [
        f"## {base['task']}",
        "",
        f"Rank {first.spec['rank']} on all dense layers, {base['max_steps']} steps of {first.spec['batch_size']} rows, "
        f"learning rate {base['learning_rate']:g} (linear, 2 warm-up steps), strengths of IEC at "
        f"{max(cell.get('beta_learning_rate', 0) for cell in spec['cells']):g}; {first.counts['questions']} test questions, "
        f"{first.counts['samples']} rows measured. {len(trained)} of {expected} runs are done. Mean ± standard deviation "
        "over seeds; cross-entropy in nats per scored token, MIUB in nats summed over layers, training in seconds of the "
        "processor (one thread), memory of the whole process at its peak.",
        "",
    ]
    head = ["arm", "seeds", "accuracy", "CE", "MIUB", "entropy, bits", "bits a weight", "training, CPU s", "peak, MiB"]
    order = [*sorted(a for a in table["arm"].unique() if a.startswith("untrained")), *ARMS]
    rows = []
    for arm in order:
        mine = table[table["arm"] == arm]
        if mine.empty:
            continue
        cells = [[float(v) for v in mine[m].dropna()] if m in mine else [] for m in SHOWN]
        seeds = "" if arm.startswith("untrained") else str(len(mine))
        rows.append([arm, seeds, *(shown(values, metric) for values, metric in zip(cells, SHOWN, strict=True))])
    lines += markdown_table(head, rows)
    found = compared(table)
    names = {"ce": "CE", "accuracy": "accuracy"}
    rows = []
    for row in found.to_dict("records"):
        ends = "-" if row["low"] is None or pd.isna(row["low"]) else f"{row['low']:+.3f} to {row['high']:+.3f}"
        noise, adjusted = (
            "-" if value is None or pd.isna(value) else f"{value:.3f}" for value in (row["noise"], row["p_holm"])
        )
        rows.append(
            [
                row["question"],
                names[row["metric"]],
                f"{row['difference']:+.3f}",
                ends,
                str(row["pairs"]),
                noise,
                adjusted,
                row["helped"],
            ]
        )
    lines += [
        "Paired by seed; 95 % intervals that hold for few pairs. Noise is the reference's standard deviation between seeds. "
        "`yes`: the interval lies on the better side of 0. `no`: it does not, and any help in it is smaller than the noise. "
        "p is adjusted by Holm for the questions of a metric.",
        "",
        *markdown_table(["question", "metric", "difference", "95 %", "pairs", "noise", "p, Holm", "helped"], rows),
    ]
    facts = {key: first.provenance[key] for key in ("versions", "machine", "data_sha256") if key in first.provenance}
    return [*lines, "```json", json.dumps(facts, indent=1), "```", ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder that keeps the runs")
    parser.add_argument("--data", default="towns", help="NAME=FOLDER of a known task, or the name of an embedded one")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), help="by default all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--beta-lr", type=float, default=1e-2)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--rows", type=int, default=32, help="test rows to measure")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--read", type=Path, nargs="+", help="folders of finished runs, for --write")
    parser.add_argument("--write", type=Path, help="Markdown file; a CSV of all runs goes beside it")
    parser.add_argument("--notes", type=Path, help="Markdown to put in front of the tables")
    options = parser.parse_args()
    if options.out is not None:
        done = run_sweep(
            sweep(options),
            options.out,
            workers=options.workers,
            on_event=lambda event: print(event.kind, event.name, event.reason, event.seconds or "", flush=True),
        )
        print(f"{len(done.done)} runs are done, {len(done.failed)} failed")
    folders = options.read or [options.out]
    lines = ["# IR-QLoRA on a small model: the ablation", ""]
    lines += [options.notes.read_text(encoding="utf-8")] if options.notes else []
    for folder in folders:
        lines += document(folder)
    lines.append(f"Written by `benchmarks/ir_qlora.py`, lorascope {collect()['versions'].get('lorascope')}.")
    print("\n".join(lines))
    if options.write:
        atomic_write_text(options.write, "\n".join(lines) + "\n")
        frames = [read(folder).assign(task_folder=folder.name) for folder in folders]
        kept = ["task", "arm", "R", "seed", *METRICS, *SHOWN[2:], "seconds_quantizing", "seconds_total"]
        every = pd.concat(frames)
        columns = list(dict.fromkeys(name for name in kept if name in every))
        atomic_write_text(options.write.with_suffix(".csv"), every[columns].to_csv(index=False))


if __name__ == "__main__":
    main()
