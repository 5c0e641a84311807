"""The user's batches as a pass reads them: each process its own, in the same order every time."""

from __future__ import annotations

import itertools
import operator
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler
from tqdm.auto import tqdm

from lorascope.core.errors import DataError, InputError
from lorascope.measuring.batches import make_batches
from lorascope.measuring.processes import processes


class CalibrationBatches:
    """Reads batches once a pass, and refuses those that come in another order later.

    Args:
        data: A DataLoader, or an iterable of mappings of the model's inputs by name.
        most: Stop after that many; None takes all.
        device: Where the model takes them.
        compared: Keep a checksum of each batch, to compare later passes with the first.

    Attributes:
        rank: Of this process.
        world: Number of processes.
        count: Batches of a pass, those of other processes among them.
        once: The data can be read once only.

    Raises:
        InputError: The data are of another kind, or give each process a part already.
    """

    def __init__(self, data: Any, most: int | None, device: torch.device, *, compared: bool) -> None:
        self._data, self._most, self._device, self._compared = _iterable(data), most, device, compared
        self.once = isinstance(self._data, Iterator)
        group = processes()
        sampler = getattr(self._data, "batch_sampler", None)
        if group is not None and (
            isinstance(sampler, BatchSamplerShard)
            or isinstance(getattr(self._data, "sampler", None), DistributedSampler)
        ):
            raise InputError(
                "the dataloader gives each process its own part already, and parts are made here: give every process the "
                "same DataLoader, as it was before prepare() and without a DistributedSampler"
            )
        self.rank = int(group.process_index) if group is not None else 0
        self.world = int(group.num_processes) if group is not None else 1
        self.count = 0
        self._marks: list[int] = []
        self._sizes: list[int] = []

    def first(self) -> dict[str, Any]:
        """The first batch, which stays to be read.

        Raises:
            InputError: There is none.
        """
        batches = iter(self._data)
        batch = next(batches, None)
        if batch is None:
            raise InputError("no data: the dataloader gave no batch")
        if self.once:
            self._data = itertools.chain([batch], batches)
        return self._on_device(batch, 0)

    def read(self, number: int, label: str, progress: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        """This process's batches and their places, with a bar.

        Args:
            number: Of the pass, from 0.
            label: Of the bar.
            progress: Show it.

        Raises:
            InputError: There is no batch, or one is no mapping.
            DataError: A batch, or their number, differs from the first pass.
        """
        total = operator.length_hint(self._data) or None
        if self._most is not None:
            total = min(total or self._most, self._most)
        batches = itertools.islice(iter(self._data), self._most)
        bar = tqdm(batches, total=total, desc=label, unit="batch", disable=not progress or self.rank > 0)
        count = 0
        for index, batch in enumerate(bar):
            count += 1
            if index % self.world == self.rank:
                inputs = self._on_device(batch, index)
                if self._compared:
                    self._compare(inputs, index, number)
                yield index, inputs
        if count == 0 and number == 0:
            raise InputError("no data: the dataloader gave no batch")
        if number == 0:
            self.count = count
        elif count != self.count:
            raise DataError(
                f"the dataloader ended after {count} batches in pass {number + 1}, with {self.count} in the first: give "
                "one that can be read again, or more max_memory"
            )

    def growth(self) -> float:
        """How many times as large as the first batch the largest was, where they are compared."""
        return max(self._sizes) / self._sizes[0] if self._sizes and self._sizes[0] else 1.0

    def _on_device(self, batch: Any, index: int) -> dict[str, Any]:
        if not isinstance(batch, Mapping):
            raise InputError(
                f"batch {index + 1} is of type {type(batch).__name__}: give mappings of the model's inputs by name"
            )
        return {key: value.to(self._device) if isinstance(value, Tensor) else value for key, value in batch.items()}

    def _compare(self, inputs: Mapping[str, Any], index: int, number: int) -> None:
        named = (inputs.get(key) for key in ("input_ids", "pixel_values"))
        first = next((value for value in named if isinstance(value, Tensor)), None)
        flat = torch.zeros(0) if first is None else first.detach().cpu().reshape(-1)
        self._sizes.append(len(flat))
        mark = zlib.crc32(flat.view(torch.uint8).numpy().tobytes())
        place = index // self.world
        if number == 0:
            self._marks.append(mark)
        elif place >= len(self._marks) or self._marks[place] != mark:
            raise DataError(
                f"batch {index + 1} of pass {number + 1} is not the one of the first pass: give a dataloader that does not "
                "shuffle, or more max_memory"
            )


def _iterable(data: Any) -> Any:
    """The user's batches as an iterable."""
    if isinstance(data, DataLoader):
        return make_batches(data, tokenizer=None, batch_size=1)[0]
    base = getattr(data, "base_dataloader", None)
    if isinstance(base, DataLoader):
        return base
    if isinstance(data, str | Mapping) or not isinstance(data, Iterable):
        raise InputError(f"data of type {type(data).__name__}: give a DataLoader or a list of batches")
    return data
