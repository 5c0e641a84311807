"""``lorascope fold``: an elastic adapter as an ordinary LoRA adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def fold_command(
    adapter: Annotated[str, typer.Argument(help="Folder of an elastic adapter.")],
    out: Annotated[Path, typer.Option(help="Folder for the ordinary adapter; it appears whole or not at all.")],
) -> None:
    """Fold the elastic connections of an adapter into its factors: same rank, same model, and plain PEFT loads it.

    Adapters of train --init pissa and the like are ordinary ones already: they are converted when they are saved.
    """
    from lorascope.adapters import fold_adapter, read_adapter_config

    fold_adapter(adapter, out)
    config = read_adapter_config(out)
    typer.echo(f"ordinary {'DoRA' if config.use_dora else 'LoRA'} adapter of rank {config.r}: {out}")
