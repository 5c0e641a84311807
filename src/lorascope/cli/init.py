"""``lorascope init``: a first adapter by Fisher statistics, and what they say about layers and ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer


def init_command(
    out: Annotated[Path, typer.Option(help="Folder for the first adapter and initialization.json.")],
    model: Annotated[str, typer.Option(help="Base model: smollm2 (embedded), a folder or a hub id.")] = "smollm2",
    task: Annotated[str, typer.Option(help="Known task, or a path to your own JSONL or Parquet rows.")] = "towns",
    rank: Annotated[int, typer.Option(min=1, help="Rank of every layer, before a budget spreads it.")] = 16,
    mode: Annotated[
        str, typer.Option(help="fisher, fisher_batch, fisher_balanced, activation, gradient, natural_gradient, random.")
    ] = "fisher",
    budget: Annotated[
        str | None,
        typer.Option(help="Spread ranks over the layers: parameters such as 500000, or '4MB adapter' (float32)."),
    ] = None,
    max_rank: Annotated[
        int | None, typer.Option(min=1, help="Largest rank with a budget. \\[default: 4 x rank]")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="LoRA alpha. \\[default: twice the rank]")] = None,
    target_modules: Annotated[
        str, typer.Option(help="all-linear, a regular expression, or names with commas.")
    ] = "all-linear",
    rows: Annotated[int, typer.Option(min=1, help="Training rows to look at.")] = 128,
    fisher: Annotated[str, typer.Option(help="empirical (the data's labels) or true (labels drawn by the model).")] = (
        "empirical"
    ),
    max_memory: Annotated[
        str | None, typer.Option(help="What the statistics may take, such as 4GB; then in several passes.")
    ] = None,
    data_dir: Annotated[str | None, typer.Option(help="Local folder with the rows of a known hub task.")] = None,
    prompt: Annotated[str, typer.Option(help="Prompt: main, prompt1, prompt2, prompt3 or plain.")] = "main",
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a pass.")] = 16,
    max_length: Annotated[int | None, typer.Option(min=1, help="Longest row in tokens.")] = None,
    overlong: Annotated[str, typer.Option(help="Longer rows: error, drop or truncate (counted).")] = "error",
    dtype: Annotated[str, typer.Option(help="Type of the weights: float32, bfloat16 or float16.")] = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sample of rows, and of drawn labels.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")] = False,
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
) -> None:
    """Start an adapter where your data has most curvature, and see which layers and ranks are worth it.

    Writes a first adapter in PEFT's format (PeftModel.from_pretrained(base, OUT, is_trainable=True) trains it) and
    initialization.json, from which  lorascope plan OUT  makes a first guess of the rank.
    """
    import contextlib
    import json

    from lorascope.cli.train import names_of
    from lorascope.core.errors import InputError, unknown_name
    from lorascope.core.files import appearing_folder
    from lorascope.initialization.directions import MODES
    from lorascope.training.spec import RunSpec

    if mode not in MODES and mode != "fisher_select_lowest":
        raise unknown_name("mode", mode, [name for name, known in MODES.items() if not known.residual])
    if mode not in MODES or MODES[mode].residual:
        raise InputError(
            f"mode '{mode}' changes the base weights, so that there is no first adapter to save: use  lorascope train "
            f"--init {mode}"
        )
    given = {"model": model, "task": task, "rank": rank, "alpha": alpha, "data_dir": data_dir, "prompt": prompt}
    given |= {
        "target_modules": names_of(target_modules),
        "seed": seed,
        "max_length": max_length,
        "overlong": overlong,
        "init_rows": rows,
    }
    spec = RunSpec.from_mapping({k: v for k, v in given.items() if v is not None}, source="command line")
    parameters = _parameters(budget)
    if max_rank is not None and parameters is None:
        raise InputError(
            f"--max-rank {max_rank} bounds the ranks that a budget spreads: give --budget too, or --rank alone"
        )
    from lorascope.measuring.processes import is_main_process

    with appearing_folder(out) if is_main_process() else contextlib.nullcontext(out) as work:
        result = _start(spec, work, mode, fisher, parameters, max_rank, max_memory, batch_size, dtype, progress)
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2, allow_nan=False))
        return
    _show(result, out)


def _parameters(budget: str | None) -> int | None:
    """Parameters from a number, or from the bytes of an adapter file in float32.

    Raises:
        InputError: It is neither.
    """
    if budget is None:
        return None
    from lorascope.core.errors import InputError
    from lorascope.scaling.plan_units import parse_budget

    wrong = InputError(f"budget '{budget}' is no size of an adapter: give parameters such as 500000, or '4MB adapter'")

    if (plain := budget.replace(",", "").replace("_", "")).isdecimal():
        return int(plain)
    try:
        found = parse_budget(budget)
    except InputError:
        raise wrong from None
    if found.kind != "adapter":
        raise wrong
    return int(found.amount // 4)


def _start(
    spec: Any,
    out: Path,
    mode: str,
    fisher: str,
    budget: int | None,
    max_rank: int | None,
    max_memory: str | None,
    batch_size: int,
    dtype: str,
    progress: bool,
) -> Any:
    """Load, pass the data, save the adapter; returns what was done."""
    import dataclasses

    from torch.utils.data import DataLoader

    from lorascope.adapters import adapter_record
    from lorascope.adapters.load import RECORD_FILE
    from lorascope.core.files import atomic_write_text, write_json
    from lorascope.initialization import initialize_lora_fisher
    from lorascope.initialization.result import FILE
    from lorascope.measuring import load_model_and_tokenizer
    from lorascope.measuring.processes import device, is_main_process
    from lorascope.tasks import PaddingCollator, encode_task, load_task, pad_token_id
    from lorascope.training.card import base_model_note, model_card
    from lorascope.training.inits import sample_rows
    from lorascope.training.lora import attach_lora

    loaded = load_task(spec.task, prompt=spec.prompt, data_dir=spec.data_dir, seed=spec.seed)
    base, tokenizer = load_model_and_tokenizer(spec.model, dtype=dtype, device=device())
    encoded = encode_task(loaded, tokenizer, "train", max_length=spec.max_length, overlong=spec.overlong)
    rows = sample_rows(encoded.features, spec)
    collate = PaddingCollator(pad_token_id(tokenizer, spec.pad_token))
    loader: DataLoader[Any] = DataLoader(cast(Any, rows), batch_size=batch_size, collate_fn=collate)
    adapted = attach_lora(base, spec)
    result = initialize_lora_fisher(
        adapted,
        loader,
        mode,
        fisher=fisher,
        budget=budget,
        max_rank=max_rank,
        table=True,
        max_memory=max_memory,
        seed=spec.seed,
        progress=progress,
    )
    result.provenance.update(model=spec.model, data_sha256=dict(loaded.sources))
    result.settings.update(model=spec.model, task=spec.task, rows=len(rows), lora_alpha=spec.lora_alpha, rank=spec.rank)
    result.settings["target_modules"] = spec.target_modules
    if is_main_process():
        adapted.peft_config["default"].base_model_name_or_path = base_model_note(spec)
        adapted.save_pretrained(str(out), save_embedding_layers=False)
        atomic_write_text(out / "README.md", model_card(dataclasses.replace(spec, init=mode), steps=0))
        facts = {"task": spec.task, "prompt": spec.prompt, "base_model": spec.model, "share": None, "length": None}
        write_json(out / RECORD_FILE, adapter_record(adapted, **facts, init={"init": mode, "trained": False}))
        result.save(out / FILE)
    return result


def _show(result: Any, out: Path) -> None:
    import shlex

    from rich.console import Console
    from rich.markup import escape

    from lorascope.cli._console import compact_table, number
    from lorascope.scaling.guess_curvature import guess_from_curvature

    console = Console()
    plain: dict[str, Any] = {"soft_wrap": True, "highlight": False, "markup": False}
    table = compact_table("Layers worth adapting")
    table.add_column("layer", overflow="fold")  # a narrow terminal breaks names, and never a number
    spread = result.settings["budget"] is not None
    heads = ["of the Fisher trace", "gain a parameter", "held by the rank", "rank", *([] if spread else ["suggested"])]
    for head in heads:
        table.add_column(head, justify="right", width=max(map(len, head.split())))
    rows = sorted(result.layers, key=lambda row: -(row.get("gain_per_parameter") or 0.0))
    for row in rows[:12]:
        table.add_row(
            escape(row["name"]),
            f"{row['share']:.1%}",
            number(row.get("gain_per_parameter")),
            f"{row['captured']:.0%}" if "captured" in row else "-",
            str(row["rank"]),
            *([] if spread else [str(row.get("suggested_rank", "-"))]),
        )
    console.print(table)
    if len(rows) > 12:
        console.print(f"... and {len(rows) - 12} more in initialization.json", style="dim", highlight=False)
    if any(row.get("gain") for row in rows):
        plan = guess_from_curvature(result.to_dict())
        console.print(f"first guess of the rank: {plan.rank}  (lorascope plan {shlex.quote(str(out))})", **plain)
    for note in result.warnings:
        console.print(f"[yellow]note:[/yellow] {escape(note)}")
    console.print(f"adapter: {out}", **plain)
