"""How much of what ICQ gains depends on its settings, how much is there to gain, and how much of it is noise."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lorascope.core.errors import DataError, InputError
from lorascope.quantization.codebooks import borders, codebook
from lorascope.quantization.grid import Grid
from lorascope.quantization.icq import IcqTensor, code_entropy_bits, extent, quantize_icq
from lorascope.quantization.search import Candidates, best_listed, code_borders

SCHEMA_VERSION = 1
STUDIES = ("sensitivity", "ceiling", "median", "resources")
NOISE = "iid normal numbers"


@dataclass(frozen=True, kw_only=True)
class QuantizationStudy:
    """What a study found.

    Attributes:
        study: Which one, of `STUDIES`.
        records: Rows of its table, all with the same keys.
        settings: What it was asked for.
        layers: Rows by layer, where the study has some.
        provenance: Versions, machine, command.
        schema_version: Version of this layout.
    """

    study: str
    records: list[dict[str, Any]]
    settings: dict[str, Any]
    layers: list[dict[str, Any]] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping of every field."""
        return {"kind": "quantization_study", **asdict(self)}

    @classmethod
    def from_dict(cls, values: Any, *, source: str = "mapping") -> QuantizationStudy:
        """Build a study from what `to_dict` made.

        Raises:
            DataError: The mapping is no such study, or of another version.
        """
        if not isinstance(values, Mapping) or values.get("kind") != "quantization_study":
            raise DataError(f"'{source}' is not a study of lorascope quantize-study")
        if values.get("schema_version") != SCHEMA_VERSION:
            raise DataError(
                f"'{source}' has schema_version {values.get('schema_version')!r}, this lorascope reads {SCHEMA_VERSION}: "
                "use the version of lorascope that wrote it"
            )
        try:
            return cls(**{item.name: values[item.name] for item in fields(cls)})
        except KeyError as error:
            raise DataError(f"'{source}' is not a whole study: {error} is missing") from error


Blocks = Mapping[str, Float[Tensor, "_ size"]]


def sample_blocks(
    weights: Iterator[tuple[str, Tensor]] | Sequence[tuple[str, Tensor]], *, block_size: int, limit: int, seed: int
) -> dict[str, Float[Tensor, "_ size"]]:
    """Some whole blocks of each weight, drawn without replacement.

    Args:
        weights: Name and tensor.
        block_size: Weights a block.
        limit: Most blocks a weight.
        seed: Of the draw.

    Returns:
        Name -> blocks in float32; weights of less than a block are left out.

    Raises:
        InputError: No weight has a whole block, or one holds NaN or infinity.

    Example:
        >>> sample_blocks([("w", torch.ones(10, 64))], block_size=64, limit=4, seed=0)["w"].shape
        torch.Size([4, 64])
    """
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, weight in weights:
        flat = weight.detach().flatten()
        if not bool(torch.isfinite(flat).all()):
            raise InputError(f"{name}: weight holds NaN or infinity: repair the checkpoint first")
        rows = flat[: flat.numel() - flat.numel() % block_size].view(-1, block_size)
        if rows.numel():
            found[name] = rows[torch.randperm(rows.shape[0], generator=generator)[:limit]].float()
    if not found:
        raise InputError(f"no weight has a whole block of {block_size}: give another model or block size")
    return found


