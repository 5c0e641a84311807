"""Options that the commands of ``lorascope theory`` share. The names are those of the model, see docs/theory.md."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_FIRST, _SECOND, _OUTPUT = "Stage 1: pre-training", "Stage 2: LoRA", "Output"

Alpha = Annotated[float, typer.Option(help="Pre-training sequences over d² (N/d²).", rich_help_panel=_FIRST)]
Tokens = Annotated[int, typer.Option(help="Tokens of a sequence, T.", rich_help_panel=_FIRST)]
Kappa0 = Annotated[float, typer.Option(help="Rank of the target matrix over d.", rich_help_panel=_FIRST)]
Noise = Annotated[float, typer.Option(help="Label noise, Delta.", rich_help_panel=_FIRST)]
Ridge = Annotated[float, typer.Option(help="Pre-training ridge, lambda.", rich_help_panel=_FIRST)]
RidgeOrBest = Annotated[
    str,
    typer.Option(metavar="FLOAT|best", help="Pre-training ridge lambda; best: of least noise.", rich_help_panel=_FIRST),
]
Penalty = Annotated[
    str, typer.Option(help="nuclear (factors with weight decay) or frobenius (plain ridge).", rich_help_panel=_FIRST)
]
Activation = Annotated[str, typer.Option(help="linear, or softmax (two tokens, nuclear).", rich_help_panel=_FIRST)]
AlphaFinetune = Annotated[
    float | None, typer.Option(help="Fine-tuning sequences over d (N'/d).", rich_help_panel=_SECOND)
]
Sequences = Annotated[float, typer.Option(help="Fine-tuning sequences over d (N'/d).", rich_help_panel=_SECOND)]
RidgeFinetune = Annotated[
    str,
    typer.Option(metavar="FLOAT|best", help="LoRA ridge lambda'; best: of least test error.", rich_help_panel=_SECOND),
]
Data = Annotated[
    str,
    typer.Option(
        help="fresh, reused (sequences of pre-training), recalibrated (fresh, frozen matrix times M/Q) or active.",
        rich_help_panel=_SECOND,
    ),
]
Kinds = Annotated[
    str,
    typer.Option(
        help="Kinds of data with commas between: fresh, reused, recalibrated, active.", rich_help_panel=_SECOND
    ),
]
Fraction = Annotated[float, typer.Option(help="Share of the pool that active labels.", rich_help_panel=_SECOND)]
Largest = Annotated[
    bool, typer.Option("--largest", help="Let active take the largest logits.", rich_help_panel=_SECOND)
]
Dim = Annotated[
    int | None,
    typer.Option(help="d that you mean, by which the share of reused sequences is judged.", rich_help_panel=_SECOND),
]
Samples = Annotated[
    int | None, typer.Option(help="Quasi-random points of stage 2, a power of two.", rich_help_panel="Accuracy")
]
Points = Annotated[
    Path | None,
    typer.Option(
        "--points",
        metavar="FILE",
        help="Simulations to draw on top (lorascope theory simulate).",
        rich_help_panel=_OUTPUT,
    ),
]
Out = Annotated[Path | None, typer.Option(help="Folder for the page and the JSON.", rich_help_panel=_OUTPUT)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.", rich_help_panel=_OUTPUT)]
Progress = Annotated[
    bool, typer.Option("--progress/--no-progress", help="Show progress bars.", rich_help_panel=_OUTPUT)
]
