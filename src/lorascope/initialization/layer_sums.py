"""The sums of one layer in a pass, and the statistics they make."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorascope.adapters import Component
from lorascope.core.errors import ModelError
from lorascope.initialization.accumulators import Probes, ProductSum, SymmetricSum
from lorascope.initialization.samples import SampleRecorder
from lorascope.measuring.selection import ForeignRowsError, Selection


@dataclass(frozen=True)
class LayerStatistics:
    """Sums over tokens of one layer, with a the input and g the gradient of the summed loss at the output.

    Attributes:
        component: The layer.
        tokens: Tokens that count, with which each sum is divided to give a mean.
        input_energy: E|a|^2 = tr A.
        gradient_energy: E|g|^2 = tr G.
        fisher_trace: E|g|^2 |a|^2 = tr F_in = tr F_out: the trace of the tokens' Fisher matrix of the weight.
        input: A = E a a^T; shared with the layers that have the same input.
        output: G = E g g^T.
        input_fisher: F_in = E |g|^2 a a^T.
        output_fisher: F_out = E |a|^2 g g^T.
        mean_gradient: M = E g a^T.
    """

    component: Component
    tokens: int
    input_energy: float
    gradient_energy: float
    fisher_trace: float
    input: SymmetricSum | None = None
    output: SymmetricSum | None = None
    input_fisher: SymmetricSum | None = None
    output_fisher: SymmetricSum | None = None
    mean_gradient: ProductSum | None = None


class LayerSums:
    """The sums of one layer in a pass."""

    def __init__(
        self, component: Component, need: tuple[str, ...], probes: Probes | None, device: torch.device
    ) -> None:
        self.component = component
        self.scalars = torch.zeros(3, dtype=torch.float64, device=device)
        counters = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(4))
        self.rows, self.foreign, self.partial, self.pooled = counters
        self._strange = self._counted = False
        self.sums: dict[str, SymmetricSum | ProductSum] = {}
        for name in need:
            if name == "mean_gradient":
                self.sums[name] = ProductSum(component.d_out, component.d_in, device, probes)
            else:
                size = component.d_in if name.startswith("input") else component.d_out
                self.sums[name] = SymmetricSum(size, device, probes)

    def update(self, x: Tensor, gradient: Tensor, selection: Selection, recorder: SampleRecorder | None) -> None:
        """Add one run of the layer on a batch."""
        shape = tuple(gradient.shape[:-1])
        self.pooled += selection.is_pooled(shape)
        try:
            index = selection.index_for(shape)
        except ForeignRowsError:
            self.foreign += gradient.numel() // gradient.shape[-1]
            self._strange = True
            return
        self._counted = True
        a, g = (t.reshape(-1, t.shape[-1]).float() for t in (x, gradient))
        if index is not None:
            a, g = a.index_select(0, index), g.index_select(0, index)
        big_a, big_g = torch.linalg.vecdot(a, a), torch.linalg.vecdot(g, g)
        self.rows += len(a)
        self.scalars += torch.stack([part.sum(dtype=torch.float64) for part in (big_a, big_g, big_a * big_g)])
        for name, total in self.sums.items():
            if isinstance(total, ProductSum):
                total.update(g, a)
            elif name == "input":
                total.update(a)
            elif name == "output":
                total.update(g)
            elif name == "input_fisher":
                total.update(a, big_g)
            else:
                total.update(g, big_a)
        if recorder is not None:
            recorder.update(self.component, *(_by_sample(t, index, selection) for t in (x, gradient)))

    def tensors(self) -> Iterator[Tensor]:
        """The tensors whose sum over processes is the state of all of them together."""
        yield from (self.scalars, self.rows, self.foreign, self.partial, self.pooled)
        for total in self.sums.values():
            yield from total.tensors()

    def end_batch(self) -> None:
        """Note a batch in which the layer ran, and on none of its tokens or samples."""
        self.partial += self._strange and not self._counted
        self._strange = self._counted = False

    @property
    def routed(self) -> bool:
        """Whether a part of the tokens, of varying size, is sent to the layer: all, or one a sample, is chance then."""
        return bool(self.rows) and (bool(self.partial) or (bool(self.foreign) and bool(self.pooled)))

    def statistics(self, shared: LayerSums) -> LayerStatistics:
        """The statistics; the input factor is that of the layer that leads."""
        if not all(math.isfinite(float(x)) for x in self.scalars):
            raise ModelError(
                f"inputs or gradients of layer '{self.component.name}' hold NaN or infinity: check the model's weights and "
                "the data, or load the model in float32 or bfloat16"
            )
        n = int(self.rows)
        a, g, both = (float(x) / n for x in self.scalars)
        sums: dict[str, Any] = dict(self.sums)
        if "input" in shared.sums:
            sums["input"] = shared.sums["input"]
        return LayerStatistics(self.component, n, a, g, both, **sums)

    def release(self, *, keep_input: bool) -> None:
        """Let the sums go; the input factor stays while other layers wait for it."""
        self.sums = {name: total for name, total in self.sums.items() if keep_input and name == "input"}


def _by_sample(x: Tensor, index: Tensor | None, selection: Selection) -> Tensor:
    """(samples, tokens, features) in float32, tokens that do not count as zeros."""
    rows = x.reshape(-1, x.shape[-1]).float()
    if index is not None:
        mask = torch.zeros(len(rows), 1, device=rows.device).index_fill_(0, index, 1.0)
        rows = rows * mask
    return rows.reshape(selection.samples, -1, x.shape[-1])
