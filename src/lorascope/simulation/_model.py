"""The attention model at finite d: data, logits x_a^T S x_b, the adjoint map and the losses, batched over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lorascope.core.errors import InputError, unknown_name
from lorascope.core.seeds import derive_seed
from lorascope.theory._record import number, whole

ACTIVATIONS = ("linear", "softmax")
DTYPES = {"float64": torch.float64, "float32": torch.float32}
CHUNK_NUMBERS = 2**20
"""Numbers of tokens that are multiplied at a time; the products of a chunk stay in the processor's cache."""


@dataclass(frozen=True)
class Sequences:
    """Token sequences with target logits; the first axis is the seed.

    Attributes:
        x: Tokens.
        y: Target logits, label noise included.
        clean: Target logits without it.
    """

    x: Float[Tensor, "b n t d"]
    y: Float[Tensor, "b n t t"]
    clean: Float[Tensor, "b n t t"]

    def first(self, count: int) -> Sequences:
        """The first sequences of each seed."""
        return Sequences(self.x[:, :count], self.y[:, :count], self.clean[:, :count])


def generators(seeds: Sequence[int], use: str) -> list[torch.Generator]:
    """One generator a seed for one use; results do not depend on which seeds are simulated together."""
    return [torch.Generator().manual_seed(derive_seed(seed, "simulation", use)) for seed in seeds]


def normal(
    sources: list[torch.Generator], shape: Sequence[int], device: torch.device, dtype: torch.dtype
) -> Float[Tensor, "b ..."]:
    """Standard normal numbers, one slice a seed, drawn on the CPU in float64 so that every device sees the same."""
    drawn = [torch.randn(*shape, generator=source, dtype=torch.float64).to(dtype) for source in sources]
    return torch.stack(drawn).to(device)


def symmetric_noise(
    sources: list[torch.Generator],
    count: int,
    tokens: int,
    variance: float | int,
    device: torch.device,
    dtype: torch.dtype,
) -> Float[Tensor, "b n t t"]:
    r"""Symmetric matrices with variance :math:`(1+\delta_{ab})` times ``variance``."""
    g = normal(sources, (count, tokens, tokens), device, dtype)
    return (g + g.mT) * math.sqrt(variance / 2)


def target_matrix(
    sources: list[torch.Generator], dim: int, kappa0: float | int, device: torch.device, dtype: torch.dtype
) -> Float[Tensor, "b d d"]:
    r""":math:`S_0 = W^* W^{*T} / \sqrt{p_0 d}` with :math:`p_0 = \kappa_0 d` Gaussian columns."""
    width = max(1, round(kappa0 * dim))
    w = normal(sources, (dim, width), device, dtype)
    return (w @ w.mT) / math.sqrt(width * dim)


def chunks(x: Float[Tensor, "b n t d"]) -> Iterator[slice]:
    """Ranges of sequences that are small enough to be worked on at once."""
    batch, count, tokens, dim = x.shape
    step = max(1, CHUNK_NUMBERS // (batch * tokens * dim))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def logits(x: Float[Tensor, "b n t d"], s: Float[Tensor, "b d d"]) -> Float[Tensor, "b n t t"]:
    r""":math:`z_{ab}(S) = (x_a^T S x_b - \delta_{ab} \mathrm{Tr} S) / \sqrt d` of a symmetric S."""
    batch, count, tokens, dim = x.shape
    out = x.new_empty(batch, count, tokens, tokens)
    for part in chunks(x):
        piece = x[:, part]
        image = (piece.reshape(batch, -1, dim) @ s).view_as(piece)
        out[:, part] = image @ piece.mT
    return _centred(out, torch.diagonal(s, dim1=-2, dim2=-1).sum(-1), dim)


def factor_logits(x: Float[Tensor, "b n t d"], f: Float[Tensor, "b d r"]) -> Float[Tensor, "b n t t"]:
    """`logits` of S = F F^T, which costs r / d of the product with S."""
    batch, count, tokens, dim = x.shape
    out = x.new_empty(batch, count, tokens, tokens)
    for part in chunks(x):
        piece = x[:, part]
        image = (piece.reshape(batch, -1, dim) @ f).view(batch, piece.shape[1], tokens, -1)
        out[:, part] = image @ image.mT
    return _centred(out, f.square().sum((-2, -1)), dim)


def _centred(z: Tensor, trace: Tensor, dim: int) -> Tensor:
    torch.diagonal(z, dim1=-2, dim2=-1).sub_(trace[:, None, None])
    return z / math.sqrt(dim)


def adjoint(x: Float[Tensor, "b n t d"], r: Float[Tensor, "b n t t"]) -> Float[Tensor, "b d d"]:
    r""":math:`\sum_n \sum_{ab} R_{ab} (x_a x_b^T - \delta_{ab} I) / \sqrt d`, symmetrised: the transpose of `logits`."""
    batch, _, _, dim = x.shape
    total = x.new_zeros(batch, dim, dim)
    for part in chunks(x):
        piece, weights = x[:, part], r[:, part]
        total += piece.reshape(batch, -1, dim).mT @ (weights @ piece).reshape(batch, -1, dim)
    trace = torch.diagonal(r, dim1=-2, dim2=-1).sum((-2, -1))
    total = (total + total.mT) / 2
    torch.diagonal(total, dim1=-2, dim2=-1).sub_(trace[:, None])
    return total / math.sqrt(dim)


def loss_and_slope(z: Tensor, y: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    r"""Loss of each sequence and its derivative by the logits.

    ``linear``: :math:`T^{-2} |z - y|_F^2`. ``softmax``: :math:`|\sigma(z) - \sigma(y)|_F^2` with the softmax over rows,
    without the factor (the theory's convention for T = 2).
    """
    if activation == "linear":
        scale = 1.0 / z.shape[-1] ** 2
        gap = z - y
        return scale * gap.square().sum((-2, -1)), 2 * scale * gap
    p = torch.softmax(z, -1)
    gap = p - torch.softmax(y, -1)
    slope = 2 * p * (gap - (p * gap).sum(-1, keepdim=True))
    return gap.square().sum((-2, -1)), slope


def check(
    *,
    dim: int,
    tokens: int,
    seeds: Sequence[int],
    activation: str = "linear",
    dtype: str = "float64",
    at_least: dict[str, tuple[float | int, float | int]],
) -> None:
    """Refuse values that the model has no meaning for.

    Args:
        dim: d.
        tokens: T.
        seeds: Seeds.
        activation: One of `ACTIVATIONS`.
        dtype: One of `DTYPES`.
        at_least: Name -> value and the smallest value that is allowed.

    Raises:
        InputError: One of them is wrong; the message names it.
    """
    if not 2 <= whole("dim", dim) <= 4000:
        raise InputError(f"dim {dim} must be from 2 to 4000: simulations are for small d, the theory is for large")
    if not 1 <= whole("tokens", tokens) <= 16:
        raise InputError(f"tokens {tokens} must be from 1 to 16")
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise InputError(f"seeds {list(seeds)} must be different numbers of at least 0, at least one")
    if activation not in ACTIVATIONS:
        raise unknown_name("activation", activation, ACTIVATIONS)
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    for name, (value, smallest) in at_least.items():
        if not number(name, value) >= smallest:
            raise InputError(f"{name} {value} must be a number of at least {smallest:g}")


def place(device: str | torch.device | None) -> torch.device:
    """The device to compute on.

    Raises:
        InputError: It is not there.
    """
    try:
        found = torch.device(device or "cpu")
    except RuntimeError:
        raise InputError(f"unknown device '{device}': give cpu or cuda") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device '{device}' is not available here: use cpu")
    return found
