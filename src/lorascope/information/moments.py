"""Second moments of frozen and adapted features: covariances, linear CKA and Gaussian mutual information."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lorascope.core.errors import InputError
from lorascope.core.seeds import derive_seed
from lorascope.information.accumulators import Accumulator, Device
from lorascope.information.gaussian import (
    gaussian_information_upper,
    gaussian_mutual_information,
    shrink_joint_covariance,
)
from lorascope.information.similarity import linear_cka_from_moments


@dataclass(frozen=True)
class Moments:
    """Covariances of frozen features O and adapted features L over n tokens.

    Attributes:
        n: Number of tokens.
        cov_oo: Covariance of O, divided by n, d x d float64.
        cov_ll: Covariance of L.
        cov_ol: Cross-covariance, rows of O, columns of L.
    """

    n: int
    cov_oo: Tensor
    cov_ll: Tensor
    cov_ol: Tensor


class MomentAccumulator(Accumulator):
    r"""Sums and second moments of (o, l) in float64, around the mean of the first rows.

    Around zero, features of mean m and deviation s would lose (m / s)^2 of the 16 digits. Accumulators of several
    processes start from different rows: call `agree` before their `tensors` are summed; `merge` does it by itself.

    With ``project``, features are first multiplied by a seeded random d x k matrix with orthonormal columns, the same
    for both sides: the memory is then 3 k^2 numbers and not 3 d^2. Seen through the same noise, the projected
    features carry at most the information of the full ones (data processing); CKA is then that of the projection.

    Args:
        dim: Number of features of each side.
        project: Number of dimensions k to keep; None, or a number of at least ``dim``, for all of them.
        seed: Seed of the projection.
        device: Where the sums live.

    Raises:
        InputError: A size is below 1.
    """

    _sums = ("n", "sum_o", "sum_l", "moment_oo", "moment_ll", "moment_ol")
    _fixed = ("shift_o", "shift_l")

    def __init__(self, dim: int, project: int | None = None, seed: int = 0, device: Device = None) -> None:
        for name, value in (("dim", dim), ("project", 1 if project is None else project)):
            if value < 1:
                raise InputError(f"{name} is {value}: it must be at least 1")
        self.dim, self.seed = dim, seed
        self.size = dim if project is None else min(dim, project)
        self._projection: Tensor | None = None
        if self.size < dim:
            generator = torch.Generator().manual_seed(derive_seed(seed, "projection", dim, self.size))
            gaussian = torch.randn(dim, self.size, generator=generator, dtype=torch.float64)
            self._projection = torch.linalg.qr(gaussian).Q.to(device if device is not None else "cpu")
        self.n = torch.zeros((), dtype=torch.int64, device=device)
        self.sum_o, self.sum_l, self.shift_o, self.shift_l = (
            torch.zeros(self.size, dtype=torch.float64, device=device) for _ in range(4)
        )
        self._shifted = False
        self.moment_oo, self.moment_ll, self.moment_ol = (
            torch.zeros(self.size, self.size, dtype=torch.float64, device=device) for _ in range(3)
        )

    @property
    def projected(self) -> bool:
        """Whether the features are projected to fewer dimensions."""
        return self._projection is not None

    def _settings(self) -> list[int]:
        return [self.dim, self.size, self.seed if self.projected else 0]

    def update(self, o: Float[Tensor, "n d"], l: Float[Tensor, "n d"]) -> None:  # noqa: E741 - the paper's letter
        """Add tokens.

        Args:
            o: Frozen features, one row a token (padding left out).
            l: Adapted features.

        Raises:
            InputError: The width is not that of the accumulator.
        """
        if o.shape[1] != self.dim or l.shape != o.shape:
            raise InputError(f"rows of shape {tuple(o.shape)} and {tuple(l.shape)}: expected {self.dim} features each")
        if not len(o):
            return
        a, b = (x.detach().to(self.sum_o.device, torch.float64) for x in (o, l))
        if self._projection is not None:
            a, b = a @ self._projection, b @ self._projection
        if not self._shifted:
            self.shift_o, self.shift_l, self._shifted = a.mean(0), b.mean(0), True
        a, b = a - self.shift_o, b - self.shift_l
        self.n += a.shape[0]
        self.sum_o += a.sum(0)
        self.sum_l += b.sum(0)
        self.moment_oo.addmm_(a.T, a)
        self.moment_ll.addmm_(b.T, b)
        self.moment_ol.addmm_(a.T, b)

    def merge(self, other: Accumulator) -> None:
        """Add the samples that another accumulator has seen.

        Raises:
            InputError: The other one has another type, size or seed.
        """
        if isinstance(other, MomentAccumulator) and other._settings() == self._settings():
            if not self._shifted:
                self._take_shift(other.shift_o, other.shift_l)
            other = other._around(self.shift_o, self.shift_l)
        super().merge(other)

    def agree(self, add: Callable[[Tensor], object]) -> None:
        """Move to the mean of what all processes have seen, so that their `tensors` may be summed.

        Args:
            add: Sums a tensor over processes in place, such as ``torch.distributed.all_reduce``. Every process must
                call it, also one that has seen no rows.
        """
        totals = torch.cat(
            [self.n.double().reshape(1), self.n * self.shift_o + self.sum_o, self.n * self.shift_l + self.sum_l]
        )
        add(totals)
        mean = totals[1:] / totals[0].clamp(min=1.0)
        moved = self._around(mean[: self.size], mean[self.size :])
        self._take_shift(moved.shift_o, moved.shift_l)
        for mine, theirs in zip(self.tensors(), moved.tensors(), strict=True):
            mine.copy_(theirs)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over a state written by `state_dict` of an accumulator built with the same arguments.

        Raises:
            InputError: The state has other entries, sizes or settings.
        """
        super().load_state_dict(state)
        self._shifted = int(self.n) > 0

    def _take_shift(self, shift_o: Tensor, shift_l: Tensor) -> None:
        self.shift_o, self.shift_l = (x.to(self.n.device, copy=True) for x in (shift_o, shift_l))
        self._shifted = True

    def _around(self, shift_o: Tensor, shift_l: Tensor) -> MomentAccumulator:
        """The same rows around another point: sum (x + d)(y + e)^T = M + d s_y^T + s_x e^T + n d e^T."""
        moved = copy.copy(self)
        moved.shift_o, moved.shift_l = (x.to(self.n.device) for x in (shift_o, shift_l))
        d, e = self.shift_o - moved.shift_o, self.shift_l - moved.shift_l
        moved.sum_o, moved.sum_l = self.sum_o + self.n * d, self.sum_l + self.n * e
        moved.moment_oo = self.moment_oo + torch.outer(d, self.sum_o) + torch.outer(moved.sum_o, d)
        moved.moment_ll = self.moment_ll + torch.outer(e, self.sum_l) + torch.outer(moved.sum_l, e)
        moved.moment_ol = self.moment_ol + torch.outer(d, self.sum_l) + torch.outer(moved.sum_o, e)
        return moved

    def compute(self) -> Moments:
        """The covariances.

        Raises:
            InputError: No token was added, or a feature was NaN or infinite.
        """
        n = int(self.n)
        if n == 0:
            raise InputError("moments of no tokens: the data has no token that counts; check the data and the mask")
        mean_o, mean_l = self.sum_o / n, self.sum_l / n
        moments = Moments(
            n,
            self.moment_oo / n - torch.outer(mean_o, mean_o),
            self.moment_ll / n - torch.outer(mean_l, mean_l),
            self.moment_ol / n - torch.outer(mean_o, mean_l),
        )
        if not all(bool(torch.isfinite(c).all()) for c in (moments.cov_oo, moments.cov_ll, moments.cov_ol)):
            raise InputError("features hold NaN or infinity: check the model's outputs (try float32)")
        return moments

    def cka(self) -> float:
        """Linear CKA of the two sides, in [0, 1]; see `linear_cka_from_moments`."""
        moments = self.compute()
        return linear_cka_from_moments(moments.cov_oo, moments.cov_ll, moments.cov_ol)

    def gaussian(self, noise: float = 1.0) -> tuple[float, float]:
        r"""I(O; L + N) of the Gaussian with these covariances, and the max-entropy bound that holds for any law.

        The noise N has variance ``noise`` times the mean variance of a frozen feature in each direction, so that the
        result does not depend on the scale of the features. Covariances are shrunk (`shrink_joint_covariance`).

        Args:
            noise: Noise-to-signal ratio of one feature, dimensionless, > 0.

        Returns:
            Information and upper bound, nats.

        Raises:
            InputError: No token was added, ``noise`` is not positive, or the frozen features do not vary.
        """
        moments = self.compute()
        noise_var = noise * float(moments.cov_oo.diagonal().mean())
        if not noise_var > 0:
            raise InputError(f"noise variance {noise_var:g}: noise must be > 0 and the frozen features must vary")
        oo, ll, ol, _ = shrink_joint_covariance(moments.cov_oo, moments.cov_ll, moments.cov_ol, moments.n)
        upper = gaussian_information_upper(float(moments.cov_ll.diagonal().sum()), self.size, noise_var)
        return min(gaussian_mutual_information(oo, ll, ol, noise_var), upper), upper
