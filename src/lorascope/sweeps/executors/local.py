"""Cells in processes of this machine, one process a cell.

The processes are forked from a server that has torch, transformers and PEFT imported already, so that a cell starts in
milliseconds instead of seconds. The server itself computes nothing: it has no threads and no GPU context that a fork
could break.

Ctrl-C in a terminal reaches every process of the group, the cells included, and a second one makes them stop without
saving. Cells therefore do not listen to it: their sweep tells them through a pipe. When the pipe breaks, the sweep is
gone, and they save and stop too.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator
from multiprocessing import connection, context, forkserver, get_context, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lorascope.core.errors import InputError
from lorascope.sweeps.executors.protocol import Finished

_PRELOAD = "lorascope.sweeps.preload"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_GRACE_SECONDS = 5.0


def usable_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """Names of the GPUs that cells can be given, as ``CUDA_VISIBLE_DEVICES`` has them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    if not Path("/dev/nvidiactl").exists():
        return []
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def threads_for(workers: int, cores: int) -> int:
    """Threads a cell may use, so that all cells together do not use more than the cores.

    Args:
        workers: Cells at a time.
        cores: Processors.

    Returns:
        ``cores // workers``, at least 1, and not more than an ``OMP_NUM_THREADS`` that the user has set.

    Example:
        >>> threads_for(2, 16) <= 8
        True
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    share = max(1, cores // workers)
    return min(share, int(asked)) if asked.isdecimal() and int(asked) > 0 else share


def default_workers(cores: int, gpus: int, memory: int) -> int:
    """How many cells at a time, if nobody says: one a GPU; else one a core, with 4 GiB of free memory each.

    Args:
        cores: Processors.
        gpus: GPUs.
        memory: Free memory in bytes.

    Returns:
        At least 1.

    Example:
        >>> default_workers(8, 0, 16 * 2**30)
        4
    """
    return gpus or max(1, min(cores, memory // (4 * 2**30)))


class LocalExecutor:
    """Cells in processes of this machine.

    Args:
        workers: Cells at a time; None means `default_workers`.

    Raises:
        InputError: ``workers`` is below 1.

    Example:
        >>> LocalExecutor(workers=2).slots
        2
    """

    def __init__(self, workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise InputError(f"workers {workers} must be at least 1")
        self._gpus = visible_gpus()
        if workers is None:
            import psutil

            workers = default_workers(usable_cores(), len(self._gpus), psutil.virtual_memory().available)
        self._workers = workers
        self._threads = threads_for(workers, usable_cores())
        self._context: context.ForkServerContext = get_context("forkserver")
        self._running: dict[int, tuple[str, Any, Connection]] = {}

    @property
    def slots(self) -> int:
        """Cells at a time."""
        return self._workers

    def start(self) -> None:
        """Start the server, which imports torch while this process goes on."""
        self._context.set_forkserver_preload([_PRELOAD])
        settings = {name: str(self._threads) for name in _THREADS}
        # Asking the driver how many GPUs there are must not open a context, which a fork would break.
        settings["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
        resource_tracker.ensure_running()  # by itself, since it lets signals through again when it has started
        with _environment(settings), _no_main_module(), _no_interrupts():
            forkserver.ensure_running()

    def submit(self, folder: str, name: str, seen: int) -> None:
        """Start the cell's process on the first free slot."""
        slot = next(index for index in range(self._workers) if index not in self._running)
        gpu = self._gpus[slot % len(self._gpus)] if self._gpus else None
        ours, theirs = self._context.Pipe()
        log = str(Path(folder) / "cells" / f"{name}.log")
        process = self._context.Process(
            target=_cell, args=(theirs, folder, name, seen, self._threads, gpu, log), name=name, daemon=False
        )
        with _no_main_module():
            process.start()
        theirs.close()
        self._running[slot] = (name, process, ours)

    def wait(self, timeout: float) -> list[Finished]:
        """Cells whose process has ended."""
        ready = connection.wait([process.sentinel for _, process, _ in self._running.values()], timeout)
        finished = []
        for slot, (name, process, pipe) in list(self._running.items()):
            if process.sentinel not in ready:
                continue
            process.join()
            finished.append(_ended(name, pipe, process.exitcode))
            pipe.close()
            process.close()
            del self._running[slot]
        return finished

    def stop(self) -> None:
        """Tell every cell to save and stop; told twice, it stops at once."""
        for _, _, pipe in self._running.values():
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has just ended by itself
                pipe.send("stop")

    def close(self) -> None:
        """Kill what is still running; what it has saved stays."""
        for _, process, pipe in self._running.values():
            process.terminate()
            process.join(_GRACE_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
            pipe.close()
            process.close()
        self._running.clear()


def _ended(name: str, pipe: Connection, code: int | None) -> Finished:
    try:
        if pipe.poll():
            return Finished(name, pipe.recv())
    except (EOFError, ConnectionResetError):
        code = code or 0
    how = f"by signal {-code} ({signal.Signals(-code).name})" if code and code < 0 else f"with exit code {code}"
    hint = "; often too little memory: use fewer --workers" if code == -signal.SIGKILL else ""
    return Finished(name, "lost", f"its process ended {how}{hint}; see cells/{name}.log")


def _cell(pipe: Connection, folder: str, name: str, seen: int, threads: int, gpu: str | None, log: str) -> None:
    """The process of one cell."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=_listen, args=(pipe,), daemon=True).start()
        if gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        os.environ.update({key: str(threads) for key in _THREADS})
        _print_to(Path(log))
        import torch

        from lorascope.sweeps.worker import work

        torch.set_num_threads(threads)
        status = work(folder, name, seen)
    except KeyboardInterrupt:
        status = "stopped"
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the sweep is gone; the record is on disk
        pipe.send(status)


def _listen(pipe: Connection) -> None:
    """Turn every message of the sweep into Ctrl-C, and its end into one."""
    while True:
        try:
            pipe.recv()
        except (EOFError, OSError):
            _thread.interrupt_main()
            return
        _thread.interrupt_main()


def _print_to(log: Path) -> None:
    """Send what this process prints, libraries in C included, to the cell's log."""
    sys.stdout.flush()
    sys.stderr.flush()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _no_main_module() -> Iterator[None]:
    """Hide ``__main__`` from multiprocessing, which would import the user's script again in every cell."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def _no_interrupts() -> Iterator[None]:
    """Start processes that do not hear Ctrl-C while they are still importing."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
