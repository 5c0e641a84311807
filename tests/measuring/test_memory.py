"""The memory of a measurement does not grow with the number of samples: by what lives, and by what the process takes."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lorascope.measuring import measure
from lorascope.measuring.state import LayerState
from tests.measuring.architectures import adapted, batch_for

ROOT = Path(__file__).parents[2]


def live_bytes() -> int:
    """Bytes of all tensors that Python can reach, shared memory counted once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and thing.layout == torch.strided:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def live_after(counts: tuple[int, ...], **options: object) -> list[int]:
    """Live bytes after so many batches of one measurement; batches are made as they are asked for."""
    model, held = adapted("llama"), []

    def batches() -> Iterator[dict[str, torch.Tensor]]:
        for number in range(max(counts) + 1):
            if number in counts:
                held.append(live_bytes())
            yield batch_for("llama", seed=number, rows=4, length=16)

    measure(model, batches(), progress=False, **options)
    return held


@pytest.mark.parametrize("variant", ["local", "base"])
def test_no_tensor_stays_behind(variant: str) -> None:
    few, many = live_after((3, 30), metrics="all", reduction="sample_mean", variant=variant)
    assert few == many > 0


def test_the_count_sees_one_number_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above would fail if a layer kept a single float32 of each token."""
    kept, update = [], LayerState.update

    def keep(self, frozen, adapted, selection):
        kept.append(frozen[..., 0].clone())
        return update(self, frozen, adapted, selection)

    monkeypatch.setattr(LayerState, "update", keep)
    few, many = live_after((3, 30), metrics="all")
    assert many - few == 27 * 14 * 4 * 16 * 4  # batches, layers, rows, tokens, bytes


SCRIPT = """
import resource, warnings
warnings.simplefilter("ignore")
import torch
from lorascope.measuring import measure
from tests.measuring.architectures import adapted, batch_for

def batches(count):
    return (batch_for("llama", seed=seed, rows=32, length=32) for seed in range(count))

model, taken = adapted("llama"), []
for count in (12, 120):
    measure(model, batches(count), metrics=["miub_js", "mi_joint", "mi_gaussian", "update_ratio", "ce"], progress=False)
    taken.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(*taken)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux")
def test_the_process_takes_no_more_for_ten_times_the_samples() -> None:
    """Keeping the outputs of 120 batches of 1024 tokens would take 230 MB."""
    paths = [str(ROOT), *(path for path in sys.path if path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=300
    )
    few, many = map(int, done.stdout.split())
    assert many - few < 16_000  # kilobytes; the allocator takes some of them
