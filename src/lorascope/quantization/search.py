"""Which candidate: score every one of a block by the entropy of its codes and by its squared error.

Here is what any list of candidates needs; `lorascope.quantization.events` does the same quicker for shifts in even steps.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

OBJECTIVES = ("entropy", "mse", "none")


@dataclass(frozen=True)
class Candidates:
    """Candidates of some blocks.

    Attributes:
        ordered: Weights of each block, rising.
        shift: In the units of the weights.
        scale: Their scales.
        valid: Which of them count; at least one in each block.
        values: The code book.
        middles: Its borders.
    """

    ordered: Float[Tensor, "blocks size"]
    shift: Float[Tensor, "blocks candidates"]
    scale: Float[Tensor, "blocks candidates"]
    valid: Bool[Tensor, "blocks candidates"]
    values: Float[Tensor, " levels"]
    middles: Float[Tensor, " borders"]

    def codes(self, candidate: int) -> Int[Tensor, "blocks size"]:
        """Codes of all weights for one candidate, int32."""
        borders = code_borders(self.shift[:, candidate], self.scale[:, candidate], self.middles)
        return torch.searchsorted(borders, self.ordered, out_int32=True)


@functools.cache
def plogp(size: int) -> Int[Tensor, " counts"]:
    """c log2 c for c = 0 ... size as whole numbers, so that sums of them are equal exactly where entropies are."""
    unit = 2.0 ** math.floor(30 - math.log2(max(size * math.log2(max(size, 2)), 1.0)))
    table = [0.0] + [c * math.log2(c) * unit for c in range(1, size + 1)]
    return torch.tensor([round(value) for value in table], dtype=torch.int32)


def code_borders(
    shift: Float[Tensor, "*rows"], scale: Float[Tensor, "*rows"], middles: Float[Tensor, " borders"]
) -> Float[Tensor, "*rows borders"]:
    """Borders between codes in the units of the weights: shift + scale * middle.

    Search and final codes both come from here, so that they agree to the last bit.
    """
    return shift.unsqueeze(-1) + scale.unsqueeze(-1) * middles


def code_counts(codes: Int[Tensor, "blocks size"], levels: int) -> Int[Tensor, "blocks levels"]:
    """How often each block has each code.

    Example:
        >>> code_counts(torch.tensor([[0, 0, 1]]), 4)
        tensor([[2, 1, 0, 0]])
    """
    blocks = codes.shape[0]
    place = codes + torch.arange(0, blocks * levels, levels, dtype=codes.dtype, device=codes.device).unsqueeze(1)
    return torch.bincount(place.flatten(), minlength=blocks * levels).view(blocks, levels)


def best_of(
    candidates: Candidates, scores: Int[Tensor, "blocks candidates"] | None
) -> Bool[Tensor, "blocks candidates"]:
    """The valid candidates with the lowest score of their block; all valid ones without scores."""
    if scores is None:
        return candidates.valid
    scores = torch.where(candidates.valid, scores, torch.iinfo(scores.dtype).max)
    return scores == scores.amin(dim=1, keepdim=True)


def best_listed(candidates: Candidates, objective: str) -> tuple[Int[Tensor, " blocks"], Int[Tensor, "blocks size"]]:
    """The candidate with the highest entropy (equal entropies: the lowest squared error), or with the lowest error.

    The weights of a block are sorted, so that a candidate's counts are one binary search a border.

    Args:
        candidates: In any order.
        objective: ``"entropy"`` or ``"mse"``.

    Returns:
        Index of the best candidate of each block, of equally good ones the first; and its codes of the ordered weights.
    """
    ordered = candidates.ordered
    borders = code_borders(candidates.shift, candidates.scale, candidates.middles)
    below = torch.searchsorted(ordered, borders.flatten(1), right=True).view(borders.shape)
    wanted = best_of(candidates, _negative_entropy(below, ordered.shape[1]) if objective == "entropy" else None)
    row, column = wanted.nonzero(as_tuple=True)
    error = torch.full(wanted.shape, torch.inf, dtype=torch.float64, device=ordered.device)
    error[row, column] = _squared_errors(candidates, row, column, below[row, column])
    best = error.argmin(dim=1)
    chosen = borders[torch.arange(len(best), device=best.device), best]
    return best, torch.searchsorted(chosen, ordered, out_int32=True)


def _negative_entropy(below: Int[Tensor, "blocks candidates borders"], size: int) -> Int[Tensor, "blocks candidates"]:
    """Sum over the codes of c log2 c, in the units of the table: the lower, the higher the entropy."""
    table = plogp(size).to(below.device)
    count = below[..., 0]
    total = table.take(count)
    for k in range(1, below.shape[-1]):
        total += table.take(below[..., k] - below[..., k - 1])
    return total + table.take(size - below[..., -1])


def _squared_errors(
    candidates: Candidates,
    row: Int[Tensor, " pairs"],
    column: Int[Tensor, " pairs"],
    below: Int[Tensor, "pairs borders"],
) -> Float[Tensor, " pairs"]:
    """Sum of squared errors of each (block, candidate), from sums of the sorted weights up to each border, in float64."""
    ordered = candidates.ordered
    size = ordered.shape[1]
    centre = ordered[:, size // 2].double()
    centred = ordered.double() - centre.unsqueeze(1)
    sums = torch.nn.functional.pad(centred.cumsum(dim=1), (1, 0)).flatten()
    squares = centred.square().sum(dim=1)
    start = row * (size + 1)
    low_count, low_sum = torch.zeros_like(row), torch.zeros(row.shape, dtype=torch.float64, device=row.device)
    offset, width = candidates.shift[row, column].double() - centre[row], candidates.scale[row, column].double()
    error = squares[row]
    for k, value in enumerate(candidates.values.tolist()):
        high_count = below[:, k] if k < below.shape[1] else torch.full_like(row, size)
        high_sum = sums.take(start + high_count)
        level = offset + width * value
        error = error - 2 * level * (high_sum - low_sum) + (high_count - low_count) * level.square()
        low_count, low_sum = high_count, high_sum
    return error
