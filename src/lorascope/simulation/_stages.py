"""What a simulation is made of: pre-training of a group of seeds, the data of stage 2, LoRA on them, and the errors."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lorascope.simulation._model import (
    Sequences,
    generators,
    logits,
    loss_and_slope,
    normal,
    symmetric_noise,
    target_matrix,
)
from lorascope.simulation._overlaps import Q0_UPDATE, matrix_error, update_error
from lorascope.simulation.adam import Adam, factor_pair_logits, train_pretrained, train_update
from lorascope.simulation.finetune import FinetuneData, Update, fine_tune, update_logits
from lorascope.simulation.pretrain import Solution, solve_nuclear, solve_ridge


@dataclass(frozen=True)
class Machine:
    device: torch.device
    dtype: torch.dtype


_KEPT: ContextVar[tuple[int, dict[Any, First]] | None] = ContextVar("kept", default=None)


@contextlib.contextmanager
def keep_pretrained(most: int = 1) -> Iterator[None]:
    """Within this block, pre-trained matrices are kept for simulations that differ in stage 2 only.

    Args:
        most: Stages kept, the newest; each takes the memory of its sequences.

    Example:
        >>> from lorascope.simulation import simulate_pipeline
        >>> common = {"alpha": 1.0, "tokens": 1, "kappa0": 1.0, "noise": 0.5, "ridge": 0.1, "dim": 8, "seeds": 1}
        >>> with keep_pretrained():
        ...     points = [simulate_pipeline(**common, alpha_finetune=a, ridge_finetune=0.5)[0] for a in (2.0, 4.0)]
        >>> points[0].samples["Q"] == points[1].samples["Q"]
        True
    """
    token = _KEPT.set((most, {}))
    try:
        yield
    finally:
        _KEPT.reset(token)


@dataclass(frozen=True)
class First:
    """Stage 1 of a group of seeds."""

    data: Sequences
    s: Float[Tensor, "b d d"]
    s0: Float[Tensor, "b d d"]
    values: dict[str, Tensor]
    notes: list[str]

    def scaled(self, kind: str) -> Tensor:
        """The frozen matrix of a kind of data."""
        beta = self.values["M"] / self.values["Q"].clamp_min(1e-12)
        return self.s * beta[:, None, None] if kind == "recalibrated" else self.s

    def w0(self, part: list[int], rank: int, machine: Machine) -> Tensor:
        """The target's update."""
        return target_update(part, self.s.shape[-1], rank, machine)


def second_stage(
    data: FinetuneData,
    ridge: float | int,
    rank: int,
    start: str,
    informed: Tensor,
    sources: list[torch.Generator],
    starts: int,
    activation: str,
    optimiser: Adam | None,
    progress: bool,
) -> Update:
    """The minimiser, or what Adam makes of it."""
    common: dict[str, Any] = {"rank": rank, "start": start, "informed": informed, "sources": sources}
    if optimiser is not None:
        return train_update(data, ridge, optimiser, **common, activation=activation, progress=progress)
    return fine_tune(data, ridge, **common, starts=starts, activation=activation)


def first_stage(
    settings: dict[str, Any],
    dim: int,
    part: list[int],
    machine: Machine,
    progress: bool,
    optimiser: Adam | None = None,
) -> First:
    """Stage 1 of some seeds, kept where `keep_pretrained` asks for it."""
    kept = _KEPT.get()
    if kept is None:
        return _solve_first(settings, dim, part, machine, progress, optimiser)
    most, known = kept
    key = (tuple(sorted(settings.items())), dim, tuple(part), machine, optimiser)
    if key not in known:
        while len(known) >= most:
            known.pop(next(iter(known)))
        known[key] = _solve_first(settings, dim, part, machine, progress, optimiser)
    return known[key]


