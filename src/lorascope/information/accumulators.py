"""Accumulators: running sums that can be merged over shards, all-reduced over processes and checkpointed."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lorascope.core.errors import InputError
from lorascope.core.seeds import derive_seed
from lorascope.information._inputs import require_same_shape
from lorascope.information.joint import MutualInformationBounds, quick_mutual_information_bounds

Device = torch.device | str | None


class Accumulator:
    """State that is a handful of sums, so that merging is addition.

    Sub-classes name their tensors in ``_sums``, and in ``_fixed`` those that say what the sums are taken around; two
    accumulators fit together when their ``_settings`` are equal.
    """

    _sums: tuple[str, ...] = ()
    _fixed: tuple[str, ...] = ()

    def _settings(self) -> list[int]:
        """Everything but the sums that decides what the sums mean."""
        return []

    def tensors(self) -> list[Tensor]:
        """The tensors whose sum over processes is the merge: all-reduce these in place."""
        return [getattr(self, name) for name in self._sums]

    def merge(self, other: Accumulator) -> None:
        """Add the samples that another accumulator has seen.

        Raises:
            InputError: The other one has another type, size or seed.
        """
        if type(other) is not type(self) or other._settings() != self._settings():
            raise InputError(
                f"cannot merge {type(other).__name__}{tuple(other._settings())} into "
                f"{type(self).__name__}{tuple(self._settings())}: build both with the same arguments"
            )
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            mine += theirs.to(mine.device)

    def state_dict(self) -> dict[str, Tensor]:
        """The state for a checkpoint (not copied)."""
        state = {name: getattr(self, name) for name in (*self._sums, *self._fixed)}
        return state | {"settings": torch.tensor(self._settings(), dtype=torch.int64)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over a state written by `state_dict` of an accumulator built with the same arguments.

        Raises:
            InputError: The state has other entries, sizes or settings.
        """
        if set(state) != {*self._sums, *self._fixed, "settings"} or state["settings"].tolist() != self._settings():
            found = state["settings"].tolist() if "settings" in state else sorted(state)
            raise InputError(
                f"state of {type(self).__name__} does not fit: it has {found}, this one has {self._settings()}; "
                "build it with the same arguments"
            )
        for name in (*self._sums, *self._fixed):
            getattr(self, name).copy_(state[name])


class MeanAccumulator(Accumulator):
    """Weighted mean of scalars, sum_i w_i x_i / sum_i w_i, summed in float64.

    Args:
        device: Where the two sums live; the device of the values avoids waiting for an accelerator.

    Example:
        >>> mean = MeanAccumulator()
        >>> mean.update(torch.tensor([1.0, 3.0]))
        >>> mean.compute()
        2.0
    """

    _sums = ("total", "weight")

    def __init__(self, device: Device = None) -> None:
        self.total = torch.zeros((), dtype=torch.float64, device=device)
        self.weight = torch.zeros((), dtype=torch.float64, device=device)

    def update(self, values: Float[Tensor, " n"], weights: Tensor | None = None) -> None:
        """Add values, in the unit of the mean.

        Args:
            values: The values; those of weight 0 are ignored, even NaN.
            weights: Weights >= 0 (booleans and integers too), one a value; 1 each when not given.

        Raises:
            InputError: There are not as many weights as values.
        """
        if weights is not None:
            require_same_shape(values, weights, ("values", "weights"))
        x = values.detach().to(self.total.device, torch.float64)
        if weights is None:
            self.total += x.sum()
            self.weight += x.numel()
        else:
            w = weights.detach().to(self.total.device, torch.float64)
            self.total += torch.where(w == 0, 0.0, w * x).sum()
            self.weight += w.sum()

    def sum(self) -> float:
        """The weighted sum, 0.0 when nothing was added.

        Raises:
            InputError: A value was NaN or infinite.
        """
        return _finite(float(self.total), "a sum")

    def compute(self) -> float:
        """The weighted mean.

        Raises:
            InputError: Nothing with a positive weight was added, or a value was NaN or infinite.
        """
        weight = float(self.weight)
        if not weight > 0:
            raise InputError("mean of no values: the data has no token that counts; check the data and the token mask")
        return _finite(float(self.total) / weight, "a mean")


class RatioAccumulator(Accumulator):
    """Root of a ratio of sums, sqrt(sum |delta|^2 / sum |base|^2), such as the size of an update over its base.

    Example:
        >>> ratio = RatioAccumulator()
        >>> ratio.update(torch.tensor([1.0]), torch.tensor([4.0]))
        >>> ratio.compute()
        0.5
    """

    _sums = ("delta", "base")

    def __init__(self, device: Device = None) -> None:
        self.delta = torch.zeros((), dtype=torch.float64, device=device)
        self.base = torch.zeros((), dtype=torch.float64, device=device)

    def update(self, delta_sq: Tensor, base_sq: Tensor) -> None:
        """Add squared norms (any shape; they are summed)."""
        self.delta += delta_sq.detach().to(self.delta.device).sum(dtype=torch.float64)
        self.base += base_sq.detach().to(self.base.device).sum(dtype=torch.float64)

    def compute(self) -> float:
        """The ratio, dimensionless; 0 when there was no update of a base that is not zero.

        Raises:
            InputError: The base is zero: without an update 0 / 0, which is no number (a layer that is silent with and
                without its adapter has no size of update), with one infinite. Or a norm was NaN or infinite.
        """
        delta, base = _finite(float(self.delta), "the update"), _finite(float(self.base), "the base")
        if not base > 0:
            also = "so is the update (0 / 0)" if delta == 0 else "the update is not (x / 0)"
            raise InputError(
                f"update_ratio is not defined: the frozen output is zero on every token that counts, and {also}"
            )
        return math.sqrt(delta / base)


