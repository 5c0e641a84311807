"""Sums over tokens that add up over batches, shards and processes, whole or as a sketch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from lorascope.core.seeds import derive_seed
from lorascope.initialization.spectrum import Spectrum, spectrum_of_matrix, spectrum_of_sketch


class Probes:
    """Random orthonormal test matrices, one for each width and use; the same in every process.

    Args:
        columns: Width of a sketch.
        seed: Decides the matrices.
        device: Where they live.
    """

    def __init__(self, columns: int, seed: int, device: torch.device) -> None:
        self.columns, self._seed, self._device = columns, seed, device
        self._made: dict[tuple[int, str], Tensor] = {}

    def __call__(self, size: int, use: str = "symmetric", *, factor: int = 1) -> Float[Tensor, "size columns"]:
        """The test matrix of a width: orthonormal columns, at most as many as rows."""
        if (size, use) not in self._made:
            generator = torch.Generator().manual_seed(derive_seed(self._seed, "probe", size, use))
            gaussian = torch.randn(size, min(size, factor * self.columns), generator=generator)
            self._made[size, use] = torch.linalg.qr(gaussian).Q.to(self._device)
        return self._made[size, use]


class SymmetricSum:
    """S = sum_t w_t x_t x_t^T, or its sketch S @ Omega with Omega (d, k) orthonormal.

    Args:
        size: d, features of x.
        device: Where the sum lives.
        probes: Test matrices of the sketch; None keeps S itself.

    References:
        Single-view Nystrom sketch of a positive semi-definite matrix: Tropp et al., arXiv 1706.05736.
    """

    def __init__(self, size: int, device: torch.device, probes: Probes | None = None) -> None:
        self.size = size
        self.probe = None if probes is None else probes(size)
        columns = size if self.probe is None else self.probe.shape[1]
        self.sum = torch.zeros(size, columns, device=device)
        self.trace = torch.zeros((), dtype=torch.float64, device=device)

    @property
    def sketched(self) -> bool:
        """Whether only the sketch is kept."""
        return self.probe is not None

    def update(self, x: Float[Tensor, "n d"], weight: Float[Tensor, " n"] | None = None) -> None:
        """Add tokens.

        Args:
            x: One token a row, float32.
            weight: Of each token, not negative; None counts each once.
        """
        if weight is not None:
            x = x * weight.sqrt().unsqueeze(1)
        self.trace += torch.linalg.vecdot(x, x).sum(dtype=torch.float64)
        self.sum.addmm_(x.T, x if self.probe is None else x @ self.probe)

    def tensors(self) -> Iterator[Tensor]:
        """The tensors whose sums over shards or processes are the state of all of them together."""
        yield self.sum
        yield self.trace

    def spectrum(self, tokens: int, count: int, *, leading: bool = False) -> Spectrum:
        """Leading eigenvalues and vectors of S / tokens.

        Args:
            tokens: Number of tokens the sum is divided by.
            count: How many are wanted at least, of at most d.
            leading: No more than those matter, see `spectrum_of_matrix`.
        """
        trace = float(self.trace) / tokens
        if self.probe is None:
            return spectrum_of_matrix(self.sum / tokens, count, trace=trace, leading=leading)
        return spectrum_of_sketch(self.sum / tokens, self.probe, trace=trace)


class ProductSum:
    """M = sum_t g_t a_t^T, or its two-sided sketch (M Omega, M^T Psi).

    Args:
        rows: Features of g.
        columns: Features of a.
        device: Where the sum lives.
        probes: Test matrices of the sketch; None keeps M itself.

    References:
        Two-sided sketch: Tropp et al., arXiv 1609.00048.
    """

    def __init__(self, rows: int, columns: int, device: torch.device, probes: Probes | None = None) -> None:
        self.rows, self.columns = rows, columns
        self.right = None if probes is None else probes(columns, "right", factor=2)
        self.left = None if probes is None else probes(rows, "left")
        self.sums = (
            [torch.zeros(rows, columns, device=device)]
            if self.right is None or self.left is None
            else [
                torch.zeros(rows, self.right.shape[1], device=device),
                torch.zeros(columns, self.left.shape[1], device=device),
            ]
        )

    @property
    def sketched(self) -> bool:
        """Whether only the sketch is kept."""
        return self.right is not None

    def update(self, g: Float[Tensor, "n rows"], a: Float[Tensor, "n columns"]) -> None:
        """Add tokens, one a row."""
        if self.right is None or self.left is None:
            self.sums[0].addmm_(g.T, a)
        else:
            self.sums[0].addmm_(g.T, a @ self.right)
            self.sums[1].addmm_(a.T, g @ self.left)

    def tensors(self) -> Iterator[Tensor]:
        """The tensors whose sums over shards or processes are the state of all of them together."""
        yield from self.sums

    def matrix(self, tokens: int) -> Float[Tensor, "rows columns"]:
        """M / tokens, of a sum that is kept whole."""
        return self.sums[0] / tokens

    def factors(self, tokens: int) -> tuple[Float[Tensor, "rows k"], Float[Tensor, "columns k"]]:
        """Factors (L, R) of the sketch with M / tokens ~ L R^T and R orthonormal.

        With R = orth(M^T Psi) a basis of M's rows, M ~ (M R) R^T, and M R is read off M Omega ~ (M R)(R^T Omega).
        """
        assert self.right is not None
        basis = torch.linalg.qr(self.sums[1].double()).Q
        solution = torch.linalg.lstsq((basis.T @ self.right.double()).T, self.sums[0].double().T / tokens).solution
        return solution.T.float(), basis.float()
