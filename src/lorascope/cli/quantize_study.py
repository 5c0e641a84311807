"""``lorascope quantize-study``: what quantising with ICQ depends on, gains and costs, on your own model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lorascope.quantization.studies import Blocks, QuantizationStudy

Models = Annotated[
    list[str] | None,
    typer.Option("--model", help="smollm2 (embedded), a folder or a hub id; can be given several times."),
]
Out = Annotated[Path, typer.Option(help="Folder for STUDY.json and STUDY.html.")]
Limit = Annotated[int, typer.Option(min=1, help="Most blocks taken of a layer.")]
BlockSize = Annotated[int, typer.Option(min=2, help="Weights a block.")]
Bits = Annotated[int, typer.Option(help="Bits a code: 2, 3 or 4.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the draw of blocks and of normal numbers.")]
Progress = Annotated[bool, typer.Option(help="Show a progress bar.")]
N = Annotated[int, typer.Option(min=1, help="Candidates on either side of the start.")]
Lam = Annotated[float, typer.Option(help="Width of the searched window.")]


def sensitivity_command(
    out: Out,
    model: Models = None,
    ns: Annotated[str, typer.Option(help="Candidates on either side, with commas.")] = "1,5,10,25,50,100,200",
    lams: Annotated[str, typer.Option(help="Widths of the window, with commas.")] = "0.02,0.05,0.1,0.2,0.4",
    bits: Bits = 4,
    block_size: BlockSize = 64,
    limit: Limit = 64,
    seed: Seed = 0,
    progress: Progress = True,
) -> None:
    """Entropy gained, error and time for each n and lambda."""
    from lorascope.quantization.studies import sensitivity

    counts, widths = _numbers("--ns", ns, int), _numbers("--lams", lams, float)

    def run(models: dict[str, Blocks]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        rows: list[dict[str, Any]] = []
        for name, blocks in models.items():
            found = sensitivity(blocks, bits=bits, ns=counts, lams=widths, progress=progress)
            rows += [{"model": name, **row} for row in found]
        return rows, []

    settings = {"ns": counts, "lams": widths, "bits": bits}
    _study("sensitivity", out, model, run, settings, block_size=block_size, limit=limit, seed=seed)


def ceiling_command(
    out: Out,
    model: Models = None,
    bits: Annotated[str, typer.Option(help="Bits a code, with commas.")] = "2,3,4",
    n: N = 100,
    lam: Lam = 0.1,
    block_size: BlockSize = 64,
    limit: Limit = 64,
    seed: Seed = 0,
    progress: Progress = True,
) -> None:
    """Entropies that are reached, beside the most there can be, and what of the gain is noise."""
    from lorascope.quantization.studies import ceiling

    widths = _numbers("--bits", bits, int)

    def run(models: dict[str, Blocks]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        return ceiling(models, bits=widths, n=n, lam=lam, seed=seed, progress=progress), []

    settings = {"bits": widths, "n": n, "lam": lam}
    _study("ceiling", out, model, run, settings, block_size=block_size, limit=limit, seed=seed)


def median_command(
    out: Out,
    model: Models = None,
    bits: Bits = 4,
    n: N = 100,
    lam: Lam = 0.1,
    block_size: BlockSize = 64,
    limit: Limit = 64,
    seed: Seed = 0,
    progress: Progress = True,
) -> None:
    """Symmetry, normality and tails of the weights by layer, and other starts than the median."""
    from lorascope.quantization.starts import median_start

    def run(models: dict[str, Blocks]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        return median_start(models, bits=bits, n=n, lam=lam, seed=seed, progress=progress)

    settings = {"bits": bits, "n": n, "lam": lam}
    _study("median", out, model, run, settings, block_size=block_size, limit=limit, seed=seed)


def resources_command(
    out: Out,
    model: Annotated[str, typer.Option(help="A causal model: smollm2 (embedded), a folder or a hub id.")] = "smollm2",
    variants: Annotated[str, typer.Option(help="Of dense, nf4 (bitsandbytes) and icq, with commas.")] = "dense,nf4,icq",
    modes: Annotated[
        str, typer.Option(help="Of forward and backward (to the embeddings), with commas.")
    ] = "forward,backward",
    batches: Annotated[str, typer.Option(help="Rows in a pass, with commas.")] = "1,8",
    lengths: Annotated[str, typer.Option(help="Tokens a row, with commas.")] = "1,32,256",
    rounds: Annotated[int, typer.Option(min=1, help="Passes that are timed.")] = 5,
    bits: Bits = 4,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, or cuda.")] = "cpu",
    seed: Seed = 0,
    progress: Progress = True,
) -> None:
    """Memory and time of passes by batch and length: dense, NF4 of bitsandbytes, ICQ."""
    from lorascope.cli._quantize_study import loader
    from lorascope.quantization.resources import resources
    from lorascope.quantization.studies import QuantizationStudy

    asked: dict[str, Any] = {
        "variants": [name.strip() for name in variants.split(",")],
        "modes": [name.strip() for name in modes.split(",")],
        "batches": _numbers("--batches", batches, int),
        "lengths": _numbers("--lengths", lengths, int),
        "rounds": rounds,
        "seed": seed,
    }
    path = _place(out, "resources")
    load, vocabulary = loader(model, bits=bits, dtype=dtype, device=device)
    rows = resources(load, vocabulary=vocabulary, progress=progress, **asked)
    settings = {**asked, "model": model, "bits": bits, "dtype": dtype, "device": device}
    _finish(QuantizationStudy(study="resources", records=rows, settings=settings), path, seed)


def _study(
    name: str,
    out: Path,
    given: Sequence[str] | None,
    run: Callable[[dict[str, Blocks]], tuple[list[dict[str, Any]], list[dict[str, Any]]]],
    settings: dict[str, Any],
    *,
    block_size: int,
    limit: int,
    seed: int,
) -> None:
    from lorascope.quantization.studies import QuantizationStudy, sample_blocks
    from lorascope.quantization.whole import load_model, quantizable_weights
    from lorascope.tasks.embedded import quiet_transformers, resolve_model

    path = _place(out, name)
    models: dict[str, Blocks] = {}
    for label in given or ("smollm2",):
        with quiet_transformers(reports=True):
            dense = load_model(resolve_model(label))
        place = Path(label)
        name_of = place.name if place.is_dir() and place.name not in models else label
        models[name_of] = sample_blocks(quantizable_weights(dense), block_size=block_size, limit=limit, seed=seed)
    rows, layers = run(models)
    settings = {**settings, "models": list(models), "block_size": block_size, "limit": limit, "seed": seed}
    _finish(QuantizationStudy(study=name, records=rows, layers=layers, settings=settings), path, seed)


def _numbers(option: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    from lorascope.core.errors import InputError

    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) <= 0:
        raise InputError(f"{option} '{text}' must be numbers above 0 with commas between")
    return found


def _place(out: Path, name: str) -> Path:
    from lorascope.core.errors import OutputError

    path = out / f"{name}.json"
    if out.exists() and not out.is_dir():
        raise OutputError(f"output '{out}' is a file, not a folder: choose another --out")
    if path.exists():
        raise OutputError(f"output '{path}' is there already: choose another --out, or remove it")
    return path


def _finish(study: QuantizationStudy, path: Path, seed: int) -> None:
    import dataclasses

    from rich.console import Console

    from lorascope.cli._quantize_study import headline, sections, table
    from lorascope.core.files import write_json
    from lorascope.core.provenance import collect
    from lorascope.report.page import write_page

    study = dataclasses.replace(study, provenance=collect(seed=seed))
    console = Console()
    console.print(table(study))
    says = headline(study)
    console.print(says, soft_wrap=True, highlight=False, markup=False)
    page = write_page(
        path.with_suffix(".html"),
        sections(study),
        title=f"Quantisation: {study.study}",
        headline=says,
        provenance=study.provenance,
    )
    write_json(path, study.to_dict())
    console.print(f"page: {page}", soft_wrap=True, highlight=False, markup=False)


COMMANDS: dict[str, Callable[..., None]] = {
    "sensitivity": sensitivity_command,
    "ceiling": ceiling_command,
    "median": median_command,
    "resources": resources_command,
}