class JointAccumulator(Accumulator):
    r"""Joint distribution of two feature indices, P_OL = mean_t p_t q_t^T, and its mutual information.

    Feature I is drawn from p_t and J from q_t, independently given the token t; averaging over tokens makes them
    dependent. I(I; J) <= ln(number of tokens). The matrix takes dim_o x dim_l float32 numbers.

    With ``groups``, features are first lumped by a seeded random partition into that many groups of equal size (up to
    one). Lumping is a function of the index, so that by the data-processing inequality it never raises I.

    Args:
        dim_o: Number of frozen features.
        dim_l: Number of adapted features.
        groups: Largest size of a side of the matrix; None for no lumping.
        seed: Seed of the partition; both sides share it when they have the same size.
        device: Where the matrix lives.
        dtype: Of the matrix. A float32 sum over n updates is good to about sqrt(n) 6e-8, and n 6e-8 where all
            updates are equal; float64 takes twice the memory.

    Raises:
        InputError: A size is below 1.
    """

    _sums = ("matrix", "count")

    def __init__(
        self,
        dim_o: int,
        dim_l: int,
        groups: int | None = None,
        seed: int = 0,
        device: Device = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        for name, size in (("dim_o", dim_o), ("dim_l", dim_l), ("groups", 1 if groups is None else groups)):
            if size < 1:
                raise InputError(f"{name} is {size}: it must be at least 1")
        self.dim_o, self.dim_l, self.groups, self.seed = dim_o, dim_l, groups, seed
        self._lump_o, self._lump_l = (_Lumping.maybe(dim, groups, seed, device) for dim in (dim_o, dim_l))
        shape = tuple(dim if lump is None else lump.groups for dim, lump in self._sides())
        self.matrix = torch.zeros(shape, dtype=dtype, device=device)
        self.count = torch.zeros((), dtype=torch.int64, device=device)

    def _sides(self) -> tuple[tuple[int, _Lumping | None], tuple[int, _Lumping | None]]:
        return (self.dim_o, self._lump_o), (self.dim_l, self._lump_l)

    def _settings(self) -> list[int]:
        return [self.dim_o, self.dim_l, self.groups or 0, self.seed if self.lumped else 0]

    @property
    def lumped(self) -> bool:
        """Whether a side is too wide and its features are lumped."""
        return self._lump_o is not None or self._lump_l is not None

    def update(self, p: Float[Tensor, "n dim_o"], q: Float[Tensor, "n dim_l"]) -> None:
        """Add tokens.

        Args:
            p: Probabilities of the frozen features, one row a token (rows sum to 1; padding must be left out).
            q: The same for the adapted features.

        Raises:
            InputError: The widths are not those of the accumulator.
        """
        if p.shape[1] != self.dim_o or q.shape[1] != self.dim_l:
            raise InputError(f"rows of {p.shape[1]} and {q.shape[1]} features: expected {self.dim_o} and {self.dim_l}")
        p, q = (x.detach().to(self.matrix.device, self.matrix.dtype) for x in (p, q))
        p = p if self._lump_o is None else self._lump_o(p)
        q = q if self._lump_l is None else self._lump_l(q)
        self.matrix.addmm_(p.T, q)
        self.count += p.shape[0]

    def compute(self) -> MutualInformationBounds:
        """Plug-in mutual information of the accumulated joint and its bounds, in nats.

        Raises:
            InputError: No token was added, or a row held NaN.
        """
        if int(self.count) == 0:
            raise InputError("joint of no tokens: the data has no token that counts; check the data and the token mask")
        return quick_mutual_information_bounds(self.matrix)


class _Lumping:
    """A seeded random partition of features into groups whose sizes differ by at most one."""

    def __init__(self, dim: int, groups: int, seed: int, device: Device) -> None:
        generator = torch.Generator().manual_seed(derive_seed(seed, "lumping", dim, groups))
        order = torch.randperm(dim, generator=generator)
        self.groups = groups
        size, larger = divmod(dim, groups)
        sizes = torch.full((groups,), size)
        sizes[:larger] += 1
        group = torch.empty(dim, dtype=torch.int64)
        group[order] = torch.repeat_interleave(torch.arange(groups), sizes)
        self.group = group.to(device if device is not None else "cpu")

    @classmethod
    def maybe(cls, dim: int, groups: int | None, seed: int, device: Device) -> _Lumping | None:
        return None if groups is None or dim <= groups else cls(dim, groups, seed, device)

    def __call__(self, rows: Tensor) -> Tensor:
        return rows.new_zeros(len(rows), self.groups).index_add_(1, self.group, rows)


def _finite(value: float, name: str) -> float:
    if not math.isfinite(value):
        raise InputError(f"{name} is {value}: an input held NaN or infinity; check the model's outputs (try float32)")
    return value
