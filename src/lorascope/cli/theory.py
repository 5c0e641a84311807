"""``lorascope theory``: the solvable model of pre-training and LoRA, as answers, curves and simulations."""

from __future__ import annotations

import typer

from lorascope.cli._stop import stoppable
from lorascope.cli.theory_advice import (
    active_command,
    budget_command,
    mismatch_command,
    recalibrate_command,
    regularise_command,
    threshold_command,
)
from lorascope.cli.theory_bridge import bridge_command
from lorascope.cli.theory_curves import curve_command, point_command
from lorascope.cli.theory_figures import figures_command
from lorascope.cli.theory_simulate import simulate_command

theory_app = typer.Typer(
    help="Ask a solvable model of LoRA: how to pre-train, how much data, when a good representation is no good test error, "
    "what to label. One attention head, many dimensions; every answer says where it is not to be trusted. "
    "Start with  [bold]lorascope theory point[/bold].",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

theory_app.command("point")(stoppable(point_command))
theory_app.command("curve")(stoppable(curve_command))
theory_app.command("regularise")(stoppable(regularise_command))
theory_app.command("threshold")(stoppable(threshold_command))
theory_app.command("recalibrate")(stoppable(recalibrate_command))
theory_app.command("mismatch")(stoppable(mismatch_command))
theory_app.command("budget")(stoppable(budget_command))
theory_app.command("active")(stoppable(active_command))
theory_app.command("simulate")(stoppable(simulate_command))
theory_app.command("figures")(stoppable(figures_command))
theory_app.command("bridge")(stoppable(bridge_command))
