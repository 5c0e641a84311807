"""What is kept of each adapted layer while the data passes through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lorascope.adapters import Component, low_rank_factors
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
from lorascope.measuring.selection import Selection


@dataclass(frozen=True)
class Options:
    """How layers are measured; see `lorascope.measure.measure` for the meaning of each.

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


@dataclass
class LayerState:
    """The accumulators of one component; its size does not depend on the number of samples."""

    component: Component
    options: Options
    device: torch.device
    joint: JointAccumulator | None = None
    moments: MomentAccumulator | None = None
    shift: MeanAccumulator = field(default_factory=MeanAccumulator)
    ratio: RatioAccumulator = field(default_factory=RatioAccumulator)
    entropy: MeanAccumulator = field(default_factory=MeanAccumulator)
    entropy_frozen: MeanAccumulator = field(default_factory=MeanAccumulator)
    rows: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))

    def update(self, o: Tensor, l: Tensor, selection: Selection) -> None:  # noqa: E741
        """Take in the frozen and adapted rows (n, d) of one batch."""
        n, d = o.shape
        if n == 0:
            return
        self.rows += n
        groups = self.options.groups
        wide = torch.float64 if o.dtype == torch.float64 else torch.float32
        if "mi_joint" in groups:
            p, q = torch.softmax(o, -1, dtype=wide), torch.softmax(l, -1, dtype=wide)
            if self.joint is None:
                self.joint = self._new_joint(d)
            self.joint.update(p, q)
            if "miub_js" in groups:
                self._add_shift(probability_jensen_shannon(p, q), selection)
        elif "miub_js" in groups:
            self._add_shift(softmax_jensen_shannon(o, l), selection)
        if "update_ratio" in groups:
            delta = torch.sub(l, o).to(wide)
            base = o.to(wide)
            bias = getattr(self.component.base, "bias", None)
            if bias is not None and isinstance(bias, Tensor) and bias.shape == (d,):
                base = base - bias.detach().to(wide)
            self.ratio.update(torch.linalg.vecdot(delta, delta), torch.linalg.vecdot(base, base))
        if "cka" in groups or "mi_gaussian" in groups:
            if self.moments is None:
                self.moments = self._new_moments(d)
            self.moments.update(o, l)
        if "matrix_entropy" in groups:
            sizes = selection.row_sizes(n)
            for part_o, part_l in zip(o.split(sizes), l.split(sizes), strict=True):
                if part_o.shape[0] > 1:
                    self.entropy_frozen.update(matrix_entropy(part_o).reshape(1))
                    self.entropy.update(matrix_entropy(part_l).reshape(1))

    def _add_shift(self, js: Tensor, selection: Selection) -> None:
        weights = selection.weights(js.shape[0]).to(js.device) if self.options.reduction == "sample_mean" else None
        self.shift.update(js, weights)

    def _seed(self, use: str) -> int:
        return derive_seed(self.options.seed, use, self.component.name)

    def _new_joint(self, d: int) -> JointAccumulator:
        groups = self.options.joint_dim if d > self.options.joint_dim else None
        return JointAccumulator(d, d, groups=groups, seed=self._seed("joint"), device=self.device)

    def _new_moments(self, d: int) -> MomentAccumulator:
        k = self.options.moment_dim if d > self.options.moment_dim else None
        return MomentAccumulator(d, projection=k, seed=self._seed("moments"), device=self.device)

    def ensure(self, d_out: int) -> None:
        """Make the accumulators that a process without data would lack, so that all processes hold the same."""
        if "mi_joint" in self.options.groups and self.joint is None:
            self.joint = self._new_joint(d_out)
        if ("cka" in self.options.groups or "mi_gaussian" in self.options.groups) and self.moments is None:
            self.moments = self._new_moments(d_out)

    def tensors(self) -> Iterator[Tensor]:
        """The tensors whose sum over processes is the state of all of them together."""
        yield self.rows
        accumulators = (self.shift, self.ratio, self.entropy, self.entropy_frozen, self.joint, self.moments)
        for accumulator in accumulators:
            if accumulator is not None:
                yield from accumulator.tensors()

    def record(self, samples: int) -> dict[str, Any]:
        """The finished record of this component; frees what it was made from."""
        c, groups = self.component, self.options.groups
        record: dict[str, Any] = {
            "name": c.name,
            "layer": c.layer,
            "projection": c.projection,
            "rank": c.rank,
            "d_in": c.d_in,
            "d_out": c.d_out,
            "adapter": c.adapter,
        }
        seen = float(self.rows) > 0
        if "miub_js" in groups and seen:
            scale = float(self.rows) / samples if self.options.reduction == "sum" else 1.0
            record["miub_js"] = self.shift.compute() * scale
        if self.joint is not None and seen:
            bounds = self.joint.compute()
            record |= {
                "mi_joint": bounds.mi,
                "joint_js": bounds.js,
                "mi_joint_lower": bounds.lower,
                "mi_joint_upper": bounds.upper,
                "miub_joint": bounds.paper,
                "joint_max_ratio": bounds.max_ratio,
                "joint_groups": self.joint.groups,
            }
            self.joint = None
        if "update_ratio" in groups and seen:
            record["update_ratio"] = self.ratio.compute()
        if self.moments is not None and float(self.rows) > 1:
            if "cka" in groups:
                record["cka"] = self.moments.cka()
            if "mi_gaussian" in groups:
                record |= self.moments.gaussian(self.options.noise)
            record["moment_projection"] = self.moments.projection
            self.moments = None
        if "matrix_entropy" in groups and float(self.entropy.weight) > 0:
            record["matrix_entropy"] = self.entropy.compute()
            record["matrix_entropy_frozen"] = self.entropy_frozen.compute()
        if "spectrum" in groups:
            record |= spectrum(c)
        return record


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
    return {"effective_rank": float(effective_rank(values)), "stable_rank": float(stable_rank(values))}
