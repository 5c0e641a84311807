"""Code books: the values in [-1, 1] that a code stands for, and the borders between them."""

from __future__ import annotations

import functools

import torch
from jaxtyping import Float
from torch import Tensor

from lorascope.core.errors import InputError

# NF4 is the table of bitsandbytes; NF3 is the one in use beside it; NF2 is built symmetrically, which leaves out the zero.
_NORMAL: dict[int, tuple[float, ...]] = {
    2: (-1.0, -0.2525685, 0.2525685, 1.0),
    3: (-1.0, -0.4786292, -0.2171418, 0.0, 0.1609302, 0.3379152, 0.562617, 1.0),
    4: (
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ),
}
BITS = tuple(_NORMAL)
CODEBOOKS = ("nf", "int")


@functools.cache
def codebook(kind: str, bits: int) -> Float[Tensor, " levels"]:
    """The values of the codes 0, 1, ..., 2^bits - 1, rising from -1 to 1.

    ``"nf"`` (normal float) has its values near the quantiles of a normal distribution; ``"int"`` has them evenly spaced.

    Args:
        kind: ``"nf"`` or ``"int"``.
        bits: 2, 3 or 4.

    Returns:
        Values, float32 on the CPU.

    Raises:
        InputError: There is no such table.

    Example:
        >>> codebook("nf", 2)
        tensor([-1.0000, -0.2526,  0.2526,  1.0000])
        >>> codebook("int", 2)
        tensor([-1.0000, -0.3333,  0.3333,  1.0000])

    References:
        QLoRA, arXiv 2305.14314; IR-QLoRA, arXiv 2402.05445. The formula that the latter prints (its Eq. 2) does not give
        these tables; they are the ones that its experiments and bitsandbytes use.
    """
    if kind not in CODEBOOKS:
        raise InputError(f"unknown code book '{kind}': choose from {', '.join(CODEBOOKS)}")
    if isinstance(bits, bool) or not isinstance(bits, int) or bits not in _NORMAL:
        raise InputError(f"bits {bits!r} is not supported: choose from {', '.join(map(str, BITS))}")
    if kind == "nf":
        return torch.tensor(_NORMAL[bits], dtype=torch.float32)
    return torch.linspace(-1.0, 1.0, 2**bits, dtype=torch.float32)


def borders(values: Float[Tensor, " levels"]) -> Float[Tensor, " borders"]:
    """Middles between neighbouring values: what lies above a border takes the higher code.

    Example:
        >>> borders(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([-0.5000,  0.5000])
    """
    return (values[1:] + values[:-1]) / 2
