"""``python -m tests.sweeps.typed sweep ...``: the command line, as ``python -m lorascope`` runs it."""

from __future__ import annotations

from lorascope.cli import _stoppable, app, main
from lorascope.cli.sweep import sweep_command

if "sweep" not in [command.name for command in app.registered_commands]:
    app.command("sweep")(_stoppable(sweep_command))

if __name__ == "__main__":
    main()
