"""Which metrics rise or fall with rank and with training, on real questions.

Trains LoRA on all dense layers of a model at several ranks, for a short and a long time, over several seeds, and asks
of every metric how it moves from rank to rank, from no to short to long training, and whether it moves with accuracy.
Every run is kept on disk: stop it at any time and run the same command again.

    python benchmarks/rank_and_training.py --data arc_easy=FOLDER --out FOLDER [--write docs/benchmarks/arc_easy.md]

FOLDER holds train.jsonl and test.jsonl with question, choices and answer (for the paper's tasks, see docs/tasks.md).
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from pathlib import Path

from scipy.stats import kendalltau

from lorascope.core.metrics import METRICS
from lorascope.core.provenance import collect
from lorascope.report import write_report
from lorascope.results import RunRecord
from lorascope.tasks.embedded import load_model_and_tokenizer
from lorascope.training import RunSpec, run

SHOWN = (
    "accuracy",
    "accuracy_norm",
    "ce",
    "text_ppl",
    "miub_js",
    "mi_joint",
    "joint_js",
    "mi_joint_lower",
    "mi_joint_upper",
    "miub_joint",
    "update_ratio",
    "effective_rank",
    "stable_rank",
)


def train_all(options: argparse.Namespace) -> dict[tuple[int, int, int], RunRecord]:
    """(rank, steps, seed) -> record; the base model has steps 0 and one seed, as nothing in it is random."""
    name, _, folder = options.data.partition("=")
    model, tokenizer = load_model_and_tokenizer(options.model)
    grid = [(0, 0, options.seeds[0])]
    # Seed by seed, so that a benchmark stopped early still has whole tables.
    grid += [(r, s, seed) for seed in options.seeds for r, s in itertools.product(options.ranks, options.steps)]
    records = {}
    for rank, steps, seed in grid:
        spec = RunSpec.from_mapping(
            {
                "preset": "quick",
                "model": options.model,
                "task": name,
                "data_dir": str(Path(folder).resolve()) if folder else None,
                "rank": rank,
                "max_steps": steps or 1,
                "learning_rate": options.lr,
                "seed": seed,
                "eval_limit": options.questions,
                "measure_limit": options.rows,
                "text_task": "sotu",
                "text_limit": 8,
                "max_length": options.max_length,
                "overlong": "drop",
                "eval_batch_size": 16,
            }
        )
        label = f"rank-{rank}-steps-{steps}-seed-{seed}"
        print(f"== {label}", flush=True)
        records[rank, steps, seed] = run(spec, options.out / label, model=model, tokenizer=tokenizer)
    return records


def value(records: dict[tuple[int, int, int], RunRecord], rank: int, steps: int, metric: str) -> list[float]:
    return [r.totals[metric] for (k, s, _), r in records.items() if (k, s) == (rank, steps) and metric in r.totals]


def show(values: list[float]) -> str:
    if not values:
        return "-"
    mean = statistics.fmean(values)
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{mean:.4g}{spread}"


def direction(values: list[list[float]]) -> str:
    """Rises or falls, if the sign of every step is the same in every seed; else mixed."""
    count = min(len(v) for v in values)
    signs = {
        (b > a) - (b < a) for i in range(count) for a, b in itertools.pairwise([v[min(i, len(v) - 1)] for v in values])
    }
    return {frozenset({1}): "rises", frozenset({-1}): "falls", frozenset({0}): "same"}.get(frozenset(signs), "mixed")


def document(records: dict[tuple[int, int, int], RunRecord], options: argparse.Namespace) -> str:
    longest, metrics = max(options.steps), [m for m in SHOWN if any(m in r.totals for r in records.values())]
    base = next(iter(records.values()))
    columns = [(0, 0), *itertools.product(options.ranks, options.steps)]
    lines = [
        f"# Rank and training: {options.data.partition('=')[0]}",
        "",
        f"{options.model}, {options.data.partition('=')[0]}, LoRA on all dense layers ({base.counts['components']} layers), "
        f"alpha = 2 rank, learning rate {options.lr:g}, 16 rows a step, seeds {', '.join(map(str, options.seeds))}; "
        f"{base.counts['questions']} test questions scored, {base.counts['samples']} test rows measured "
        f"({base.counts['tokens']} tokens). Mean over seeds ± standard deviation. Information in nats, summed over layers.",
        "",
        "| metric | " + " | ".join("base" if r == 0 else f"rank {r}, {s} steps" for r, s in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for metric in metrics:
        cells = [show(value(records, rank, steps, metric)) for rank, steps in columns]
        lines.append(f"| {METRICS[metric].label} (`{metric}`) | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"| metric | with rank, {longest} steps | with training, each rank | Kendall tau with accuracy, adapted runs |",
        "|---|---|---|---|",
    ]
    adapted = [record for (rank, _, _), record in records.items() if rank]
    for metric in metrics:
        by_rank = direction([value(records, rank, longest, metric) for rank in options.ranks])
        by_time = {
            direction(
                [
                    value(records, 0, 0, metric),
                    *(value(records, rank, steps, metric) for steps in sorted(options.steps)),
                ]
            )
            for rank in options.ranks
            if metric in base.totals
        }
        trained = by_time.pop() if len(by_time) == 1 else "mixed" if by_time else "-"
        tau = kendalltau([r.totals["accuracy"] for r in adapted], [r.totals[metric] for r in adapted])
        cell = "-" if metric == "accuracy" else f"{tau.statistic:+.2f} (p = {tau.pvalue:.2g}, n = {len(adapted)})"
        lines.append(f"| `{metric}` | {by_rank} | {trained} | {cell} |")
    facts = collect(seed=options.seeds[0])
    facts = {k: facts[k] for k in ("created", "versions", "machine")} | {"data_sha256": base.provenance["data_sha256"]}
    lines += ["", "```json", json.dumps(facts, indent=1), "```"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="towns", help="NAME=FOLDER of a known task, or the name of an embedded one")
    parser.add_argument("--out", type=Path, required=True, help="folder that keeps the runs")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--steps", type=int, nargs="+", default=[15, 45])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--questions", type=int, default=250, help="test questions to score")
    parser.add_argument("--rows", type=int, default=64, help="test rows to measure")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--write", type=Path, help="Markdown file for the tables")
    options = parser.parse_args()
    records = train_all(options)
    text = document(records, options)
    print(text)
    write_report(list(records.values()), options.out / "report.html", title=f"Rank and training: {options.data}")
    if options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
