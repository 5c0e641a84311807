"""``lorascope select``: which rows to label or train on next."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def select_command(
    pool: Annotated[
        str, typer.Option(help="Rows to choose from: a .jsonl or .parquet file, a folder or a known task.")
    ],
    budget: Annotated[int, typer.Option(help="Rows to choose.")],
    out: Annotated[Path, typer.Option(help="JSONL file for the chosen rows, as they were, best first.")],
    method: Annotated[str, typer.Option(help="How to choose; see above. The default needs no labels.")] = "entropy",
    model: Annotated[str, typer.Option(help="Base model: smollm2 (embedded), a folder or a hub id.")] = "smollm2",
    adapter: Annotated[Path | None, typer.Option(help="Adapter on it, to choose what it should learn next.")] = None,
    split: Annotated[str, typer.Option(help="Split of a folder or known task.")] = "train",
    prompt: Annotated[str, typer.Option(help="Prompt: main, prompt1, prompt2, prompt3 or plain.")] = "main",
    data_dir: Annotated[Path | None, typer.Option(help="Local folder with the rows of a known hub task.")] = None,
    subspace: Annotated[int, typer.Option(help="Leading Fisher directions a layer; 0 takes the whole gradient.")] = 16,
    features: Annotated[int, typer.Option(help="Numbers that stand for a row's gradient; a square number.")] = 256,
    fisher_rows: Annotated[int, typer.Option(help="Rows that the Fisher directions are estimated from.")] = 128,
    draws: Annotated[int, typer.Option(help="Labels drawn a row where there are no choices.")] = 2,
    ridge: Annotated[float, typer.Option(help="Prior of designs, in usual rows.")] = 1.0,
    target_modules: Annotated[
        str, typer.Option(help="Layers that count: all-linear or names with commas.")
    ] = "all-linear",
    batch_size: Annotated[int, typer.Option(help="Rows in a pass.")] = 16,
    max_length: Annotated[int | None, typer.Option(help="Longest row in tokens. \\[default: the context]")] = None,
    overlong: Annotated[str, typer.Option(help="Longer rows: error or truncate.")] = "error",
    pad_token: Annotated[str | None, typer.Option(help="Pad token where the tokenizer has none; eos works.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed.")] = 0,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for scores. \\[default: .lorascope-scores beside OUT]")
    ] = None,
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
) -> None:
    """Choose rows by what they would teach an adapter.

    \b
    Without labels:  d_optimal_expected, energy_expected, smallest_logits, smallest_attention, entropy, random
    With labels:     d_optimal, energy, loss

    Rows may lack their label (answer, completion, or the last assistant message). Rows that are the same count once.

    Writes OUT (the rows as they were) and a report beside it with every row's score. Scores are kept: a second method or
    budget, or the same command after Ctrl-C, goes on from there. An OUT that was changed since, such as by labels filled
    in, is not written over. On the one task
    measured so far no method beat drawing rows at random (benchmarks/select_rows.py): compare with --method random.
    """
    from rich.console import Console

    from lorascope.core.errors import OutputError, unknown_name
    from lorascope.core.files import atomic_write_text, explain_write_errors, write_json
    from lorascope.core.provenance import collect
    from lorascope.initialization.selection import METHODS, select_rows
    from lorascope.initialization.selection_options import ScoreOptions
    from lorascope.initialization.selection_pool import load_pool

    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if out.is_dir():
        raise OutputError(f"output '{out}' is a folder: give a file, such as {out / 'chosen.jsonl'}")
    report = out.with_name(f"{out.name}.report.json")
    _check_replaceable(out, report, pool)
    rows = load_pool(pool, split=split, prompt=prompt, data_dir=data_dir, seed=seed)
    names = target_modules if target_modules == "all-linear" else tuple(n.strip() for n in target_modules.split(","))
    options = ScoreOptions(
        subspace=subspace,
        features=features,
        fisher_rows=fisher_rows,
        draws=draws,
        max_length=max_length,
        overlong=overlong,
        batch_size=batch_size,
        target_modules=names,
        pad_token=pad_token,
        seed=seed,
    )
    loaded, tokenizer = None, None
    if METHODS[method].model:
        if METHODS[method].labels:
            rows.require_labels(method)
        from lorascope.measuring import load_model_and_tokenizer
        from lorascope.measuring.processes import device

        base, tokenizer = load_model_and_tokenizer(model, device=device())
        loaded = base
        if adapter is not None:
            from lorascope.adapters import attach_adapter

            loaded = attach_adapter(base, adapter)
    found = select_rows(
        rows,
        budget,
        method=method,
        model=loaded,
        tokenizer=tokenizer,
        options=options,
        ridge=ridge,
        cache=cache or out.resolve().parent / ".lorascope-scores",
        progress=progress,
    )
    facts = {
        **found.to_dict(),
        "provenance": collect(
            seed=seed,
            extra={"model": model, "adapter": str(adapter) if adapter else None, "data_sha256": dict(rows.sources)},
        ),
    }
    _check_replaceable(out, report, pool)  # once more: scoring takes long
    with explain_write_errors(out):
        out.unlink(missing_ok=True)  # an interruption between the two files must not leave rows that the report denies
    write_json(report, facts)
    atomic_write_text(out, "".join(f"{line}\n" for line in found.lines))
    console = Console()
    console.print(
        f"{budget} of {found.counts['different']} different rows by {method}: {out}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    console.print(f"scores: {report}", soft_wrap=True, highlight=False, markup=False)
    for note in found.warnings:
        typer.secho(f"note: {note}", fg="yellow", err=True)


def _check_replaceable(out: Path, report: Path, pool: str) -> None:
    """Refuse to write over what this command did not write, or what was changed since.

    Raises:
        OutputError: The file holds something else.
    """
    from lorascope.core.errors import DataError, OutputError
    from lorascope.core.files import read_json

    lines = None
    if report.is_file():
        try:
            facts = read_json(report)
            lines = facts.get("lines") if isinstance(facts, dict) and {"method", "chosen"} <= facts.keys() else None
        except DataError:
            lines = None
    if not isinstance(lines, list) and (report.exists() or out.exists()):
        foreign = report if report.exists() else out
        raise OutputError(f"output '{foreign}' is there already and not from this command: choose another --out")
    if not out.exists():
        return
    if Path(pool).expanduser().exists() and out.samefile(Path(pool).expanduser()):
        raise OutputError(f"output '{out}' is the pool itself: choose another --out")
    if out.read_bytes() != "".join(f"{line}\n" for line in lines or ()).encode():
        raise OutputError(
            f"output '{out}' was changed since it was written (labels filled in?), and would be lost: choose another --out"
        )
