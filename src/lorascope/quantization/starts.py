"""Does it hold that the median is where to start? Symmetry, normality and tails of real weights, and other starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lorascope.quantization.codebooks import borders, codebook
from lorascope.quantization.events import best_shift
from lorascope.quantization.grid import WINDOW_UNIT
from lorascope.quantization.icq import code_entropy_bits
from lorascope.quantization.search import Candidates, code_borders
from lorascope.quantization.studies import NOISE, Blocks, normal_blocks

STARTS = ("zero", "median", "mean", "midrange")


def shape_of(rows: Float[Tensor, "blocks size"]) -> dict[str, float]:
    """Symmetry, normality and tails of a layer's blocks.

    Args:
        rows: Blocks.

    Returns:
        ``off_centre``: mean over blocks of abs(mean - median) / standard deviation. ``skewness`` and ``excess_kurtosis`` of
        all weights together, in units of the layer's standard deviation. ``beyond_4_sigma``: share of weights further than
        four standard deviations from the layer's mean (normal: 0.000063). ``not_normal``: share of blocks that the test of
        D'Agostino and Pearson rejects at 5 % (normal: about 0.05). Blocks of one value count as off centre by 0 and as
        rejected.

    Example:
        >>> shape_of(torch.randn(4096, 64, generator=torch.Generator().manual_seed(0)))["not_normal"] < 0.08
        True
    """
    numbers = rows.double().cpu().numpy()
    spread = numbers.std(axis=1)
    varied = spread > 0
    away = np.abs(numbers.mean(axis=1) - np.median(numbers, axis=1))
    centred = numbers - numbers.mean()
    deviation = centred.std() or 1.0
    kept = numbers[varied]
    rejected = float((scipy.stats.normaltest(kept, axis=1).pvalue < 0.05).sum()) if len(kept) else 0.0
    return {
        "off_centre": float((away[varied] / spread[varied]).sum() / len(numbers)),
        "skewness": float((centred**3).mean() / deviation**3),
        "excess_kurtosis": float((centred**4).mean() / deviation**4 - 3) if varied.any() else 0.0,
        "beyond_4_sigma": float((np.abs(centred) > 4 * deviation).mean()),
        "not_normal": (rejected + float((~varied).sum())) / len(numbers),
    }


def start_entropies(
    rows: Float[Tensor, "blocks size"], *, bits: int = 4, n: int = 100, lam: float = 0.1
) -> dict[str, float]:
    """Mean entropy of a block for other starts than the median, as they are and with the same search around them.

    Args:
        rows: Blocks.
        bits: Bits a code.
        n: Candidates on either side.
        lam: Width of the window.

    Returns:
        ``NAME`` and ``NAME_searched`` for each of `STARTS`, in bits.
    """
    values = codebook("nf", bits).to(rows.device)
    middles = borders(values)
    found = {f"{name}{after}": 0.0 for name in STARTS for after in ("", "_searched")}
    steps = torch.arange(-n, n + 1, device=rows.device) / max(n, 1) * WINDOW_UNIT * lam
    for part in torch.split(rows, 512):
        ordered = part.sort(dim=1).values
        low, high = ordered[:, :1], ordered[:, -1:]
        starts = {
            "zero": torch.zeros_like(low),
            "median": part.median(dim=1, keepdim=True).values,
            "mean": part.mean(dim=1, keepdim=True),
            "midrange": (low + high) / 2,
        }
        for name, start in starts.items():
            shift = start + steps * torch.maximum(high - start, start - low)
            scale = torch.maximum(high - shift, shift - low)
            candidates = Candidates(ordered, shift, scale, torch.ones_like(shift, dtype=torch.bool), values, middles)
            best = best_shift(candidates, "entropy")[0] if n else torch.zeros(len(part), dtype=torch.long)
            for after, at in (("", torch.full_like(best, n)), ("_searched", best)):
                here = code_borders(shift.gather(1, at[:, None])[:, 0], scale.gather(1, at[:, None])[:, 0], middles)
                entropy = code_entropy_bits(torch.searchsorted(here, ordered), values.numel())
                found[name + after] += float(entropy.sum()) / rows.shape[0]
    return found


def median_start(
    models: Mapping[str, Blocks],
    *,
    bits: int = 4,
    n: int = 100,
    lam: float = 0.1,
    seed: int = 0,
    progress: bool = False,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Shape of the weights and entropies of starts, by model and kind of layer, with normal numbers beside them.

    Args:
        models: Name -> its blocks.
        bits: Bits a code.
        n: Candidates on either side.
        lam: Width of the window.
        seed: Of the normal numbers.
        progress: Show a progress bar.

    Returns:
        Rows by model and kind of layer (the last part of its name), and rows by layer. Means over layers; both with the keys
        of `shape_of` and `start_entropies`.
    """
    everything = {**models, NOISE: {NOISE: normal_blocks(next(iter(models.values())), seed=seed)}}
    layers: list[dict[str, Any]] = []
    cases = [(model, name, rows) for model, blocks in everything.items() for name, rows in blocks.items()]
    for model, name, rows in tqdm(cases, desc="layers", disable=not progress, leave=False):
        found = {**shape_of(rows), **start_entropies(rows, bits=bits, n=n, lam=lam)}
        layers.append({"model": model, "layer": name, "kind": name.rpartition(".")[2], **found})
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for layer in layers:
        groups.setdefault((layer["model"], "all"), []).append(layer)
        groups.setdefault((layer["model"], layer["kind"]), []).append(layer)
    records = []
    for (model, kind), members in groups.items():
        if kind == "all" and len(members) == 1:
            continue
        records.append({"model": model, "kind": kind, "layers": len(members), **_means(members)})
    return records, layers


def _means(members: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    keys = [key for key in members[0] if isinstance(members[0][key], float)]
    return {key: float(np.mean([member[key] for member in members])) for key in keys}
