"""Codes of 2, 3 or 4 bits in bytes, the first code in the highest bits (as bitsandbytes packs its 4 bits)."""

from __future__ import annotations

import functools

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

# bits -> (codes, bytes) of the smallest group that fills whole bytes
_GROUPS = {2: (4, 1), 3: (8, 3), 4: (2, 1)}


def packed_size(count: int, bits: int) -> int:
    """Bytes for so many codes, whole groups.

    Example:
        >>> packed_size(10, 4), packed_size(10, 3)
        (5, 6)
    """
    codes, size = _GROUPS[bits]
    return -(-count // codes) * size


def pack(codes: UInt8[Tensor, " count"], bits: int) -> UInt8[Tensor, " bytes"]:
    """Pack codes into bytes; the last group is filled with zeros.

    Example:
        >>> pack(torch.tensor([1, 15, 2], dtype=torch.uint8), 4)
        tensor([31, 32], dtype=torch.uint8)
    """
    group, size = _GROUPS[bits]
    codes = torch.nn.functional.pad(codes, (0, -codes.numel() % group)).view(-1, group)
    word = torch.zeros(codes.shape[0], dtype=torch.int32, device=codes.device)
    for i in range(group):
        word |= codes[:, i].int() << (bits * (group - 1 - i))
    return torch.stack([(word >> (8 * (size - 1 - i))) & 255 for i in range(size)], dim=1).to(torch.uint8).flatten()


def unpack(packed: UInt8[Tensor, " bytes"], bits: int, count: int) -> UInt8[Tensor, " count"]:
    """The first ``count`` codes of packed bytes.

    Example:
        >>> unpack(torch.tensor([31, 32], dtype=torch.uint8), 4, 3)
        tensor([ 1, 15,  2], dtype=torch.uint8)
    """
    group, size = _GROUPS[bits]
    if size == 1:
        shifts = [bits * (group - 1 - i) for i in range(group)]
        parts = [(packed >> shift) & (2**bits - 1) for shift in shifts]
        return torch.stack(parts, dim=1).flatten()[:count]
    bytes_ = packed.view(-1, size).int()
    word = torch.zeros(bytes_.shape[0], dtype=torch.int32, device=packed.device)
    for i in range(size):
        word |= bytes_[:, i] << (8 * (size - 1 - i))
    parts = [((word >> (bits * (group - 1 - i))) & (2**bits - 1)).to(torch.uint8) for i in range(group)]
    return torch.stack(parts, dim=1).flatten()[:count]


def look_up(packed: UInt8[Tensor, " bytes"], values: Float[Tensor, " levels"], count: int) -> Float[Tensor, " count"]:
    """The values of packed codes, a new tensor; where codes fill a byte, without unpacking them.

    Example:
        >>> look_up(torch.tensor([27], dtype=torch.uint8), torch.tensor([-1.0, -0.5, 0.5, 1.0]), 4)
        tensor([-1.0000, -0.5000,  0.5000,  1.0000])
    """
    bits = values.numel().bit_length() - 1
    if bits == 3:
        return values.to(packed.device).take(unpack(packed, bits, count).long())
    table = _of_bytes(tuple(values.tolist()), bits).to(packed.device)
    return torch.nn.functional.embedding(packed.int(), table).flatten()[:count]


@functools.cache
def _of_bytes(values: tuple[float, ...], bits: int) -> Float[Tensor, "256 codes"]:
    every = torch.arange(256, dtype=torch.uint8)
    return torch.tensor(values, dtype=torch.float32)[unpack(every, bits, 256 * (8 // bits)).long()].view(256, -1)
