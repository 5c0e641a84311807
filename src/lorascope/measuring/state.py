"""What is kept of each adapted layer while the data passes through."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorascope.adapters import Component, low_rank_factors
from lorascope.core.errors import InputError, ModelError
from lorascope.core.seeds import derive_seed
from lorascope.information import (
    JointAccumulator,
    MeanAccumulator,
    MomentAccumulator,
    RatioAccumulator,
    effective_rank,
    low_rank_singular_values,
    matrix_entropy,
    probability_jensen_shannon,
    softmax_jensen_shannon,
    stable_rank,
)
from lorascope.measuring.selection import ForeignRowsError, Selection

_LEAST = 2.0**-60
"""Least probability of a feature in a float32 joint: products of smaller ones are denormal, which slows a processor down
by half, and all of them together weigh 1e-15, a millionth of what float32 can tell."""


@dataclass(frozen=True)
class Options:
    """How layers are measured; see `lorascope.measure` for the meaning of each.

    Attributes:
        groups: Metric groups to compute.
        reduction: ``mean``, ``sum`` or ``sample_mean``.
        joint_dim: Largest side of the joint distribution of features.
        moment_dim: Largest side of the covariance blocks.
        noise: Noise variance of the Gaussian channel, as a share of the frozen features' mean variance.
        seed: Seed of the random partitions and projections.
    """

    groups: tuple[str, ...]
    reduction: str
    joint_dim: int
    moment_dim: int
    noise: float
    seed: int


class LayerState:
    """The accumulators of one component; their size does not depend on the number of samples.

    Args:
        component: The adapted layer.
        options: What to keep.
        device: Where the sums live.
    """

    def __init__(self, component: Component, options: Options, device: torch.device) -> None:
        self.component, self.options, self.device = component, options, device
        self.joint: JointAccumulator | None = None
        self.moments: MomentAccumulator | None = None
        self.shift, self.entropy, self.entropy_frozen = (MeanAccumulator(device) for _ in range(3))
        self.ratio = RatioAccumulator(device)
        self.rows, self.foreign = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(2))

    def update(self, frozen: Tensor, adapted: Tensor, selection: Selection) -> None:
        """Take in one batch.

        Args:
            frozen: Frozen output of the layer, (..., d).
            adapted: Adapted output of the same shape.
            selection: The rows that count.
        """
        o, l = (x.reshape(-1, x.shape[-1]) for x in (frozen, adapted))  # noqa: E741
        try:
            index = selection.index_for(tuple(frozen.shape[:-1]))
        except ForeignRowsError:
            self.foreign += len(o)
            return
        # Copying the rows that count costs as much as half a measure of a row: leave padding in while it is cheaper.
        if index is not None and (self._needs_rows or 2 * len(index) < len(o)):
            o, l, index = o.index_select(0, index), l.index_select(0, index), None  # noqa: E741
        n, d = len(o) if index is None else len(index), o.shape[1]
        if n == 0:
            return
        self.rows += n
        groups = self.options.groups
        wide = torch.float64 if o.dtype == torch.float64 else torch.float32
        if "mi_joint" in groups:
            p, q = torch.softmax(o, -1, dtype=wide), torch.softmax(l, -1, dtype=wide)
            if self.joint is None:
                self.joint = self._new_joint(d)
            if "miub_js" in groups:
                self._add_shift(probability_jensen_shannon(p, q), selection)
            if self.joint.matrix.dtype == torch.float32:
                p, q = p.clamp_(min=_LEAST), q.clamp_(min=_LEAST)
            self.joint.update(p, q)
        elif "miub_js" in groups:
            js = softmax_jensen_shannon(o, l)
            self._add_shift(js if index is None else js[index], selection)
        if "update_ratio" in groups:
            self._add_ratio(o.to(wide), l.to(wide), index)
        if "cka" in groups or "mi_gaussian" in groups:
            if self.moments is None:
                self.moments = self._new_moments(d)
            self.moments.update(o, l)
        if "matrix_entropy" in groups:
            sizes = selection.row_sizes(n)
            for part_o, part_l in zip(torch.split(o, sizes), torch.split(l, sizes), strict=True):
                if part_o.shape[0] > 1:
                    self.entropy_frozen.update(matrix_entropy(part_o).reshape(1))
                    self.entropy.update(matrix_entropy(part_l).reshape(1))

    @property
    def _needs_rows(self) -> bool:
        return any(group in self.options.groups for group in ("mi_joint", "cka", "mi_gaussian", "matrix_entropy"))

    def _add_ratio(self, o: Tensor, l: Tensor, index: Tensor | None) -> None:  # noqa: E741
        delta = torch.sub(l, o)
        bias = getattr(self.component.base, "bias", None)
        if isinstance(bias, Tensor) and bias.shape == o.shape[1:]:
            o = o - bias.detach().to(o.dtype)
        squares = [torch.linalg.vecdot(x, x) for x in (delta, o)]
        self.ratio.update(*(x if index is None else x[index] for x in squares))

    def _add_shift(self, js: Tensor, selection: Selection) -> None:
        weights = selection.weights(js.shape[0]).to(js.device) if self.options.reduction == "sample_mean" else None
        self.shift.update(js, weights)

    def _seed(self, use: str) -> int:
        return derive_seed(self.options.seed, use, self.component.name)

    def _new_joint(self, d: int) -> JointAccumulator:
        groups = self.options.joint_dim if d > self.options.joint_dim else None
        # Small joints cost nothing in float64; float32 would show the order of summation near independence.
        dtype = torch.float64 if min(d, self.options.joint_dim) <= 256 else torch.float32
        return JointAccumulator(d, d, groups=groups, seed=self._seed("joint"), device=self.device, dtype=dtype)

    def _new_moments(self, d: int) -> MomentAccumulator:
        return MomentAccumulator(d, project=self.options.moment_dim, seed=self._seed("moments"), device=self.device)

    def ensure(self, d_out: int) -> None:
        """Make the accumulators that a process without data would lack, so that all processes hold the same."""
        if "mi_joint" in self.options.groups and self.joint is None:
            self.joint = self._new_joint(d_out)
        if ("cka" in self.options.groups or "mi_gaussian" in self.options.groups) and self.moments is None:
            self.moments = self._new_moments(d_out)

    def tensors(self) -> Iterator[Tensor]:
        """The tensors whose sum over processes is the state of all of them together."""
        yield self.rows
        yield self.foreign
        accumulators = (self.shift, self.ratio, self.entropy, self.entropy_frozen, self.joint, self.moments)
        for accumulator in accumulators:
            if accumulator is not None:
                yield from accumulator.tensors()

    def record(self, samples: int, notes: list[str]) -> dict[str, Any]:
        """The finished record of this component; frees what it was made from.

        Args:
            samples: Number of samples over all batches.
            notes: Gets one sentence for each metric that this data does not define.

        Returns:
            Name, shape and metrics; a metric that is not defined is left out.

        Raises:
            ModelError: The layer's outputs held NaN or infinity.
        """
        c, options = self.component, self.options
        record: dict[str, Any] = {
            "name": c.name,
            "layer": c.layer,
            "projection": c.projection,
            "rank": c.rank,
            "d_in": c.d_in,
            "d_out": c.d_out,
            "adapter": c.adapter,
        }
        if int(self.rows) > 0:
            if not all(math.isfinite(float(tensor.sum())) for tensor in self.tensors()):
                raise ModelError(
                    f"outputs hold NaN from layer '{c.name}' on (or infinity): check the adapter's weights, or load "
                    "the model in float32 or bfloat16"
                )
            for make in (self._shift, self._joint, self._ratio, self._moments, self._matrix_entropy):
                try:
                    record |= make(samples)
                except InputError as error:
                    notes.append(f"layer '{c.name}': {error}")
        if "spectrum" in options.groups:
            record |= spectrum(c)
        for name in [key for key, value in record.items() if isinstance(value, float) and not math.isfinite(value)]:
            notes.append(f"layer '{c.name}': {name} is {record.pop(name)} and was left out")
        return record

    def _shift(self, samples: int) -> dict[str, Any]:
        if "miub_js" not in self.options.groups:
            return {}
        return {"miub_js": self.shift.sum() / samples if self.options.reduction == "sum" else self.shift.compute()}

    def _joint(self, _samples: int) -> dict[str, Any]:
        if self.joint is None:
            return {}
        bounds, groups = self.joint.compute(), self.joint.groups if self.joint.lumped else None
        self.joint = None
        return {
            "mi_joint": bounds.mi,
            "joint_js": bounds.js,
            "mi_joint_lower": bounds.lower,
            "mi_joint_upper": bounds.upper,
            "miub_joint": bounds.paper,
            "joint_max_ratio": bounds.max_ratio,
            "joint_groups": groups,
        }

    def _ratio(self, _samples: int) -> dict[str, Any]:
        return {"update_ratio": self.ratio.compute()} if "update_ratio" in self.options.groups else {}

    def _moments(self, _samples: int) -> dict[str, Any]:
        if self.moments is None:
            return {}
        moments, self.moments = self.moments, None
        record: dict[str, Any] = {"moment_projection": moments.size if moments.projected else None}
        if "cka" in self.options.groups:
            record["cka"] = moments.cka()
        if "mi_gaussian" in self.options.groups:
            record["mi_gaussian"], record["mi_gaussian_upper"] = moments.gaussian(self.options.noise)
        return record

    def _matrix_entropy(self, _samples: int) -> dict[str, Any]:
        if "matrix_entropy" not in self.options.groups:
            return {}
        if not float(self.entropy.weight):
            raise InputError("matrix_entropy is not defined where samples have one row each")
        return {"matrix_entropy": self.entropy.compute(), "matrix_entropy_frozen": self.entropy_frozen.compute()}


def spectrum(component: Component) -> dict[str, float]:
    """Effective and stable rank of the product of a component's factors; empty where it has none.

    With several active adapters the factors are stacked, which is the same as adding their products.
    """
    factors = low_rank_factors(component)
    if not factors:
        return {}
    a = torch.cat([f[0].double() for f in factors], dim=0)
    b = torch.cat([f[1].double() * f[2] for f in factors], dim=1)
    values = low_rank_singular_values(a, b, 1.0)
    if float(values.max()) <= 1e-7 * float(a.norm() * b.norm()):
        values = torch.zeros_like(values)  # rounding of a product that is zero, as after orthogonal initialisation
    return {"effective_rank": float(effective_rank(values)), "stable_rank": float(stable_rank(values))}
