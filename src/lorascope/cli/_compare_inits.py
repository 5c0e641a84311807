"""What ``lorascope compare-inits`` reads beside its options, shows and writes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lorascope.cli._console import compact_table, number
from lorascope.core.errors import InputError
from lorascope.core.files import atomic_write_text, write_json
from lorascope.core.provenance import collect
from lorascope.report.inits import headline, inits_sections
from lorascope.report.page import write_page
from lorascope.sweeps.inits import InitsOutcome, final_loss, metric_label
from lorascope.sweeps.inits_plan import InitsPlan

_RESERVED = ("init", "learning_rate", "seed", "model", "task", "data_dir")


def settings_of(texts: Iterable[str]) -> dict[str, Any]:
    """Settings of runs from ``NAME=VALUE``, values read as YAML.

    Raises:
        InputError: One is of another form, or is what the comparison sets itself.

    Example:
        >>> settings_of(["rank=4", "target_modules=[q_proj]"])
        {'rank': 4, 'target_modules': ['q_proj']}
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise InputError(f"--set '{text}': give NAME=VALUE, such as rank=4")
        if name in _RESERVED:
            raise InputError(f"--set '{name}': the comparison sets that itself; see its other options")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"--set '{text}': the value is not YAML") from None
        if isinstance(found[name], str):
            try:
                found[name] = float(value)  # YAML takes 1e-3 for a text
            except ValueError:
                continue
    return found


def sentence(plan: InitsPlan) -> str:
    """What was run, in a sentence.

    Example:
        >>> plan = InitsPlan(methods=("eva",), rates=(1e-3,), tune_seeds=(9,), seeds=(0, 1), base={"max_steps": 30})
        >>> sentence(plan).startswith("2 initialisations, each tuned over 1 learning rate")
        True
    """
    base = plan.base
    rates = f"{len(plan.rates)} learning rate{'s' * (len(plan.rates) > 1)} ({', '.join(f'{r:g}' for r in plan.rates)})"
    short = f" in runs of {plan.tuning['max_steps']} steps" if plan.tuning.get("max_steps") else ""
    text = (
        f"{len(plan.methods)} initialisations, each tuned over {rates} on {len(plan.tune_seeds)} "
        f"seed{'s' * (len(plan.tune_seeds) > 1)}{short} and compared on {len(plan.seeds)} others"
    )
    facts = [f"{base['model']} on {base['task']}"] if "model" in base and "task" in base else []
    facts += [f"{words} {base[key]}" for key, words in _FACTS.items() if base.get(key) is not None]
    return f"{text}; {', '.join(facts)}." if facts else f"{text}."


_FACTS = {
    "rank": "rank",
    "target_modules": "layers",
    "max_steps": "steps",
    "batch_size": "rows a step",
    "train_limit": "training rows at most",
    "init_rows": "rows that an init by data sees at most",
    "probe_limit": "validation rows at most",
    "eval_limit": "test questions at most",
}


def finish(console: Console, plan: InitsPlan, outcome: InitsOutcome, out: Path) -> None:
    """Write page, table and JSON, and print the answer."""
    summary, runs = outcome.summary, outcome.runs
    labels = {metric: metric_label(metric) for metric in summary["metric"].unique()}
    last = final_loss(list(labels))
    says = headline(summary, last, labels)
    label = sentence(plan)
    sections = inits_sections(
        summary, runs, outcome.tuning, labels=labels, label=label, notes=outcome.notes, failed=outcome.failed
    )
    facts = collect(seed=plan.seeds[0])
    page = write_page(
        out / "inits.html", sections, title="Initialisations of LoRA, compared", headline=says, provenance=facts
    )
    atomic_write_text(out / "inits.csv", runs.to_csv(index=False))
    write_json(
        out / "inits.json",
        {
            "schema_version": 1,
            "form": label,
            "headline": says,
            "summary": records(summary),
            "tuning": records(outcome.tuning),
            "runs": records(runs),
            "failed": outcome.failed,
            "notes": list(outcome.notes),
            "provenance": facts,
        },
    )
    console.print(_table(summary, last, labels[last]))
    console.print(escape(says), soft_wrap=True, highlight=False)
    for note in outcome.notes:
        console.print(f"[yellow]note:[/yellow] {escape(note)}", soft_wrap=True, highlight=False)
    console.print(f"page: {page}", soft_wrap=True, highlight=False, markup=False)


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as strict JSON takes them: None for what is missing or infinite.

    Example:
        >>> records(pd.DataFrame({"loss": [1.0, float("inf")]}))
        [{'loss': 1.0}, {'loss': None}]
    """
    found = []
    for row in frame.to_dict("records"):
        plain = {str(k): v.item() if hasattr(v, "item") else v for k, v in row.items()}
        found.append({k: None if isinstance(v, float) and not abs(v) < float("inf") else v for k, v in plain.items()})
    return found


def _table(summary: pd.DataFrame, metric: str, title: str) -> Table:
    table = compact_table(title)
    for name in ("init", "mean", "difference", "95 % interval", "adj. p", "helped"):
        table.add_column(name, justify="left" if name in ("init", "helped") else "right", no_wrap=True)
    part = summary[summary["metric"] == metric].sort_values("mean")
    for row in part.to_dict("records"):
        known = pd.notna(row["difference"])
        interval = f"{number(row['low'])} to {number(row['high'])}" if known and pd.notna(row["low"]) else "-"
        table.add_row(
            escape(str(row["method"])),
            number(row["mean"]),
            number(row["difference"]) if known else "",
            interval if known else "",
            number(row["p_holm"]) if known and pd.notna(row["p_holm"]) else "",
            str(row["helped"]),
        )
    return table