def _solve_first(
    settings: dict[str, Any],
    dim: int,
    part: list[int],
    machine: Machine,
    progress: bool,
    optimiser: Adam | None = None,
) -> First:
    tokens, noise, activation = settings["tokens"], settings["noise"], settings["activation"]
    count = round(settings["alpha"] * dim**2)
    where = (machine.device, machine.dtype)
    s0 = target_matrix(generators(part, "target"), dim, settings["kappa0"], *where)
    x = normal(generators(part, "tokens"), (count, tokens, dim), *where)
    clean = logits(x, s0)
    xi = symmetric_noise(generators(part, "labels"), count, tokens, noise / 2, *where)
    data = Sequences(x, clean + xi, clean)
    found: Solution
    if optimiser is not None:
        sources = generators(part, "stage 1 start")
        found = train_pretrained(
            data, settings["ridge"], optimiser, sources=sources, activation=activation, progress=progress
        )
    elif settings["penalty"] == "frobenius":
        found = solve_ridge(data, settings["ridge"], progress=progress)
    else:
        found = solve_nuclear(data, settings["ridge"], activation=activation, progress=progress)
    s = found.s
    big_q, big_m, q0 = (_trace(a, b) / dim for a, b in ((s, s), (s, s0), (s0, s0)))
    eigen = torch.linalg.eigvalsh(s)
    high = eigen > 1e-6 * eigen.abs().max(1, keepdim=True).values.clamp_min(1e-12)
    values = {"Q": big_q, "M": big_m, "Q0": q0, "delta_eff": noise / 2 + q0 - 2 * big_m + big_q}
    values["rank_fraction"] = high.to(s.dtype).mean(1)
    if activation == "linear":
        values["delta_reuse"] = (found.z - data.y).square().mean((1, 2, 3)) * tokens / (tokens + 1)
        values["error"] = (tokens + 1) / tokens * (q0 - 2 * big_m + big_q)
    notes = [] if found.converged else [f"stage 1 stopped after {found.iterations} steps (change {found.change:.1e})"]
    return First(data, s, s0, values, notes)


def second_data(
    first: First,
    kind: str,
    count: int,
    part: list[int],
    settings: dict[str, Any],
    fraction: float | int,
    largest: bool,
    rank: int,
    machine: Machine,
) -> FinetuneData:
    """Sequences of stage 2 with the frozen logits and the targets."""
    tokens, dim, where = settings["tokens"], first.s.shape[-1], (machine.device, machine.dtype)
    s = first.scaled(kind)
    if kind == "reused":
        x, y = first.data.x[:, :count], first.data.y[:, :count]
    else:
        pool = math.ceil(count / fraction) if kind == "active" else count
        x = normal(generators(part, "fine-tuning tokens"), (pool, tokens, dim), *where)
        if kind == "active":
            score = _uncertainty(logits(x, s), settings["activation"])
            order = score.argsort(1, descending=largest)[:, :count]
            x = x[torch.arange(len(part), device=x.device)[:, None], order]
        xi = symmetric_noise(generators(part, "fine-tuning labels"), count, tokens, settings["noise"] / 2, *where)
        y = logits(x, first.s0) + xi
    w0 = first.w0(part, rank, machine)
    return FinetuneData(x, logits(x, s), y + update_logits(x, w0))


def _uncertainty(z: Tensor, activation: str) -> Tensor:
    """Squared norm of the frozen logits; with softmax of their differences to the row's mean, which alone matter."""
    if activation == "softmax":
        z = z - z.mean(-1, keepdim=True)
    return z.square().sum((-2, -1))


def errors(
    s: Tensor,
    s0: Tensor,
    update: Update,
    w0: Tensor,
    part: list[int],
    tokens: int,
    activation: str,
    test_sequences: int,
    machine: Machine,
) -> dict[str, Tensor]:
    """Error of the noiseless target on fresh sequences: exact if linear, by sampling with softmax."""
    dim = s.shape[-1]
    w, a = update.w, update.a
    product = w @ (w if a is None else a).mT
    if activation == "linear":
        gap = s - s0 + (product - w0 @ w0.mT) / math.sqrt(dim)
        tau = torch.diagonal(s - s0, dim1=-2, dim2=-1).sum(-1) / dim
        grown = (torch.diagonal(product, dim1=-2, dim2=-1).sum(-1) - w0.square().sum((-2, -1))) / dim
        return {
            "test_error": matrix_error(gap, tokens),
            "test_error_overlaps": matrix_error(s - s0, tokens) + update_error(w, w0, tokens, a),
            "correction": 2 * (tokens + 1) / tokens * tau * grown / math.sqrt(dim),
        }
    x = normal(generators(part, "test tokens"), (test_sequences, tokens, dim), machine.device, machine.dtype)
    change = update_logits(x, w) if a is None else factor_pair_logits(x, w, a)
    student, target = logits(x, s) + change, logits(x, s0) + update_logits(x, w0)
    return {"test_error": loss_and_slope(student, target, activation)[0].mean(1)}


def target_update(part: Sequence[int], dim: int, rank: int, machine: Machine) -> Float[Tensor, "b d r"]:
    """W*: orthogonal columns of squared norm d, so that the target's overlaps are exact."""
    drawn = normal(generators(part, "target update"), (dim, rank), machine.device, machine.dtype)
    q, r = torch.linalg.qr(drawn)
    columns: Tensor = q * torch.diagonal(r, dim1=-2, dim2=-1).sign()[:, None, :]
    return columns * math.sqrt(dim * Q0_UPDATE)


def _trace(a: Tensor, b: Tensor) -> Tensor:
    total: Tensor = (a * b).sum((-2, -1))
    return total
