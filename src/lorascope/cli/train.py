"""``lorascope train``: fine-tune one adapter and measure it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

_ELASTIC = "--elastic"


class TrainCommand(TyperCommand):
    """``--elastic`` may stand without a word behind it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put in the word that is left out."""
        for index in [i for i, arg in enumerate(args) if arg == _ELASTIC][::-1]:
            if index + 1 == len(args) or args[index + 1].startswith("-"):
                args.insert(index + 1, "both")
        return super().parse_args(ctx, args)


def train_command(
    out: Annotated[Path, typer.Option(help="Folder for the adapter, the result and the report.")],
    config: Annotated[
        Path | None, typer.Option(help="YAML file with any options of the run; flags override it.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Recipe: paper (Adam 4e-5, batch 32) or quick.")] = None,
    model: Annotated[str | None, typer.Option(help="Base model: smollm2 (embedded), a folder or a hub id.")] = None,
    task: Annotated[str | None, typer.Option(help="Known task, or a path to your own JSONL or Parquet rows.")] = None,
    data_dir: Annotated[str | None, typer.Option(help="Local folder with the rows of a known hub task.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Prompt: main, prompt1, prompt2, prompt3 or plain.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the update. \\[default: 16]")] = None,
    alpha: Annotated[float | None, typer.Option(help="LoRA alpha. \\[default: twice the rank]")] = None,
    dropout: Annotated[float | None, typer.Option(help="LoRA dropout. \\[default: 0]")] = None,
    target_modules: Annotated[
        str | None, typer.Option(help="all-linear, a regular expression, or names with commas. \\[default: all-linear]")
    ] = None,
    rslora: Annotated[bool | None, typer.Option("--rslora/--no-rslora", help="Scale by alpha / sqrt(rank).")] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="Start: default, gaussian, orthogonal, pissa, olora, eva, corda, lora-ga, or by Fisher statistics: fisher, "
            "fisher_batch, fisher_balanced, activation, gradient, natural_gradient, random, fisher_select, "
            "fisher_select_lowest, fisher_whitened; loftq on a quantised base. \\[default: default]"
        ),
    ] = None,
    init_rows: Annotated[
        int | None, typer.Option(help="Training rows that decide such a start. \\[default: 128]")
    ] = None,
    dora: Annotated[bool | None, typer.Option("--dora/--no-dora", help="Train magnitudes beside the update.")] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            help="Quantise the frozen base: icq-nf4 (-nf3, -nf2, -int4 ...), plain-nf4 (no search), nf4 (bitsandbytes) or "
            "loftq. \\[default: dense]"
        ),
    ] = None,
    elastic: Annotated[
        str | None,
        typer.Option(help="Elastic connections: both (also if no word follows), u1 or u2.", metavar="[both|u1|u2]"),
    ] = None,
    beta_learning_rate: Annotated[
        float | None, typer.Option(help="Learning rate of their strengths. \\[default: that of the rest]")
    ] = None,
    share: Annotated[
        int | None, typer.Option(help="Share weights in the second half of the layers, in groups of 8, 4, 2 or 1.")
    ] = None,
    length: Annotated[
        str | None, typer.Option(help="Only rows whose prompt has LOW-HIGH tokens, such as 1-100.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option("--lr", "--learning-rate", help="Learning rate. \\[default: 4e-5]")
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw_torch, adafactor or sgd.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows a step. \\[default: 32]")] = None,
    micro_batch_size: Annotated[int | None, typer.Option(help="Rows a forward pass, to save memory.")] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", "--max-steps", help="Training steps, whatever the epochs.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data, without steps. \\[default: 1]")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="constant, constant_with_warmup, linear or cosine. \\[default: constant]")
    ] = None,
    warmup_steps: Annotated[int | None, typer.Option(help="Steps over which the rate rises.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed. \\[default: 0]")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest row in tokens. \\[default: the context]")] = None,
    overlong: Annotated[str | None, typer.Option(help="Longer rows: error, drop or truncate (counted).")] = None,
    pad_token: Annotated[str | None, typer.Option(help="Pad token where the tokenizer has none; eos works.")] = None,
    train_limit: Annotated[int | None, typer.Option(help="Most rows to train on.")] = None,
    eval_limit: Annotated[int | None, typer.Option(help="Most test rows to score.")] = None,
    measure_limit: Annotated[int | None, typer.Option(help="Most test rows to measure. \\[default: 64]")] = None,
    metrics: Annotated[str | None, typer.Option(help="Metrics with commas between, or all.")] = None,
    text_task: Annotated[str | None, typer.Option(help="Text whose perplexity shows forgetting, e.g. sotu.")] = None,
    text_limit: Annotated[int | None, typer.Option(help="Most windows of that text.")] = None,
    report_to: Annotated[str | None, typer.Option(help="Tracker of transformers: tensorboard, wandb ...")] = None,
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
) -> None:
    """Fine-tune a LoRA adapter, measure it, and save it as plain PEFT.

    The result folder holds adapter/ (loads in PEFT as it is), result.json and report.html. Stop with Ctrl-C and run the
    same command again: it goes on from the last checkpoint.
    """
    given: dict[str, Any] = {
        "preset": preset,
        "model": model,
        "task": task,
        "data_dir": data_dir,
        "prompt": prompt,
        "rank": rank,
        "alpha": alpha,
        "dropout": dropout,
        "target_modules": names_of(target_modules),
        "use_rslora": rslora,
        "use_dora": dora,
        "init": init,
        "init_rows": init_rows,
        "quantize": quantize,
        "elastic": elastic,
        "beta_learning_rate": beta_learning_rate,
        "share": share,
        "length": _range(length),
        "learning_rate": lr,
        "optimizer": optimizer,
        "batch_size": batch_size,
        "micro_batch_size": micro_batch_size,
        "max_steps": steps,
        "epochs": epochs,
        "schedule": schedule,
        "warmup_steps": warmup_steps,
        "seed": seed,
        "max_length": max_length,
        "overlong": overlong,
        "pad_token": pad_token,
        "train_limit": train_limit,
        "eval_limit": eval_limit,
        "measure_limit": measure_limit,
        "metrics": [name.strip() for name in metrics.split(",") if name.strip()] if metrics else None,
        "text_task": text_task,
        "text_limit": text_limit,
        "report_to": report_to,
    }
    from lorascope.core.spec import load_yaml

    values = {**(load_yaml(config) if config else {}), **{key: v for key, v in given.items() if v is not None}}

    from rich.console import Console

    from lorascope.cli._console import largest, say_warnings, totals
    from lorascope.report import write_report
    from lorascope.training import RunSpec, run

    spec = RunSpec.from_mapping(values, source=str(config) if config else "command line")
    record = run(spec, out, progress=progress)
    report = write_report([record], out / "report.html", title=f"{record.name}: {spec.model} on {spec.task}")
    console = Console()
    console.print(totals(record, title=f"{spec.model} on {spec.task}, rank {spec.rank}"))
    if (table := largest(record)) is not None:
        console.print(table)
    if (facts := record.settings.get("quantization")) is not None:
        console.print(_base_line(facts), highlight=False, markup=False, soft_wrap=True)
    say_warnings(console, [record])
    for label, path in (("adapter", out / "adapter"), ("report", report)):
        console.print(f"{label}: {path}", soft_wrap=True, highlight=False, markup=False)


def _base_line(facts: dict[str, Any]) -> str:
    """What the quantised base stores, in one line."""
    parts = [f"base: {facts['method']}"]
    if "bits_per_weight" in facts:
        parts.append(f"{facts['bits_per_weight']:.3f} bits a weight")
    if "code_entropy_bits" in facts:
        parts.append(f"entropy of the codes {facts['code_entropy_bits']:.3f} bits")
    if "seconds" in facts:
        parts.append(f"quantised in {facts['seconds']:.1f} s")
    return ", ".join(parts)


def names_of(text: str | None) -> str | list[str] | None:
    """Layers from the command line: names with commas between, or what PEFT reads in a text."""
    return [name.strip() for name in text.split(",") if name.strip()] if text and "," in text else text


def _range(text: str | None) -> list[int] | None:
    """Two numbers with a dash between them.

    Raises:
        InputError: The text is something else.
    """
    if text is None:
        return None
    low, dash, high = text.partition("-")
    if not (dash and low.strip().isdecimal() and high.strip().isdecimal()):
        from lorascope.core.errors import InputError

        raise InputError(f"length '{text}' is no range of tokens: give LOW-HIGH, such as 1-100")
    return [int(low), int(high)]
