"""Double quantisation: one number a block in 8 bits, with one float for a group of blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

SIGNED = 127
UNSIGNED = 255


@dataclass(frozen=True)
class Stored:
    """One number a block, as it is kept.

    Attributes:
        codes: float32 with the numbers themselves, or uint8 with their codes.
        groups: float32, one a group of blocks: what code 1 stands for; None if ``codes`` holds the numbers.
        group_size: Blocks a group.
        signed: Whether code 128 stands for 0 (else code 0 does).
    """

    codes: Tensor
    groups: Tensor | None
    group_size: int
    signed: bool

    def values(self) -> Float[Tensor, " blocks"]:
        """The numbers, in float32.

        Example:
            >>> Stored(torch.tensor([0, 128, 129], dtype=torch.uint8), torch.tensor([0.5]), 256, True).values()
            tensor([-64.0000,   0.0000,   0.5000])
        """
        if self.groups is None:
            return self.codes
        unit = per_block(self.groups, self.codes.numel(), self.group_size)
        return (self.codes.float() - (128 if self.signed else 0)) * unit

    @property
    def bits(self) -> int:
        """Bits of storage."""
        size = self.codes.numel() * self.codes.element_size()
        return 8 * (size + (0 if self.groups is None else 4 * self.groups.numel()))


def per_block(groups: Float[Tensor, " groups"], blocks: int, group_size: int) -> Float[Tensor, " blocks"]:
    """Each group's number, repeated for its blocks."""
    return groups.repeat_interleave(group_size)[:blocks]


def group_unit(largest: Float[Tensor, " blocks"], group_size: int, *, signed: bool) -> Float[Tensor, " groups"]:
    """What code 1 stands for in each group, so that the largest magnitude of the group is representable.

    Args:
        largest: The largest magnitude that each block may need.
        group_size: Blocks a group.
        signed: Whether the numbers have a sign.

    Returns:
        float32, one a group; the smallest normal number where a group is all zero.
    """
    padded = torch.nn.functional.pad(largest, (0, -largest.numel() % group_size)).view(-1, group_size)
    unit = padded.amax(dim=1).float() / (SIGNED if signed else UNSIGNED)
    return unit.clamp_min(torch.finfo(torch.float32).tiny)
