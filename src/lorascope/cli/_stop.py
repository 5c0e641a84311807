"""Ctrl-C in one line."""

from __future__ import annotations

import functools
from collections.abc import Callable

import typer


def stoppable(
    command: Callable[..., None], says: str = "run the same command again to go on from here"
) -> Callable[..., None]:
    """A command that ends with exit code 130 and one line when the user presses Ctrl-C."""

    @functools.wraps(command)
    def wrapped(*args: object, **options: object) -> None:
        try:
            command(*args, **options)
        except KeyboardInterrupt:
            typer.secho(f"\nlorascope: stopped; {says}", err=True, fg="yellow")
            raise typer.Exit(130) from None

    return wrapped
