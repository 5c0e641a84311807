"""The command line: one file a command, which parses, calls the library and prints. Nothing heavy is imported here."""

from __future__ import annotations

import inspect
import logging
import sys
import warnings
from typing import cast

import typer

from lorascope.cli._stop import stoppable
from lorascope.cli.claims import claims_command
from lorascope.cli.compare_inits import compare_inits_command
from lorascope.cli.doctor import doctor_command
from lorascope.cli.fit import fit_command
from lorascope.cli.fold import fold_command
from lorascope.cli.init import init_command
from lorascope.cli.measure import measure_command
from lorascope.cli.plan import plan_command
from lorascope.cli.quantize import quantize_command
from lorascope.cli.quantize_study import COMMANDS as STUDY_COMMANDS
from lorascope.cli.quickstart import quickstart_command
from lorascope.cli.report import report_command
from lorascope.cli.reproduce import reproduce_command
from lorascope.cli.select import select_command
from lorascope.cli.sweep import sweep_command
from lorascope.cli.theory import theory_app
from lorascope.cli.train import TrainCommand, train_command
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


_NOTHING = "nothing was written; run the same command to begin again"

app.command("quickstart")(stoppable(quickstart_command))
app.command("train", cls=TrainCommand)(stoppable(train_command))
app.command("init")(stoppable(init_command, _NOTHING))
app.command("measure")(stoppable(measure_command))
app.command("quantize")(stoppable(quantize_command, _NOTHING))
app.command("fold")(stoppable(fold_command, _NOTHING))
app.command("select")(stoppable(select_command))
app.command("sweep")(stoppable(sweep_command))
app.command("fit")(stoppable(fit_command))
app.command("plan")(stoppable(plan_command))
app.command("compare-inits")(stoppable(compare_inits_command))
app.command("claims")(stoppable(claims_command))
app.command("reproduce")(stoppable(reproduce_command))
app.command("doctor")(stoppable(doctor_command))
app.add_typer(theory_app, name="theory")
app.command("report")(stoppable(report_command))

study = typer.Typer(
    no_args_is_help=True, help="Quantisation studied on your own model: settings, ceiling, median start, resources."
)
for _name, _command in STUDY_COMMANDS.items():
    study.command(_name)(stoppable(_command, _NOTHING))
app.add_typer(study, name="quantize-study")


def _flowing(text: str) -> str:
    """A command's help with paragraphs that fill the terminal; those that begin with a backspace keep their lines."""
    parts = text.split("\n\n")
    return "\n\n".join(part if part.startswith("\b") else " ".join(part.split("\n")) for part in parts)


for _command_info in (*app.registered_commands, *study.registered_commands, *theory_app.registered_commands):
    _command_info.help = _flowing(inspect.getdoc(_command_info.callback) or "")


def _version(show: bool | None) -> None:
    if show:
        from lorascope import __version__

        typer.echo(f"lorascope {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool | None = typer.Option(None, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


# What every wrong option, value and command is an instance of. Newer versions of typer carry their own copy of click and
# promise no name for this class; the promised one below it is BadParameter.
_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__bases__[0])


def main() -> None:
    """Run the command line: user errors end in one line and exit code 2, Ctrl-C in one line and 130."""
    # Libraries warn each other of renamed attributes; a user can do nothing about that.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on each import it names a kernel that it does without
    try:
        sys.exit(app(standalone_mode=False))
    except LorascopeError as error:
        _say(str(error))
    except _UsageError as error:
        # Without arguments the help has been printed, and there is nothing to add.
        if said := error.format_message():
            command = error.ctx.command_path if error.ctx is not None else "lorascope"
            _say(f"{said[:1].lower()}{said[1:].rstrip('.')}: see '{command} --help'")
    sys.exit(2)


def _say(text: str) -> None:
    typer.secho(f"lorascope: {' '.join(text.split())}", err=True, fg="red")
