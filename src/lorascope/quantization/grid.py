"""The candidates of every block: shifts as they would be stored, and the scales that go with them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lorascope.quantization.storage import SIGNED, UNSIGNED, Stored, group_unit, per_block

# 1 / ppf(0.9677083) of the normal distribution: the unit in which the paper's code gives the window of the shift.
WINDOW_UNIT = 0.54109


class Grid:
    """Candidates of all blocks of a weight, and the ones that were chosen.

    Args:
        extent: Lowest, lower median and highest weight of each block.
        n: Candidates on either side of the middle one.
        lam: Width of the window of shifts.
        levels: Number of codes.
        search: ``"shift"``, ``"scale"`` or ``"none"``.
        group_size: Blocks that share a float where shift and scale are kept in 8 bits; None keeps them in float32.

    Attributes:
        width: Most candidates that a block has.

    Example:
        >>> grid = Grid(torch.tensor([[-1.0, 0.0, 1.0]]), n=1, lam=1.0, levels=16, search="shift", group_size=None)
        >>> grid.candidates(0, 1)[0]
        tensor([[-0.5411,  0.0000,  0.5411]])
    """

    def __init__(
        self,
        extent: Float[Tensor, "blocks 3"],
        *,
        n: int,
        lam: float,
        levels: int,
        search: str,
        group_size: int | None,
    ) -> None:
        self._low, self._median, self._high = (column.unsqueeze(1) for column in extent.unbind(dim=1))
        self._levels, self._search, self._group_size = levels, search, group_size
        self.width = 1 if search == "none" else 2 * n + 1
        middle, reach = {"none": (0.0, 0.0), "shift": (0.0, WINDOW_UNIT * lam), "scale": (1.0, 0.1)}[search]
        steps = torch.arange(-n, n + 1) / max(n, 1) if self.width > 1 else torch.zeros(1)
        self._factors = (middle + reach * steps).to(extent.device)
        blocks = extent.shape[0]
        self._shift = torch.zeros(blocks, dtype=torch.float32, device=extent.device)
        self._scale = torch.zeros_like(self._shift)
        if group_size is not None:
            ends = self._factors[[0, self._factors.numel() // 2, -1]]
            shift, _ = self._exact(slice(None), ends)
            self._shift_groups = group_unit(shift.abs().amax(dim=1), group_size, signed=True)
            self._shift_unit = per_block(self._shift_groups, blocks, group_size).unsqueeze(1)

    def _exact(self, rows: slice, factors: Tensor) -> tuple[Tensor, Tensor]:
        low, median, high = self._low[rows], self._median[rows], self._high[rows]
        if self._search == "none":
            return torch.zeros_like(low), torch.maximum(low.abs(), high.abs())
        if self._search == "shift":
            shift = median + factors * torch.maximum(high - median, median - low)
            return shift, torch.maximum(high - shift, shift - low)
        step = factors * (high - low) / (self._levels - 1)
        zero = torch.where(step > 0, (-low / step).round(), 0.0)
        half = (self._levels - 1) / 2
        return torch.where(step > 0, step * (half - zero), low), step * half

    def candidates(self, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """Shift, scale and whether it counts, each of (blocks, candidates), for blocks ``start`` to ``stop``.

        Shifts are as they would be stored, and rise with the candidate where shifts are searched; scales are exact for them.
        Candidates whose shifts are stored alike are given once, where all shifts that can be stored in the window are fewer
        than the candidates.
        """
        rows = slice(start, stop)
        shift, scale = self._exact(rows, self._factors)
        valid = torch.ones_like(shift, dtype=torch.bool)
        if self._group_size is None:
            return shift, scale, valid
        unit = self._shift_unit[rows]
        codes = (shift / unit).round().clamp(-SIGNED, SIGNED)
        if self._search == "scale":
            return codes * unit, scale, valid
        if self._search == "shift":
            first, last = codes[:, :1], codes[:, -1:]
            span = int((last - first).max()) + 1
            if span < self.width:
                codes = first + torch.arange(span, device=codes.device)
                valid = codes <= last
        shift = codes * unit
        return shift, torch.maximum(self._high[rows] - shift, shift - self._low[rows]), valid

    def choose(self, start: int, shift: Float[Tensor, " some"], scale: Float[Tensor, " some"]) -> None:
        """Remember what was chosen for the blocks from ``start`` on."""
        self._shift[start : start + shift.numel()] = shift
        self._scale[start : start + scale.numel()] = scale

    def stored_shift(self) -> Stored:
        """The chosen shifts, as they are kept."""
        if self._group_size is None:
            return Stored(self._shift, None, 0, True)
        codes = (self._shift / self._shift_unit[:, 0]).round() + SIGNED + 1
        return Stored(codes.to(torch.uint8), self._shift_groups, self._group_size, True)

    def coarse(self) -> float:
        """Share of the blocks whose scale is kept with an error of more than a tenth of the largest weight.

        A group's float is set by its largest scale: beside a block of far larger weights 8 bits are coarse for the others.
        """
        largest = torch.maximum(self._low.abs(), self._high.abs()).squeeze(1)
        off = (self.stored_scale().values() - self._scale).abs() > 0.1 * largest
        return float(off.double().mean())

    def stored_scale(self) -> Stored:
        """The chosen scales, as they are kept."""
        if self._group_size is None:
            return Stored(self._scale, None, 0, False)
        groups = group_unit(self._scale, self._group_size, signed=False)
        unit = per_block(groups, self._scale.numel(), self._group_size)
        codes = (self._scale / unit).round().clamp(0, UNSIGNED)
        return Stored(codes.to(torch.uint8), groups, self._group_size, False)
