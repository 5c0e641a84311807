"""Which shift: count, for every candidate, how many weights of a block fall to each code, and score the counts.

The weights of a block are sorted once. A candidate (shift, scale) moves the borders between the codes, so that its counts
are one binary search a border, and nothing is quantised until the best candidate is known.
"""

from __future__ import annotations

import functools
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

OBJECTIVES = ("entropy", "mse", "none")


@functools.cache
def _plogp(size: int) -> Int[Tensor, " counts"]:
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


def cumulative_counts(
    ordered: Float[Tensor, "blocks size"],
    shift: Float[Tensor, "blocks candidates"],
    scale: Float[Tensor, "blocks candidates"],
    middles: Float[Tensor, " borders"],
) -> Int[Tensor, "blocks candidates borders"]:
    """How many weights lie at or below each border, for each candidate."""
    borders = code_borders(shift, scale, middles)
    return torch.searchsorted(ordered, borders.flatten(1), right=True).view(borders.shape)


def best_candidate(
    ordered: Float[Tensor, "blocks size"],
    shift: Float[Tensor, "blocks candidates"],
    scale: Float[Tensor, "blocks candidates"],
    valid: Tensor,
    values: Float[Tensor, " levels"],
    middles: Float[Tensor, " borders"],
    objective: str,
) -> Int[Tensor, " blocks"]:
    """The candidate with the highest entropy (equal entropies: the lowest squared error), or with the lowest error.

    Args:
        ordered: Weights of each block, rising.
        shift: Candidates, in the units of the weights.
        scale: Their scales.
        valid: Which candidates count, bool of (blocks, candidates); at least one in each block.
        values: The code book.
        middles: Its borders.
        objective: ``"entropy"`` or ``"mse"``.

    Returns:
        Index of the best candidate of each block; of equally good ones the first.
    """
    below = cumulative_counts(ordered, shift, scale, middles)
    if objective == "entropy":
        score = _negative_entropy(below, ordered.shape[1])
        score = torch.where(valid, score, torch.iinfo(score.dtype).max)
        valid = score == score.amin(dim=1, keepdim=True)
    row, column = valid.nonzero(as_tuple=True)
    error = torch.full(valid.shape, torch.inf, dtype=torch.float64, device=ordered.device)
    error[row, column] = _squared_errors(
        ordered, row, below[row, column], shift[row, column], scale[row, column], values
    )
    return error.argmin(dim=1)


def _negative_entropy(below: Int[Tensor, "blocks candidates borders"], size: int) -> Int[Tensor, "blocks candidates"]:
    """Sum over the codes of c log2 c, in the units of the table: the lower, the higher the entropy."""
    table = _plogp(size).to(below.device)
    count = below[..., 0]
    total = table.take(count)
    for k in range(1, below.shape[-1]):
        total += table.take(below[..., k] - below[..., k - 1])
    return total + table.take(size - below[..., -1])


def _squared_errors(
    ordered: Float[Tensor, "blocks size"],
    row: Int[Tensor, " pairs"],
    below: Int[Tensor, "pairs borders"],
    shift: Float[Tensor, " pairs"],
    scale: Float[Tensor, " pairs"],
    values: Float[Tensor, " levels"],
) -> Float[Tensor, " pairs"]:
    """Sum of squared errors of each (block, candidate), from sums of the sorted weights up to each border, in float64."""
    size = ordered.shape[1]
    centre = ordered[:, size // 2].double()
    centred = ordered.double() - centre.unsqueeze(1)
    sums = torch.nn.functional.pad(centred.cumsum(dim=1), (1, 0)).flatten()
    squares = centred.square().sum(dim=1)
    start = row * (size + 1)
    low_count, low_sum = torch.zeros_like(row), torch.zeros(row.shape, dtype=torch.float64, device=row.device)
    offset, width = shift.double() - centre[row], scale.double()
    error = squares[row]
    for k, value in enumerate(values.tolist()):
        high_count = below[:, k] if k < below.shape[1] else torch.full_like(row, size)
        high_sum = sums.take(start + high_count)
        level = offset + width * value
        error = error - 2 * level * (high_sum - low_sum) + (high_count - low_count) * level.square()
        low_count, low_sum = high_count, high_sum
    return error
