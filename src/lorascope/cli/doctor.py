"""``lorascope doctor``: what is installed and works; what is wrong with an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def doctor_command(
    adapter: Annotated[
        Path | None, typer.Argument(help="Folder of a LoRA adapter; without it the installation is examined.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Base model to check the adapter against: smollm2, a folder or a hub id.")
    ] = None,
    initial: Annotated[
        Path | None, typer.Option(help="Folder of the adapter as saved before training, to tell what never changed.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON and nothing else.")] = False,
) -> None:
    """Examine the installation, or a saved adapter: findings with evidence and remedy.

    An adapter's hazards: a start that changed the base (PiSSA, OLoRA, CorDA, LoRA-GA), no effect, layers that never changed,
    NaN, a wrong base, unused rank. Ends with exit code 1 if something is an error.
    """
    import json

    from lorascope.core.environment import SEVERITIES, examine_environment, to_json, worst
    from lorascope.core.errors import InputError, ModelError

    if adapter is None:
        if model is not None or initial is not None:
            raise InputError("--model and --initial belong to an adapter: name its folder first")
        findings, title = examine_environment(), "this installation"
        if worst(findings) != "error":
            from lorascope.adapters.doctor import examine_libraries

            findings = sorted([*findings, *examine_libraries()], key=lambda item: -SEVERITIES.index(item.severity))
    else:
        from lorascope.adapters.doctor import examine_adapter
        from lorascope.measuring import load_model_and_tokenizer
        from lorascope.quantization.whole import load_model
        from lorascope.tasks.embedded import resolve_model

        base: PreTrainedModel | None = None
        if model is not None:
            try:
                base = load_model_and_tokenizer(model)[0]
            except ModelError:  # of a folder without a tokenizer, or a classifier: the weights will do
                base = load_model(resolve_model(model))
        findings, title = examine_adapter(adapter, base=base, initial=initial), str(adapter)
    if as_json:
        typer.echo(json.dumps(to_json(findings, subject=title), indent=2, allow_nan=False))
    else:
        from rich.console import Console
        from rich.markup import escape

        console = Console()
        colours = {"error": "red", "warning": "yellow", "note": "cyan", "good": "green"}
        for finding in findings:
            head = f"[{colours[finding.severity]}]{finding.severity:>7}[/]  [bold]{escape(finding.check)}[/bold]"
            console.print(f"{head}: {escape(finding.evidence)}", highlight=False)
            if finding.remedy:
                console.print(f"         -> {escape(finding.remedy)}", style="dim", highlight=False)
        console.print(f"{escape(title)}: {worst(findings)}", highlight=False)
    if worst(findings) == "error":
        raise typer.Exit(1)
