"""Ray: a cluster of two workers on this machine, each with one processor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from lorascope.sweeps import Executor, LocalExecutor, RayExecutor, SlurmExecutor, SweepFolder, run_sweep
from lorascope.testing.executors import ExecutorConformance, tiny_sweep
from lorascope.training import run

from .command import until


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The cluster, with this process connected to it for all tests, so that workers stay warm."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        cluster = Cluster()
        for _ in range(2):
            cluster.add_node(num_cpus=1, include_dashboard=False)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
        yield cluster.address
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.usefixtures("address")
class TestRay(ExecutorConformance):
    def make_executor(self) -> RayExecutor:
        return RayExecutor(address="auto")


def test_a_cell_goes_on_when_its_worker_dies(address: str, tmp_path: Path) -> None:
    """kill -9 of the worker during a cell: Ray starts another, which goes on from the checkpoint."""
    spec = tiny_sweep(tmp_path, steps=200, save_steps=10, rank=[2])
    (cell,) = spec.expand()
    place = SweepFolder(tmp_path / "sweep")
    killed: list[int] = []

    class Killing(RayExecutor):
        def wait(self, timeout: float) -> list[object]:  # type: ignore[override]
            if not killed:
                checkpoints = place.store.path(cell.name) / "checkpoints"
                until(lambda: list(checkpoints.glob("checkpoint-*/trainer_state.json")))
                killed.extend(kill_workers(cell.name))
            return super().wait(timeout)  # type: ignore[return-value]

    outcome = run_sweep(spec, place.root, executor=Killing(address=address))
    assert killed
    assert outcome.done == (cell.name,)
    assert outcome.failed == {}
    plain = run(cell.spec, tmp_path / "plain", progress=False)
    found = place.store.load(cell.name)
    assert found.totals == pytest.approx(plain.totals, rel=1e-5)
    steps = [
        json.loads(line)["step"] for line in (place.store.path(cell.name) / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(1, 201))


# submitit leaves processes and log files to the garbage collector.
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_every_executor_gives_the_same_table(address: str, tmp_path: Path) -> None:
    """One spec, four executors: every cell, failure and number agrees, but for the clock and the memory."""
    spec = tiny_sweep(tmp_path, rank=[0, 2, 4], seed=[0, 1])
    spec.cells.append({"rank": 2, "learning_rate": 1e30})
    executors: dict[str, Executor] = {
        "local": LocalExecutor(workers=2),
        "ray": RayExecutor(address=address),
        "slurm-local": SlurmExecutor(cluster="local", workers=2),
        "slurm-debug": SlurmExecutor(cluster="debug"),
    }
    tables = {}
    for name, executor in executors.items():
        outcome = run_sweep(spec, tmp_path / name, executor=executor)
        written = pd.read_csv(outcome.table_path)
        own = [name for name in written if "seconds_" in name or name in ("peak_memory_bytes", "threads")]
        assert own, "the columns that may differ are there"
        tables[name] = written.drop(columns=own)
    local = tables.pop("local")
    assert sorted(local["status"]) == ["done"] * 5 + ["failed"]
    assert {"accuracy", "ce", "miub_js", "update_ratio"} <= set(local)
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, local, rtol=1e-5, atol=1e-7, obj=name)


def test_cells_wait_for_their_resources(address: str, tmp_path: Path) -> None:
    """What a cell needs decides how many run: nothing that the cluster cannot hold is promised."""
    executor = RayExecutor(address=address, cpus=1)
    executor.start()
    assert executor.slots == 4  # two run, two wait in Ray's own queue
    assert executor._options == {"num_cpus": 1, "max_retries": 3}
    big = RayExecutor(address=address, cpus=2, gpus=0.5, memory=1.5, max_retries=0)
    assert big._options == {"num_cpus": 2, "num_gpus": 0.5, "memory": 3 * 2**29, "max_retries": 0}
    assert big.slots == 1


def kill_workers(name: str) -> list[int]:
    """kill -9 of the process whose title says that it runs a task; Ray names the process by the task."""
    found = [process for process in psutil.process_iter() if f"ray::{name}" in " ".join(_title(process))]
    for process in found:
        process.kill()
    return [process.pid for process in found]


def _title(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []
