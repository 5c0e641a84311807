"""``python -m tests.sweeps.warm``: forks ``lorascope`` commands, each in a process group of its own.

Only the imports are shared. The command then runs as always, with its fork server, its cells and its files; the one thing
that is replaced is how Python's fork server starts: by forking instead of by a fresh interpreter that imports torch again.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from multiprocessing import util
from pathlib import Path

import lorascope.sweeps.preload  # noqa: F401
from lorascope.cli import main

_spawn = util.spawnv_passfds


def fork_server(path: object, args: Sequence[object], passfds: Sequence[int]) -> int:
    code = str(args[-1])
    if "forkserver" not in code:
        return _spawn(path, args, passfds)
    pid = os.fork()
    if pid == 0:
        status = 0
        kept = {0, 1, 2, *passfds}
        for number in [int(entry.name) for entry in Path("/dev/fd").iterdir()]:
            if number not in kept:
                with contextlib.suppress(OSError):  # the one that listed them is closed already
                    os.close(number)
        try:
            exec(code, {"__name__": "__main__"})
        except SystemExit:
            pass
        except BaseException:
            status = 1
        os._exit(status)
    return pid


def command(options: list[str], log: str) -> None:
    os.setsid()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(handle, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    util.spawnv_passfds = fork_server
    sys.argv = ["lorascope", *options]
    main()


def say(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def serve() -> None:
    say("ready")
    for line in sys.stdin:
        question = json.loads(line)
        if "start" in question:
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    command(question["start"], question["log"])
                    code = 0
                except SystemExit as end:
                    code = end.code if isinstance(end.code, int) else int(end.code is not None)
                except BaseException:
                    import traceback

                    traceback.print_exc()
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
            say(pid)
        else:
            pid, status = os.waitpid(question["poll"], os.WNOHANG)
            say(None if pid == 0 else os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    serve()
