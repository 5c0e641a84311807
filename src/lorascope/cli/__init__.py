"""The command line: one file a command, which parses, calls the library and prints. Nothing heavy is imported here."""

from __future__ import annotations

import sys

import typer

from lorascope.cli.measure import measure_command
from lorascope.cli.quickstart import quickstart_command
from lorascope.cli.report import report_command
from lorascope.cli.train import train_command
from lorascope.core.errors import LorascopeError

app = typer.Typer(
    name="lorascope",
    help="See what a LoRA adapter learned: information per layer, beside accuracy and perplexity. "
    "Start with  [bold]lorascope quickstart[/bold].",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("quickstart")(quickstart_command)
app.command("train")(train_command)
app.command("measure")(measure_command)
app.command("report")(report_command)


def _version(show: bool) -> None:
    if show:
        from lorascope import __version__

        typer.echo(f"lorascope {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main() -> None:
    """Run the command line: user errors end in one line and exit code 2, Ctrl-C in one line and 130."""
    try:
        app()
    except LorascopeError as error:
        typer.secho(f"lorascope: {' '.join(str(error).split())}", err=True, fg="red")
        sys.exit(2)
    except KeyboardInterrupt:
        typer.secho("\nlorascope: stopped; run the same command again to go on from here", err=True, fg="yellow")
        sys.exit(130)
