"""Leading eigenvectors of positive semi-definite matrices, and their powers, without a full decomposition where wide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

FULL_EIGEN_WIDTH = 2048
"""Widest matrix that is decomposed in full; wider ones give their leading eigenvectors by subspace iteration."""

KEPT = 256
"""Eigenvectors kept at least of a matrix that is not decomposed in full, for its powers."""

DAMPING = 1e-2
"""Share of the mean eigenvalue that is added before a matrix is inverted."""


@dataclass(frozen=True)
class Spectrum:
    """The leading part of a positive semi-definite matrix S; what is left is taken as ``tail`` times the identity.

    Attributes:
        values: Eigenvalues, largest first, not negative; float32 of (k).
        vectors: Their eigenvectors in columns, orthonormal; float32 of (d, k).
        trace: Trace of S.
        tail: Mean of the d - k other eigenvalues; 0 where k = d.
    """

    values: Float[Tensor, " k"]
    vectors: Float[Tensor, "d k"]
    trace: float
    tail: float

    @property
    def size(self) -> int:
        """d, rows of S."""
        return int(self.vectors.shape[0])

    def rank(self, tolerance: float = 1e-6) -> int:
        """Number of eigenvalues above a share of the largest one."""
        return int((self.values > tolerance * self.values[:1]).sum()) if len(self.values) else 0


def spectrum_of_matrix(matrix: Float[Tensor, "d d"], count: int, *, trace: float, leading: bool = False) -> Spectrum:
    """Leading eigenvalues and vectors of a matrix that is kept whole.

    Up to `FULL_EIGEN_WIDTH` all of them; beyond, at least ``count`` and at least `KEPT`, by subspace iteration.

    Args:
        matrix: Positive semi-definite up to rounding, float32.
        count: How many are wanted.
        trace: Its trace.
        leading: The rest does not matter: of matrices that are much wider than ``count`` no more are computed.

    Returns:
        The spectrum; eigenvalues that rounding made negative are 0.

    Example:
        >>> found = spectrum_of_matrix(torch.diag(torch.tensor([1.0, 3.0])), 1, trace=4.0)
        >>> found.values.tolist(), found.vectors[:, 0].abs().tolist()
        ([3.0, 1.0], [0.0, 1.0])
    """
    size = matrix.shape[0]
    few = leading and size > max(256, 16 * count)
    if size <= FULL_EIGEN_WIDTH and not few:
        values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
        return _spectrum(values.flip(0), vectors.flip(1), trace)
    kept = min(size, count if few else max(count, KEPT))
    values, vectors = _subspace_iteration(lambda x: matrix @ x, size, kept, matrix.device)
    return _spectrum(values, vectors, trace)


def spectrum_of_sketch(
    sketch: Float[Tensor, "d k"], probe: Float[Tensor, "d k"], *, trace: float, shift: float = 1e-6
) -> Spectrum:
    r"""Nystrom approximation from Y = S Omega: S ~ Y (Omega^T Y)^-1 Y^T, computed with a small shift for stability.

    Args:
        sketch: Y, float32.
        probe: Omega with orthonormal columns.
        trace: Trace of S.
        shift: Added to S as a share of the norm of Y, and taken off the eigenvalues again.

    Returns:
        The k leading eigenvalues and vectors of the approximation.

    References:
        Tropp et al., Fixed-rank approximation of a positive-semidefinite matrix from streaming data, arXiv 1706.05736,
        Algorithm 3.
    """
    y, omega = sketch.double(), probe.double()
    norm = float(torch.linalg.matrix_norm(y))
    if norm == 0.0:
        return _spectrum(torch.zeros(y.shape[1], dtype=y.dtype, device=y.device), omega, trace)
    nu = shift * norm
    y = y + nu * omega
    core = omega.T @ y
    values, vectors = torch.linalg.eigh((core + core.T) / 2)
    values = values.clamp_min(1e-3 * nu)  # the shift makes them at least nu, up to float32 rounding of the sums
    left, singular, _ = torch.linalg.svd(y @ (vectors * values.rsqrt()), full_matrices=False)
    return _spectrum(singular.square() - nu, left, trace)


def sketch_sharpness(spectrum: Spectrum, count: int) -> float:
    r"""What share of the leading eigenvalues a Nystrom sketch shows, which is less the flatter the spectrum is.

    Of an eigenvalue that stands out, k columns show on average

    .. math:: \hat\lambda = \frac{\lambda^2}{\lambda + \mu}, \qquad \sum_i \frac{\lambda_i}{\lambda_i + \mu} = k

    so that mu is what the sketch misses of the trace, over k. The first is solved for lambda. The share is also about the
    squared cosine between an eigenvector and its estimate.

    Args:
        spectrum: Of `spectrum_of_sketch`.
        count: Leading directions.

    Returns:
        sum of the first eigenvalues over the sum that they stand for, from 0 to 1; 1 for a matrix that is zero.

    Example:
        >>> vectors = torch.eye(4)[:, :2]
        >>> sketch_sharpness(Spectrum(torch.tensor([2.0, 1.0]), vectors, trace=3.0, tail=0.0), 1)
        1.0

    References:
        Implicit regularisation of random projections: Derezinski, Liang and Mahoney, arXiv 2006.10653.
    """
    values = spectrum.values.double()
    missed = max(0.0, spectrum.trace - float(values.sum())) / max(1, len(values))
    first = values[:count]
    truth = float(((first + (first.square() + 4 * first * missed).sqrt()) / 2).sum())
    return float(first.sum()) / truth if truth > 0 else 1.0


def power(spectrum: Spectrum, exponent: float, x: Float[Tensor, "d n"]) -> Float[Tensor, "d n"]:
    """(S + delta I)^p x with delta = `DAMPING` tr(S) / d.

    Args:
        spectrum: Of S.
        exponent: p.
        x: Columns to multiply.

    Returns:
        A tensor like ``x``.
    """
    damping = DAMPING * spectrum.trace / spectrum.size
    rest: float = (spectrum.tail + damping) ** exponent
    gains = (spectrum.values + damping) ** exponent - rest
    return rest * x + spectrum.vectors @ (gains.unsqueeze(1) * (spectrum.vectors.T @ x))


def quadratic_forms(spectrum: Spectrum, x: Float[Tensor, "d n"]) -> Float[Tensor, " n"]:
    """x_i^T S x_i of every column."""
    inside: Tensor = spectrum.vectors.T @ x
    outside = x.square().sum(0) - inside.square().sum(0)
    forms: Tensor = (spectrum.values.unsqueeze(1) * inside.square()).sum(0) + spectrum.tail * outside.clamp_min(0)
    return forms


def signed(vectors: Float[Tensor, "d k"]) -> Float[Tensor, "d k"]:
    """Each column with its largest entry positive, so that one subspace has one basis on every machine."""
    if not vectors.numel():
        return vectors
    top = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return torch.where(top < 0, -vectors, vectors)


def _spectrum(values: Tensor, vectors: Tensor, trace: float) -> Spectrum:
    values = values.clamp_min(0)
    left = int(vectors.shape[0]) - len(values)
    tail = max(0.0, trace - float(values.double().sum())) / left if left else 0.0
    return Spectrum(values.float(), signed(vectors.float()), trace, tail)


def _subspace_iteration(
    apply: Callable[[Tensor], Tensor],
    size: int,
    count: int,
    device: torch.device,
    *,
    rounds: int = 60,
    tolerance: float = 1e-7,
) -> tuple[Tensor, Tensor]:
    """Leading eigenpairs of a positive semi-definite operator, largest first."""
    block = min(size, count + max(8, count // 8))
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(size, block, generator=generator).to(device)).Q
    before = torch.zeros(block, device=device)
    for _ in range(rounds):
        image = apply(basis)
        values = torch.linalg.eigvalsh(_symmetric(basis.T @ image)).flip(0)
        basis = torch.linalg.qr(image).Q
        if float((values - before).abs().sum()) <= tolerance * float(values.abs().sum()):
            break
        before = values
    values, rotation = torch.linalg.eigh(_symmetric(basis.T @ apply(basis)))
    return values.flip(0)[:count], (basis @ rotation).flip(1)[:, :count]


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2
