"""Information calibration quantisation (ICQ): each block is shifted before it is quantised, so that its codes say more."""

from __future__ import annotations

import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from tqdm.auto import tqdm

from lorascope.core.errors import InputError, unknown_name
from lorascope.quantization import compiled, events
from lorascope.quantization.codebooks import borders, codebook
from lorascope.quantization.grid import Grid
from lorascope.quantization.packing import look_up, pack
from lorascope.quantization.search import OBJECTIVES, Candidates, best_listed, code_borders, code_counts
from lorascope.quantization.storage import Stored

SEARCHES = ("shift", "scale")
# Entries of the largest tensors of a search: about what a processor's cache holds; a GPU wants more at a time.
_ENTRIES = {"cpu": 2**18, "cuda": 2**23}
# Sums of weights beyond this would overflow in float32.
_LARGEST = 1e37
_COARSE = 0.01
# A window of so many times a block's largest magnitude is no window any more; wider ones would overflow.
_WIDEST = 1000.0
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class IcqTensor:
    """A quantised tensor.

    Attributes:
        codes: One code a weight, in the shape of the weight.
        shift: What is added to each block; None without a shift.
        scale: What each block's values are multiplied by.
        block_entropy_bits: Entropy of the codes of each block, in bits: at most ``bits``, and at most log2 of the block's
            size. The last block may be shorter than the others.
        bits: Bits a code.
        block_size: Weights a block, in row-major order.
        codebook: ``"nf"`` or ``"int"``.
        dtype: Type of the weight that was quantised.
    """

    codes: UInt8[Tensor, ...]
    shift: Stored | None
    scale: Stored
    block_entropy_bits: Float[Tensor, " blocks"]
    bits: int
    block_size: int
    codebook: str
    dtype: torch.dtype

    @property
    def packed(self) -> UInt8[Tensor, " bytes"]:
        """The codes in bytes, the first code in the highest bits."""
        return pack(self.codes.flatten(), self.bits)

    @property
    def bits_per_weight(self) -> float:
        """All that is stored, over the number of weights.

        With the defaults 4 + 2 (8/64 + 32/(64 * 256)) = 4.254 for a whole number of groups of blocks.
        """
        shift = 0 if self.shift is None else self.shift.bits
        return (8 * self.packed.numel() + self.scale.bits + shift) / self.codes.numel()

    def dequantize(self, dtype: torch.dtype | None = None) -> Float[Tensor, ...]:
        """The weight that the codes stand for: value(code) * scale + shift.

        Args:
            dtype: Type of the result; None means that of the weight that was quantised.

        Returns:
            A tensor in the shape of the weight.
        """
        shift = None if self.shift is None else self.shift.values()
        dense = decode(
            self.packed,
            shift,
            self.scale.values(),
            block_size=self.block_size,
            values=codebook(self.codebook, self.bits),
            shape=self.codes.shape,
        )
        return dense.to(dtype or self.dtype)


def decode(
    packed: UInt8[Tensor, " bytes"],
    shift: Float[Tensor, " blocks"] | None,
    scale: Float[Tensor, " blocks"],
    *,
    block_size: int,
    values: Float[Tensor, " levels"],
    shape: tuple[int, ...],
) -> Float[Tensor, ...]:
    """value(code) * scale + shift for each block of ``block_size`` codes in row-major order, in float32."""
    flat = look_up(packed, values, math.prod(shape))
    whole = flat.numel() - flat.numel() % block_size
    rows = flat[:whole].view(-1, block_size)
    rows *= scale[: rows.shape[0], None]
    if shift is not None:
        rows += shift[: rows.shape[0], None]
    if whole < flat.numel():
        flat[whole:] *= scale[-1]
        if shift is not None:
            flat[whole:] += shift[-1]
    return flat.view(shape)


