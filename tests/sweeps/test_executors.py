"""The three executors pass the same tests; what is special to each comes after."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lorascope.core import InputError, MissingDependencyError
from lorascope.sweeps import Event, LocalExecutor, RayExecutor, SlurmExecutor, SweepFolder, run_sweep
from lorascope.sweeps.executors import local, make_executor
from lorascope.sweeps.executors.local import default_workers, threads_for
from lorascope.testing.executors import ExecutorConformance, tiny_sweep


class TestLocal(ExecutorConformance):
    def make_executor(self) -> LocalExecutor:
        return LocalExecutor(workers=2)


# submitit leaves processes and log files to the garbage collector.
quiet_submitit = [
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
]


class TestSubmititLocal(ExecutorConformance):
    pytestmark = quiet_submitit

    def make_executor(self) -> SlurmExecutor:
        return SlurmExecutor(cluster="local", workers=2)


class TestSubmititDebug(ExecutorConformance):
    pytestmark = quiet_submitit
    stops = False

    def make_executor(self) -> SlurmExecutor:
        return SlurmExecutor(cluster="debug")


def test_threads_do_not_exceed_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [threads_for(workers, 16) for workers in (1, 2, 5, 16, 40)] == [16, 8, 3, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert [threads_for(workers, 16) for workers in (1, 16)] == [2, 1]


def test_workers_fit_into_memory_and_gpus() -> None:
    gib = 2**30
    assert default_workers(64, 8, gib) == 8
    assert default_workers(16, 0, 20 * gib) == 5
    assert default_workers(2, 0, 500 * gib) == 2
    assert default_workers(2, 0, gib) == 1


def test_gpus_go_round(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each slot keeps its GPU, whichever cell it runs."""
    started: list[tuple[object, ...]] = []

    class Process:
        sentinel = 0

        def __init__(self, *, args: tuple[object, ...], **other: object) -> None:
            started.append(args)

        def start(self) -> None:
            pass

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    executor = LocalExecutor(workers=4)
    monkeypatch.setattr(type(executor._context), "Process", Process)
    for name in "abcd":
        executor.submit(str(tmp_path), name, 0)
    assert [args[5] for args in started] == ["3", "5", "3", "5"]
    for _, _, pipe in executor._running.values():
        pipe.close()


def test_the_server_opens_no_gpu() -> None:
    """Importing PEFT imports bitsandbytes, which opens a context on each GPU; a cell forked from there could use none."""
    code = (
        "import sys, torch; torch.cuda.is_available = lambda: True; import lorascope.sweeps.preload; "
        "sys.exit('bitsandbytes' in sys.modules or 'peft' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_cells_get_their_share_of_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen from inside the cells, in the records that they leave."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(local, "usable_cores", lambda: 6)
    spec = tiny_sweep(tmp_path, steps=2, rank=[2])
    run_sweep(spec, tmp_path / "sweep", executor=LocalExecutor(workers=2))
    (record,) = SweepFolder(tmp_path / "sweep").store.records()
    assert record.provenance["machine"]["torch_threads"] == 3


def test_a_cell_whose_process_dies_is_recorded(tmp_path: Path) -> None:
    """As when the system kills it for its memory: the reason names the signal, and the other cells go on."""
    spec = tiny_sweep(tmp_path, steps=20, save_steps=2, rank=[2, 4])
    victim = spec.expand()[0].name
    executor = LocalExecutor(workers=1)

    def kill(event: Event) -> None:
        if event.kind == "started" and event.name == victim:
            real = executor.wait

            def wait(timeout: float) -> list[object]:
                for name, process, _ in executor._running.values():
                    if name == victim and process.is_alive():
                        process.kill()
                return real(timeout)  # type: ignore[return-value]

            executor.wait = wait  # type: ignore[method-assign,assignment]

    outcome = run_sweep(spec, tmp_path / "sweep", executor=executor, on_event=kill)
    assert list(outcome.failed) == [victim]
    assert "SIGKILL" in outcome.failed[victim]
    assert len(outcome.done) == 1
    failure = SweepFolder(tmp_path / "sweep").failure(victim)
    assert failure is not None
    assert (failure.attempt, failure.traceback) == (1, ())
    again = run_sweep(spec, tmp_path / "sweep", executor=LocalExecutor(workers=1))
    assert again.failed == {}
    assert not list((tmp_path / "sweep" / "cells").glob("*.failure.json"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lokal", {}, "unknown executor 'lokal': did you mean 'local'?"),
        ("local", {"address": "auto"}, "executor 'local' has no option 'address': it takes workers"),
        ("local", {"workers": 0}, "workers 0 must be at least 1"),
        ("ray", {"memory": -1.0}, "memory -1.0 must be a number of at least 0"),
        ("ray", {"max_retries": -1}, "max_retries -1 must be at least 0"),
        ("slurm", {"minutes": 0}, "minutes 0 must be at least 1"),
        ("slurm", {"cluster": "pbs"}, "cluster 'pbs' must be one of slurm, local, debug"),
    ],
)
def test_bad_options_are_named(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("?", "[?]")):
        make_executor(name, **options)


def test_options_that_are_none_are_defaults() -> None:
    assert make_executor("local", workers=3, address=None).slots == 3


@pytest.mark.parametrize("module", ["ray", "submitit"])
def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"pip install .lorascope\["):
        (RayExecutor if module == "ray" else SlurmExecutor)()


def test_without_slurm_it_is_said(tmp_path: Path) -> None:
    spec = tiny_sweep(tmp_path, rank=[2])
    with pytest.raises(InputError, match="no Slurm on this machine"):
        run_sweep(spec, tmp_path / "sweep", executor="slurm")


def test_an_address_without_a_cluster_is_said() -> None:
    with pytest.raises(InputError, match=r"no Ray cluster at '127\.0\.0\.1:1'"):
        RayExecutor(address="127.0.0.1:1").start()