def normal_blocks(like: Blocks, *, seed: int) -> Float[Tensor, "blocks size"]:
    """As many blocks of independent normal numbers: what there is to gain where there is nothing to find."""
    count, size = sum(rows.shape[0] for rows in like.values()), next(iter(like.values())).shape[1]
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def sensitivity(
    blocks: Blocks,
    *,
    bits: int = 4,
    ns: Sequence[int] = (1, 5, 10, 25, 50, 100, 200),
    lams: Sequence[float] = (0.02, 0.05, 0.1, 0.2, 0.4),
    double_quant: bool = True,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Entropy gained, error and time for every n and lambda.

    Args:
        blocks: Name -> blocks.
        bits: Bits a code.
        ns: Candidates on either side.
        lams: Widths of the window.
        double_quant: Keep shifts and scales in 8 bits.
        progress: Show a progress bar.

    Returns:
        A row a pair: ``n``, ``lam``, ``entropy_bits``, ``gain_bits`` (over no shift), ``gain_kept`` (share of the gain of
        the paper's n = 100, lambda = 0.1), ``error_ratio`` (squared error over that without a shift) and
        ``seconds_per_million`` weights.

    Example:
        >>> rows = sensitivity({"w": torch.randn(64, 64, generator=torch.Generator().manual_seed(0))}, ns=(5,), lams=(0.1,))
        >>> rows[0]["gain_bits"] > 0
        True
    """
    plain, plain_error, _ = _over_layers(blocks, bits=bits, objective="none", double_quant=double_quant)
    paper, _, _ = _over_layers(blocks, bits=bits, double_quant=double_quant)
    rows = []
    pairs = [(n, lam) for lam in lams for n in ns]
    for n, lam in tqdm(pairs, desc="settings", disable=not progress, leave=False):
        entropy, error, seconds = _over_layers(blocks, bits=bits, n=n, lam=lam, double_quant=double_quant)
        rows.append(
            {
                "n": n,
                "lam": lam,
                "entropy_bits": entropy,
                "gain_bits": entropy - plain,
                "gain_kept": (entropy - plain) / (paper - plain) if paper > plain else 0.0,
                "error_ratio": error / plain_error if plain_error else 1.0,
                "seconds_per_million": seconds,
            }
        )
    return rows


def _over_layers(blocks: Blocks, **options: Any) -> tuple[float, float, float]:
    """Mean entropy of a block, squared error of all, seconds per million weights."""
    entropy = error = 0.0
    count = weights = 0
    started = time.perf_counter()
    done = [(rows, quantize_icq(rows, **options)) for rows in blocks.values()]
    seconds = time.perf_counter() - started
    for rows, quantized in done:
        entropy += float(quantized.block_entropy_bits.sum())
        error += _squared_error(rows, quantized)
        count, weights = count + rows.shape[0], weights + rows.numel()
    return entropy / count, error, seconds / weights * 1e6


def _squared_error(rows: Tensor, quantized: IcqTensor) -> float:
    return float((quantized.dequantize(torch.float64) - rows).square().sum())


def uniform_entropy_bits(levels: int, size: int) -> float:
    """Expected entropy of the histogram of ``size`` draws from an ideal code, which uses all levels equally.

    With c the count of one level, binomial: log2 size - levels E[c log2 c] / size. It stays below log2 of the levels,
    because a finite sample is never quite even.

    Args:
        levels: Number of codes.
        size: Weights a block.

    Returns:
        Bits.

    Example:
        >>> round(uniform_entropy_bits(16, 64), 3), round(uniform_entropy_bits(16, 10**6), 3)
        (3.82, 4.0)
    """
    p = 1 / levels
    total = 0.0
    for c in range(2, size + 1):
        log = math.lgamma(size + 1) - math.lgamma(c + 1) - math.lgamma(size - c + 1)
        log += c * math.log(p) + (size - c) * math.log1p(-p)
        if log > -745:
            total += math.exp(log) * c * math.log2(c)
        elif c > size * p:
            break
    return math.log2(size) - levels * total / size


def ceiling(
    models: Mapping[str, Blocks],
    *,
    bits: Sequence[int] = (2, 3, 4),
    n: int = 100,
    lam: float = 0.1,
    seed: int = 0,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """What entropies are reached beside what could be, and how much of the gain is choosing among noise.

    Args:
        models: Name -> its blocks. Independent normal numbers are added, as many as the first model has blocks.
        bits: Bits a code.
        n: Candidates on either side.
        lam: Width of the window.
        seed: Of the normal numbers and of the halves.
        progress: Show a progress bar.

    Returns:
        A row a model and number of bits: ``levels_bits`` (log2 of the levels), ``ideal_bits`` (`uniform_entropy_bits`),
        ``plain_bits`` and ``icq_bits`` (mean entropy of a block), ``gain_bits``; ``pooled_plain_bits`` and
        ``pooled_icq_bits`` (entropy of all codes of a layer together, mean over layers), ``pooled_gain_bits``;
        ``half_gain_bits`` and ``other_half_gain_bits``: the shift is chosen on one half of each block, and the gain over the
        median is counted on that half and on the other; and ``error_ratio``.
    """
    first = next(iter(models.values()))
    everything = {**models, NOISE: {NOISE: normal_blocks(first, seed=seed)}}
    size = next(iter(first.values())).shape[1]
    cases = [(name, blocks, k) for k in bits for name, blocks in everything.items()]
    rows = []
    for name, blocks, k in tqdm(cases, desc="ceiling", disable=not progress, leave=False):
        total = dict.fromkeys(("plain", "icq", "pooled_plain", "pooled_icq", "half", "other_half"), 0.0)
        errors = [0.0, 0.0]
        count = sum(part.shape[0] for part in blocks.values())
        for part in blocks.values():
            share = part.shape[0] / count
            done = quantize_icq(part, bits=k, objective="none"), quantize_icq(part, bits=k, n=n, lam=lam)
            for i, (label, quantized) in enumerate(zip(("plain", "icq"), done, strict=True)):
                total[label] += share * float(quantized.block_entropy_bits.mean())
                total[f"pooled_{label}"] += share * float(
                    code_entropy_bits(quantized.codes.flatten().long()[None], 2**k)[0]
                )
                errors[i] += _squared_error(part, quantized)
            half, other = half_gains(part, bits=k, n=n, lam=lam, seed=seed)
            total["half"] += share * half
            total["other_half"] += share * other
        rows.append(
            {
                "model": name,
                "bits": k,
                "levels_bits": float(k),
                "ideal_bits": uniform_entropy_bits(2**k, size),
                "plain_bits": total["plain"],
                "icq_bits": total["icq"],
                "gain_bits": total["icq"] - total["plain"],
                "pooled_plain_bits": total["pooled_plain"],
                "pooled_icq_bits": total["pooled_icq"],
                "pooled_gain_bits": total["pooled_icq"] - total["pooled_plain"],
                "half_gain_bits": total["half"],
                "other_half_gain_bits": total["other_half"],
                "error_ratio": errors[1] / errors[0] if errors[0] else 1.0,
            }
        )
    return rows


def half_gains(rows: Float[Tensor, "blocks size"], *, bits: int, n: int, lam: float, seed: int) -> tuple[float, float]:
    """Entropy gained over the median start, on the half of each block that chose the shift and on the other.

    A shift that suits the distribution of the block gains on both; one that suits the sample gains on the first only.

    Returns:
        Mean gains in bits.
    """
    values = codebook("nf", bits).to(rows.device)
    middles = borders(values)
    order = torch.randperm(rows.shape[1], generator=torch.Generator().manual_seed(seed)).to(rows.device)
    gains = torch.zeros(2, dtype=torch.float64)
    for part in torch.split(rows, 512):
        grid = Grid(extent(part), n=n, lam=lam, levels=values.numel(), search="shift", group_size=None)
        shift, scale, valid = grid.candidates(0, part.shape[0])
        halves = part[:, order[: rows.shape[1] // 2]], part[:, order[rows.shape[1] // 2 :]]
        candidates = Candidates(halves[0].sort(dim=1).values, shift, scale, valid, values, middles)
        best = best_listed(candidates, "entropy")[0].unsqueeze(1)
        middle = torch.full_like(best, n)
        for i, half in enumerate(halves):
            after, before = (
                code_entropy_bits(
                    torch.searchsorted(
                        code_borders(shift.gather(1, at)[:, 0], scale.gather(1, at)[:, 0], middles), half.contiguous()
                    ),
                    values.numel(),
                )
                for at in (best, middle)
            )
            gains[i] += float((after - before).sum())
    gained = (gains / rows.shape[0]).tolist()
    return gained[0], gained[1]
