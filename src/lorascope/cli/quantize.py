"""``lorascope quantize``: a base model in 2, 3 or 4 bits, with what each layer kept and lost."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

_MANY = 40


def quantize_command(
    model: Annotated[str, typer.Option(help="Dense base model: smollm2 (embedded), a folder or a hub id.")],
    out: Annotated[Path, typer.Option(help="Folder for the quantised model; it appears whole or not at all.")],
    method: Annotated[str, typer.Option(help="icq (calibrated) or plain (no search: NF4 as QLoRA has it).")] = "icq",
    bits: Annotated[int, typer.Option(help="Bits a weight's code: 2, 3 or 4.")] = 4,
    codebook: Annotated[str, typer.Option(help="nf (normal float) or int (equal steps).")] = "nf",
    objective: Annotated[
        str, typer.Option(help="What the search wants of a block: entropy (the paper's) or mse.")
    ] = "entropy",
    search: Annotated[str, typer.Option(help="shift; for int also scale (what the paper's code does).")] = "shift",
    block_size: Annotated[int, typer.Option(help="Weights that share a scale and a shift.")] = 64,
    n: Annotated[int, typer.Option(help="Candidates on either side of the median.")] = 100,
    lam: Annotated[float, typer.Option(help="Width of the searched window.")] = 0.1,
    double_quant: Annotated[bool, typer.Option(help="Keep scales and shifts in 8 bits.")] = True,
    group_size: Annotated[int, typer.Option(help="Blocks that share a float then.")] = 256,
    skip: Annotated[
        str | None, typer.Option(help="Names of layers to leave dense beside the output head, with commas.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Type of what stays dense: auto (as saved), float32, bfloat16 or float16.")
    ] = "auto",
    compare: Annotated[bool, typer.Option(help="Also report each layer without a search.")] = True,
    layers: Annotated[bool, typer.Option("--layers", help="Print every layer, however many.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON and nothing else.")] = False,
    progress: Annotated[bool, typer.Option(help="Show a progress bar.")] = True,
) -> None:
    """Quantise the linear layers of a model and save it; transformers loads it after  import lorascope.quantization.

    Writes OUT with the model, its tokenizer and quantization.json: entropy of the codes, error and bits of each layer.
    Embeddings, the output head, routers, convolutions and fused experts stay dense.
    """
    import json

    from lorascope.core.errors import ModelError, unknown_name

    if method not in ("icq", "plain"):
        raise unknown_name("method", method, ("icq", "plain"))
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise unknown_name("dtype", dtype, ("auto", "float32", "bfloat16", "float16"))
    if objective not in ("entropy", "mse"):
        raise unknown_name("objective", objective, ("entropy", "mse"))

    from rich.console import Console

    from lorascope.adapters.sharing import is_shared_folder
    from lorascope.quantization import ICQConfig, quantize_model
    from lorascope.tasks.embedded import quiet_transformers, resolve_model

    config = ICQConfig(
        bits=bits,
        block_size=block_size,
        n=n,
        lam=lam,
        objective="none" if method == "plain" else objective,
        codebook=codebook,
        search=search,
        double_quant=double_quant,
        group_size=group_size,
        modules_to_not_convert=None if skip is None else [name.strip() for name in skip.split(",") if name.strip()],
    )
    source = resolve_model(model)
    if is_shared_folder(source):
        raise ModelError(
            f"'{model}' has layers that share weights, which a quantised folder cannot keep: quantise the plain model"
        )
    with quiet_transformers(reports=True):
        report = quantize_model(
            source, out, config, dtype=dtype, compare=compare and method == "icq", progress=progress and not as_json
        )
    console = Console()
    if as_json:
        console.print_json(json.dumps(report.to_dict(), allow_nan=False))
        return
    many = len(report.layers) > _MANY and not layers
    console.print(_by_projection(report.layers) if many else _by_layer(report.layers))
    for line in _summary(report.totals):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"quantised model: {out}", soft_wrap=True, highlight=False, markup=False)
    if many:
        console.print(
            f"every layer: {out / 'quantization.json'}, or --layers", soft_wrap=True, highlight=False, markup=False
        )


def _summary(totals: dict[str, int | float]) -> list[str]:
    before, after = totals["bytes_before"], totals["bytes_after"]
    lines = [
        f"{totals['quantized_weights'] / 1e6:,.3g} million weights at {totals['bits_per_weight']:.3f} bits, "
        f"{totals['kept_weights'] / 1e6:,.3g} million left dense: {before / 2**20:,.4g} -> {after / 2**20:,.4g} MiB, "
        f"in {totals['seconds']:.1f} s"
    ]
    said = f"entropy of the codes {totals['entropy_bits']:.3f} bits, relative error {totals['relative_error']:.4f}"
    if "entropy_bits_plain" in totals:
        said += (
            f" (without a search {totals['entropy_bits_plain']:.3f} bits and {totals['relative_error_plain']:.4f}; "
            "more entropy is not less error)"
        )
    return [*lines, said]


_COLUMNS = {
    "bits_per_weight": "stored\nbits",
    "entropy_bits": "entropy\nbits",
    "entropy_bits_plain": "without\nsearch",
    "relative_error": "relative\nerror",
    "relative_error_plain": "without\nsearch",
}


def _table(title: str, records: list[dict[str, Any]], first: tuple[str, ...]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE, pad_edge=False)
    for name in first:
        table.add_column(name, overflow="fold")
    for key, label in _COLUMNS.items():
        if key in records[0]:
            table.add_column(label, justify="right", no_wrap=True)
    return table


def _by_layer(records: list[dict[str, Any]]) -> Table:
    from rich.markup import escape

    paths = [record["name"].split(".")[:-1] for record in records]
    common = [parts[0] for parts in itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))]
    shared = ".".join([*common, ""])
    title = f"Quantised layers of {'.'.join(common)}" if common else "Quantised layers"
    table = _table(escape(title), records, ("layer",))
    for record in records:
        name = record["name"].removeprefix(shared)
        table.add_row(escape(name), *(f"{record[key]:.4f}" for key in _COLUMNS if key in record))
    return table


def _by_projection(records: list[dict[str, Any]]) -> Table:
    from rich.markup import escape

    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(record["name"].rpartition(".")[2], []).append(record)
    table = _table("Quantised layers by projection: mean, smallest to largest", records, ("projection", "layers"))
    for name, members in groups.items():
        cells = []
        for key in _COLUMNS:
            if key in members[0]:
                values = [member[key] for member in members]
                mean = sum(values) / len(values)
                wide = key != "bits_per_weight" and len(values) > 1
                cells.append(f"{mean:.4f}" + (f"\n{min(values):.3f} to\n{max(values):.3f}" if wide else ""))
        table.add_row(escape(name), str(len(members)), *cells)
    return table
