"""The simulated experiments: each stage alone and both together, with means over seeds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lorascope.core.errors import InputError, unknown_name
from lorascope.core.provenance import collect
from lorascope.simulation._checks import check_pretrain, check_update, seeds_of
from lorascope.simulation._model import (
    DTYPES,
    check,
    generators,
    normal,
    place,
    symmetric_noise,
)
from lorascope.simulation._overlaps import overlaps, update_error
from lorascope.simulation._stages import (
    Machine,
    errors,
    first_stage,
    second_data,
    second_stage,
    target_update,
)
from lorascope.simulation.adam import Adam
from lorascope.simulation.finetune import FinetuneData, update_logits
from lorascope.theory._record import number, whole
from lorascope.theory.points import SimulationPoint

DATA = ("fresh", "reused", "recalibrated", "active")
GROUP_BYTES = 2**28
"""Tokens of the seeds that are simulated in one batch take at most this much memory."""


def simulate_pretrain(
    *,
    alpha: float | int,
    tokens: int,
    kappa0: float | int,
    noise: float | int,
    ridge: float | int,
    penalty: str = "nuclear",
    activation: str = "linear",
    optimiser: Adam | None = None,
    dim: int = 100,
    seeds: int | Sequence[int] = 8,
    device: str | torch.device | None = None,
    dtype: str = "float64",
    progress: bool = False,
) -> SimulationPoint:
    r"""Stage 1 at finite d: pre-train S on :math:`N = \alpha d^2` noisy sequences.

    Args:
        alpha: N / d^2.
        tokens: T.
        kappa0: Rank of the target over d.
        noise: Delta, the label noise.
        ridge: lambda of the nuclear penalty (kappa = 1), or lambda_F of the Frobenius one.
        penalty: ``nuclear`` (S >= 0) or ``frobenius`` (symmetric S).
        activation: ``linear`` or ``softmax``.
        optimiser: How to train by Adam; None for the minimiser itself (proximal or conjugate gradients).
        dim: d.
        seeds: Number of seeds (0, 1, ...) or the seeds themselves.
        device: Where to compute; the CPU by default.
        dtype: ``float64`` or ``float32``.
        progress: Show a progress bar.

    Returns:
        A point with ``Q`` = Tr S^2 / d, ``M`` = Tr(S S0) / d, ``Q0`` = Tr S0^2 / d, ``delta_eff`` = Delta/2 + Q0 - 2M + Q,
        ``delta_reuse`` (variance of the residual on the training sequences, linear only), ``error`` (of the noiseless
        target on fresh sequences), ``rank_fraction`` (eigenvalues of S above 1e-6 of the largest, over d).

    Raises:
        InputError: A value is out of range or unknown.

    Example:
        >>> point = simulate_pretrain(alpha=1.0, tokens=2, kappa0=1.0, noise=0.5, ridge=0.1, dim=12, seeds=2)
        >>> point.seeds, 1.0 < point.mean("Q") < 3.0
        (2, True)

    References:
        The model: arXiv 2606.05899; its spectral form: arXiv 2509.24914.
    """
    started = time.perf_counter()
    chosen = seeds_of(seeds)
    settings: dict[str, Any] = {"alpha": alpha, "tokens": tokens, "kappa0": kappa0, "noise": noise, "ridge": ridge}
    settings |= {"penalty": penalty, "activation": activation}
    check_pretrain(settings, dim, chosen, dtype, optimiser)
    machine = Machine(place(device), DTYPES[dtype])
    notes: list[str] = []

    def group(part: list[int]) -> dict[str, Tensor]:
        first = first_stage(settings, dim, part, machine, progress, optimiser)
        notes.extend(first.notes)
        return first.values

    samples = _grouped(group, chosen, alpha * dim**2 * tokens * dim)
    settings |= {} if optimiser is None else optimiser.to_dict()
    return _point("pretrain", settings, dim, samples, chosen, notes, started, dtype)


def simulate_finetune(
    *,
    alpha: float | int,
    tokens: int,
    ridge: float | int,
    noise: float | int,
    base_error: float | int = 0.0,
    rank: int = 1,
    start: str = "informed",
    starts: int = 4,
    optimiser: Adam | None = None,
    dim: int = 200,
    seeds: int | Sequence[int] = 8,
    device: str | torch.device | None = None,
    dtype: str = "float64",
    progress: bool = False,
) -> SimulationPoint:
    r"""Stage 2 at finite d with a synthetic residual: LoRA on :math:`N' = \alpha' d` sequences, linear activation.

    Args:
        alpha: N' / d.
        tokens: T.
        ridge: lambda'.
        noise: Dn, the variance of the residual that pre-training leaves.
        base_error: What pre-training adds to the test error, before the factor (T+1)/T.
        rank: Columns of the update and of its target.
        start: ``informed``, ``random``, ``spectral`` or ``best`` (the lowest training loss of spectral and random).
        starts: Random starts.
        optimiser: How to train by Adam; None for the minimiser itself (L-BFGS).
        dim: d.
        seeds: Number of seeds or the seeds themselves.
        device: Where to compute; the CPU by default.
        dtype: ``float64`` or ``float32``.
        progress: Show a progress bar (Adam only).

    Returns:
        A point with ``m``, ``q``, ``alignment`` = m / sqrt(q), ``train_loss`` (over d), ``test_error``, ``agreement``
        (share of starts within 1 % of the best loss). With rank r, m is the nuclear norm of W^T W* / (d r), which is free
        of the rotation that the loss does not see, and q = |W|^2 / (d r).

    Raises:
        InputError: A value is out of range or unknown.

    Example:
        >>> point = simulate_finetune(alpha=4.0, tokens=2, ridge=0.5, noise=0.5, dim=40, seeds=2)
        >>> point.mean("alignment") > 0.9
        True
    """
    started = time.perf_counter()
    chosen = seeds_of(seeds)
    settings: dict[str, Any] = {
        "alpha": alpha,
        "tokens": tokens,
        "ridge": ridge,
        "noise": noise,
        "base_error": base_error,
    }
    settings |= {"rank": rank, "start": start}
    lowest = {"noise": (noise, 0.0), "ridge": (ridge, 0.0), "base_error": (base_error, 0.0), "rank": (rank, 1)}
    whole("dim", dim)
    check(dim=dim, tokens=tokens, seeds=chosen, dtype=dtype, at_least={"alpha": (alpha, 1 / dim), **lowest})
    check_update(rank, start, starts, dim, optimiser)
    machine = Machine(place(device), DTYPES[dtype])
    count = round(alpha * dim)

    def group(part: list[int]) -> dict[str, Tensor]:
        x = normal(generators(part, "fine-tuning tokens"), (count, tokens, dim), machine.device, machine.dtype)
        w0 = target_update(part, dim, rank, machine)
        nu = symmetric_noise(generators(part, "residual"), count, tokens, noise, machine.device, machine.dtype)
        data = FinetuneData(x, torch.zeros_like(nu), update_logits(x, w0) + nu)
        found = second_stage(
            data, ridge, rank, start, w0, generators(part, "starts"), starts, "linear", optimiser, progress
        )
        values = overlaps(found.w, w0, found.a)
        error = (tokens + 1) / tokens * base_error + update_error(found.w, w0, tokens, found.a)
        more = {"train_loss": found.loss, "test_error": error}
        return {**values, **more, "agreement": torch.full_like(found.loss, found.agreement)}

    samples = _grouped(group, chosen, count * tokens * dim)
    settings |= {} if optimiser is None else optimiser.to_dict()
    return _point("finetune", settings, dim, samples, chosen, [], started, dtype)


def simulate_pipeline(
    *,
    alpha: float | int,
    tokens: int,
    kappa0: float | int,
    noise: float | int,
    ridge: float | int,
    alpha_finetune: float | int,
    ridge_finetune: float | int,
    data: str | Sequence[str] = "fresh",
    fraction: float | int = 0.1,
    penalty: str = "nuclear",
    activation: str = "linear",
    rank: int = 1,
    start: str = "informed",
    starts: int = 4,
    largest: bool = False,
    test_sequences: int = 4000,
    optimiser: Adam | None = None,
    solve_first: bool = False,
    dim: int = 100,
    seeds: int | Sequence[int] = 8,
    device: str | torch.device | None = None,
    dtype: str = "float64",
    progress: bool = False,
) -> list[SimulationPoint]:
    r"""Both stages at finite d: S is pre-trained, frozen, and fine-tuned on each kind of data.

    Args:
        alpha: N / d^2 of stage 1.
        tokens: T.
        kappa0: Rank of the target over d.
        noise: Delta.
        ridge: lambda (or lambda_F) of stage 1.
        alpha_finetune: N' / d of stage 2.
        ridge_finetune: lambda'.
        data: One or several of ``fresh`` (new sequences), ``reused`` (sequences of stage 1 with their label noise),
            ``recalibrated`` (fresh, with S times M / Q), ``active`` (the ``fraction`` of a pool of new sequences
            on which the frozen logits are smallest: their norm; with softmax that of the differences that matter).
        fraction: rho of ``active``.
        penalty: Of stage 1.
        activation: Of both stages.
        rank: Columns of the update.
        start: Of stage 2; see `simulate_finetune`.
        starts: Random starts.
        largest: Let ``active`` take the largest logits instead, which the theory does not describe well.
        test_sequences: Fresh sequences a seed for the test error of softmax; the linear one is exact.
        optimiser: How to train both stages by Adam; None for the minimisers themselves.
        solve_first: Let Adam train stage 2 only; S is the minimiser of stage 1.
        dim: d.
        seeds: Number of seeds or the seeds themselves.
        device: Where to compute; the CPU by default.
        dtype: ``float64`` or ``float32``.
        progress: Show a progress bar.

    Returns:
        A point for each kind of data, with the quantities of both stages. ``test_error`` is the error of the noiseless
        target on fresh sequences; ``test_error_overlaps`` (linear) is what Q, M, m and q say about it, and ``correction`` is
        the theory's leading term of their difference, 2 (T+1)/T tau (q - q0) / sqrt(d) with tau = Tr(S - S0) / d.

    Raises:
        InputError: A value is out of range or unknown.
    """
    started = time.perf_counter()
    chosen = seeds_of(seeds)
    kinds = [data] if isinstance(data, str) else list(data)
    for kind in kinds:
        if kind not in DATA:
            raise unknown_name("data", kind, DATA)
    settings: dict[str, Any] = {"alpha": alpha, "tokens": tokens, "kappa0": kappa0, "noise": noise, "ridge": ridge}
    settings |= {"penalty": penalty, "activation": activation}
    check_pretrain(settings, dim, chosen, dtype, None if solve_first else optimiser)
    number("fraction", fraction)
    lowest = {"ridge_finetune": (ridge_finetune, 0.0), "rank": (rank, 1), "test_sequences": (test_sequences, 1)}
    lowest |= {"alpha_finetune": (alpha_finetune, 1 / dim)}
    check(dim=dim, tokens=tokens, seeds=chosen, dtype=dtype, at_least=lowest)
    check_update(rank, start, starts, dim, optimiser)
    if not 0 < fraction <= 1:
        raise InputError(f"fraction {fraction} must be above 0 and at most 1")
    count = round(alpha_finetune * dim)
    if "reused" in kinds and count > round(alpha * dim**2):
        raise InputError(
            f"data 'reused' needs {count} sequences and stage 1 has {round(alpha * dim**2)}: lower alpha_finetune"
        )
    machine = Machine(place(device), DTYPES[dtype])
    found: dict[str, list[dict[str, Tensor]]] = {kind: [] for kind in kinds}
    notes: list[str] = []
    size = alpha * dim**2 * tokens * dim
    for part in _groups(chosen, size):
        first = first_stage(settings, dim, part, machine, progress, None if solve_first else optimiser)
        notes.extend(first.notes)
        for kind in kinds:
            given = second_data(first, kind, count, part, settings, fraction, largest, rank, machine)
            w0 = first.w0(part, rank, machine)
            sources = generators(part, f"starts {kind}")
            second = second_stage(
                given, ridge_finetune, rank, start, w0, sources, starts, activation, optimiser, progress
            )
            values = {**first.values, **overlaps(second.w, w0, second.a), "train_loss": second.loss}
            s = first.scaled(kind)
            values |= errors(s, first.s0, second, w0, part, tokens, activation, test_sequences, machine)
            found[kind].append(values)
    points = []
    for kind in kinds:
        whole = {**settings, "alpha_finetune": alpha_finetune, "ridge_finetune": ridge_finetune, "data": kind}
        if optimiser is not None:
            whole |= optimiser.to_dict() | {"solve_first": solve_first}
        whole |= {"rank": rank, "start": start} | (
            {"fraction": fraction, "largest": largest} if kind == "active" else {}
        )
        samples = {name: torch.cat([part[name] for part in found[kind]]).tolist() for name in found[kind][0]}
        points.append(_point("pipeline", whole, dim, samples, chosen, notes, started, dtype))
    return points


def _groups(seeds: list[int], numbers: float | int) -> list[list[int]]:
    """Seeds in groups whose tokens, ``numbers`` a seed, fit into `GROUP_BYTES`."""
    size = max(1, int(GROUP_BYTES / (8 * max(numbers, 1))))
    return [seeds[start : start + size] for start in range(0, len(seeds), size)]


def _grouped(
    work: Callable[[list[int]], dict[str, Tensor]], seeds: list[int], numbers: float | int
) -> dict[str, list[float]]:
    parts = [work(part) for part in _groups(seeds, numbers)]
    return {name: torch.cat([part[name] for part in parts]).double().tolist() for name in parts[0]}


def _point(
    stage: str,
    settings: dict[str, Any],
    dim: int,
    samples: dict[str, list[float]],
    seeds: list[int],
    notes: list[str],
    started: float,
    dtype: str,
) -> SimulationPoint:
    for name, values in samples.items():
        if not all(math.isfinite(value) for value in values):
            raise InputError(f"the simulation of {name} diverged at {settings}: raise ridge, or use dtype float64")
    return SimulationPoint(
        stage=stage,
        settings=settings,
        dim=dim,
        samples=samples,
        seconds=time.perf_counter() - started,
        notes=list(dict.fromkeys(notes)),
        provenance=collect(extra={"seeds": seeds, "dtype": dtype}),
    )