def quantize_icq(
    weight: Float[Tensor, ...],
    bits: int = 4,
    block_size: int = 64,
    n: int = 100,
    lam: float = 0.1,
    objective: str = "entropy",
    *,
    codebook_kind: str = "nf",
    search: str = "shift",
    double_quant: bool = True,
    group_size: int = 256,
    progress: bool = False,
) -> IcqTensor:
    r"""Quantise a weight in blocks, each shifted so that its codes carry the most information.

    For each block: :math:`\hat w = \mathrm{NF}_k((w-\tau)/s)` with :math:`s = \max|w-\tau|`; the weight that is used is
    :math:`\mathrm{value}(\hat w)\,s + \tau`. The start is the lower median :math:`\tau_0`; candidates are
    :math:`\tau_0 + f \max|w-\tau_0|` with 2n+1 values of f evenly over :math:`\pm 0.54109\,\lambda`. The best has the
    highest entropy :math:`-\sum_i P(q_i) \log_2 P(q_i)` of the block's own codes; of equal entropies (which are common:
    most steps of f move no weight across a border) the one with the lowest squared error.

    Shift and scale are kept in 8 bits, with one float for ``group_size`` blocks of each. A candidate is judged with the
    shift that would be stored and the exact scale for it, so the entropy that is searched is the entropy that is kept.
    Candidates that are stored alike are judged once.

    Args:
        weight: Weight of any shape: float64, float32, bfloat16 or float16. A last block that is not full is quantised by
            itself, from its own weights; nothing is filled up.
        bits: Bits a code: 2, 3 or 4.
        block_size: Weights a block, in row-major order.
        n: Candidates on either side of the median; 0 takes the median as it is. 100 in the paper.
        lam: Width of the window.
        objective: ``"entropy"`` (the paper's), ``"mse"`` (lowest squared error), or ``"none"``: no shift and no search,
            which is plain NF or integer quantisation.
        codebook_kind: ``"nf"`` or ``"int"`` (evenly spaced values).
        search: ``"shift"``; or, for integers, ``"scale"``: a search of the step over 0.9 to 1.1 times
            (max - min) / (2^k - 1) in 2n+1 steps, with a whole-numbered zero point. The paper's section 4.3 describes the
            first for integers as well; its code does the second.
        double_quant: Keep shifts and scales in 8 bits; else in float32.
        group_size: Blocks that share a float.
        progress: Show a progress bar.

    Returns:
        Codes, shifts, scales and entropies, on the device of the weight.

    Warns:
        UserWarning: Some block is so much larger than others of its group that 8 bits are too coarse for their scales.

    Raises:
        InputError: The weight is empty, no dense tensor of floating point, or holds NaN or infinity; an option is out of
            range.

    Example:
        >>> weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
        >>> plain = quantize_icq(weight, objective="none")
        >>> icq = quantize_icq(weight)
        >>> bool(icq.block_entropy_bits.mean() > plain.block_entropy_bits.mean())
        True

    References:
        IR-QLoRA, arXiv 2402.05445, section 3.2 and appendix. The window in units of the block's largest magnitude is that of
        the paper's code; in the units of the weights, as printed, it would span several standard deviations.
    """
    check_options(
        bits=bits,
        block_size=block_size,
        n=n,
        lam=lam,
        objective=objective,
        codebook_kind=codebook_kind,
        search=search,
        double_quant=double_quant,
        group_size=group_size,
    )
    _check_weight(weight)
    values = codebook(codebook_kind, bits).to(weight.device)
    middles = borders(values)
    flat = weight.detach().flatten().float()
    whole = flat.numel() - flat.numel() % block_size
    pieces = [rows for rows in (flat[:whole].view(-1, block_size), flat[whole:].view(1, -1)) if rows.numel()]
    grid = Grid(
        torch.cat([extent(rows) for rows in pieces]),
        n=n,
        lam=lam,
        levels=values.numel(),
        search="none" if objective == "none" else search,
        group_size=group_size if double_quant else None,
    )
    choose = best_listed if search == "scale" else events.best_shift
    searched = search == "shift" and objective != "none" and grid.width > 1
    if searched and flat.device.type == "cpu" and compiled.is_quicker(flat.numel()):
        choose = compiled.best_shift
    codes = torch.empty(flat.numel(), dtype=torch.uint8, device=flat.device)
    entropies = torch.empty(-(-flat.numel() // block_size), dtype=torch.float64, device=flat.device)

    def quantize(at: int, rows: Tensor) -> int:
        shift, scale, valid = grid.candidates(at, at + rows.shape[0])
        order, found = None, None
        if shift.shape[1] > 1:
            rows, order = _sort(rows)
            candidates = Candidates(rows, shift, scale, valid, values, middles)
            best, found = choose(candidates, objective)
            shift, scale = (x.gather(1, best.unsqueeze(1)) for x in (shift, scale))
        grid.choose(at, shift[:, 0], scale[:, 0])
        if objective == "none":  # to the last bit what bitsandbytes does
            found = torch.bucketize(rows * torch.where(scale > 0, 1 / scale, 0.0), middles)
        elif found is None:
            found = torch.searchsorted(code_borders(shift[:, 0], scale[:, 0], middles), rows.contiguous())
        entropies[at : at + rows.shape[0]] = code_entropy_bits(found, values.numel())
        place = codes[at * block_size : at * block_size + rows.numel()].view(rows.shape)
        if order is None:
            place.copy_(found)
        else:
            place.scatter_(1, order, found.to(torch.uint8))
        return rows.numel()

    step = max(_ENTRIES.get(flat.device.type, 2**20) // max(grid.width, block_size), 1)
    parts, at = [], 0
    for piece in pieces:
        for rows in torch.split(piece, step):
            parts.append((at, rows))
            at += rows.shape[0]
    # Parts fit a core's cache and are too small for torch to split: one thread a core takes one part after the other.
    workers = min(torch.get_num_threads(), len(parts)) if flat.device.type == "cpu" else 1
    with (
        tqdm(total=flat.numel(), desc="quantise", unit="w", unit_scale=True, disable=not progress, leave=False) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        for done in pool.map(lambda part: quantize(*part), parts) if workers > 1 else (quantize(*p) for p in parts):
            bar.update(done)
    if double_quant and (coarse := grid.coarse()) > _COARSE:
        warnings.warn(
            f"{coarse:.0%} of the blocks of a weight lie beside a block of far larger weights, and 8-bit scales are too "
            "coarse for them (off by over a tenth): take double_quant=False or a smaller group_size, or leave that layer "
            "dense",
            stacklevel=2,
        )
    return IcqTensor(
        codes=codes.view(weight.shape),
        shift=None if objective == "none" else grid.stored_shift(),
        scale=grid.stored_scale(),
        block_entropy_bits=entropies,
        bits=bits,
        block_size=block_size,
        codebook=codebook_kind,
        dtype=weight.dtype,
    )


def code_entropy_bits(codes: Int[Tensor, "blocks size"], levels: int) -> Float[Tensor, " blocks"]:
    """Entropy of the codes of each block, in bits, in float64.

    Example:
        >>> code_entropy_bits(torch.tensor([[0, 0, 1, 1], [2, 2, 2, 2]]), 4)
        tensor([1., 0.], dtype=torch.float64)
    """
    share = code_counts(codes, levels).double() / codes.shape[1]
    entropy: Tensor = torch.special.entr(share).sum(dim=1)
    return entropy / math.log(2)


def extent(rows: Float[Tensor, "blocks size"]) -> Float[Tensor, "blocks 3"]:
    """Lowest, lower median and highest weight of each block."""
    if rows.device.type == "cpu":  # numpy sorts short rows sooner than torch finds their medians
        rows = torch.from_numpy(np.sort(rows.numpy(), axis=1))
        return rows[:, [0, (rows.shape[1] - 1) // 2, -1]]
    low, high = rows.aminmax(dim=1)
    return torch.stack([low, rows.median(dim=1).values, high], dim=1)


def _sort(rows: Float[Tensor, "blocks size"]) -> tuple[Float[Tensor, "blocks size"], Int[Tensor, "blocks size"]]:
    """The weights of each block, rising, and where they were; on a processor by numpy, which sorts short rows faster."""
    if rows.device.type != "cpu":
        ordered, order = rows.sort(dim=1)
        return ordered, order
    order = torch.from_numpy(np.argsort(rows.numpy(), axis=1))
    return rows.gather(1, order), order


def check_options(
    *,
    bits: int,
    block_size: int,
    n: int,
    lam: float,
    objective: str,
    codebook_kind: str,
    search: str,
    double_quant: bool,
    group_size: int,
) -> None:
    """Refuse options of `quantize_icq` that are out of range.

    Raises:
        InputError: One is; the message names it.

    Example:
        >>> check_options(bits=4, block_size=64, n=100, lam=0.1, objective="mse", codebook_kind="nf", search="shift",
        ...               double_quant=True, group_size=256)
    """
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise InputError(f"bits {bits!r} must be a whole number: 2, 3 or 4")
    codebook(codebook_kind, bits)
    for name, value, least in (("block_size", block_size, 2), ("n", n, 0), ("group_size", group_size, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name} {value} must be a whole number of at least {least}")
    if isinstance(lam, bool) or not isinstance(lam, int | float) or not 0 < lam <= _WIDEST:
        raise InputError(f"lam {lam} must be a number above 0 and at most {_WIDEST:g}")
    if not isinstance(double_quant, bool):
        raise InputError(f"double_quant {double_quant} must be True or False")
    for kind, given, known in (("objective", objective, OBJECTIVES), ("search", search, SEARCHES)):
        if given not in known:
            raise unknown_name(kind, str(given), known)
    if search == "scale" and codebook_kind != "int":
        raise InputError(
            f"search 'scale' has a meaning for integers only, not for code book '{codebook_kind}': use search 'shift'"
        )


def _check_weight(weight: Tensor) -> None:
    given: object = weight
    if not isinstance(given, Tensor):
        raise InputError(f"weight is a {type(given).__name__}: give a tensor of torch")
    if weight.dtype not in _DTYPES:
        raise InputError(
            f"weight has type {str(weight.dtype).removeprefix('torch.')}: only floating point of 16, 32 or 64 bits can be "
            "quantised"
        )
    if weight.is_meta or weight.layout != torch.strided:
        kind = "on the meta device" if weight.is_meta else "sparse"
        raise InputError(f"weight is {kind}: give a dense tensor that is in memory")
    if weight.numel() == 0:
        raise InputError(f"weight of shape {tuple(weight.shape)} is empty: there is nothing to quantise")
    low, high = (float(x) for x in torch.aminmax(weight.detach()))
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = int((~torch.isfinite(weight)).sum())
        raise InputError(
            f"weight holds NaN or infinity in {bad} of {weight.numel()} places: repair the checkpoint first"
        )
    if (largest := max(-low, high)) > _LARGEST:
        raise InputError(f"weight holds {largest:.3g}: magnitudes above {_LARGEST:.0e} cannot be quantised")
