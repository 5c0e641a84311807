"""The simulated experiments: each stage alone and both together, with means over seeds."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lorascope.core.errors import InputError, unknown_name
from lorascope.core.provenance import collect
from lorascope.simulation._model import (
    DTYPES,
    Sequences,
    check,
    generators,
    logits,
    loss_and_slope,
    normal,
    place,
    symmetric_noise,
    target_matrix,
)
from lorascope.simulation._overlaps import Q0_UPDATE, matrix_error, overlaps, update_error
from lorascope.simulation.adam import ADAM_STARTS, Adam, factor_pair_logits, train_pretrained, train_update
from lorascope.simulation.finetune import STARTS, FinetuneData, Update, fine_tune, update_logits
from lorascope.simulation.pretrain import Solution, solve_nuclear, solve_ridge
from lorascope.theory._record import number, whole
from lorascope.theory.points import SimulationPoint

PENALTIES = ("nuclear", "frobenius")
DATA = ("fresh", "reused", "recalibrated", "active")
GROUP_BYTES = 2**28
"""Tokens of the seeds that are simulated in one batch take at most this much memory."""


@dataclass(frozen=True)
class _Machine:
    device: torch.device
    dtype: torch.dtype


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
    chosen = _seeds(seeds)
    settings: dict[str, Any] = {"alpha": alpha, "tokens": tokens, "kappa0": kappa0, "noise": noise, "ridge": ridge}
    settings |= {"penalty": penalty, "activation": activation}
    _check_pretrain(settings, dim, chosen, dtype, optimiser)
    machine = _Machine(place(device), DTYPES[dtype])
    notes: list[str] = []

    def group(part: list[int]) -> dict[str, Tensor]:
        first = _first_stage(settings, dim, part, machine, progress, optimiser)
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
    chosen = _seeds(seeds)
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
    _check_update(rank, start, starts, dim, optimiser)
    machine = _Machine(place(device), DTYPES[dtype])
    count = round(alpha * dim)

    def group(part: list[int]) -> dict[str, Tensor]:
        x = normal(generators(part, "fine-tuning tokens"), (count, tokens, dim), machine.device, machine.dtype)
        w0 = target_update(part, dim, rank, machine)
        nu = symmetric_noise(generators(part, "residual"), count, tokens, noise, machine.device, machine.dtype)
        data = FinetuneData(x, torch.zeros_like(nu), update_logits(x, w0) + nu)
        found = _second_stage(
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
    chosen = _seeds(seeds)
    kinds = [data] if isinstance(data, str) else list(data)
    for kind in kinds:
        if kind not in DATA:
            raise unknown_name("data", kind, DATA)
    settings: dict[str, Any] = {"alpha": alpha, "tokens": tokens, "kappa0": kappa0, "noise": noise, "ridge": ridge}
    settings |= {"penalty": penalty, "activation": activation}
    _check_pretrain(settings, dim, chosen, dtype, None if solve_first else optimiser)
    number("fraction", fraction)
    lowest = {"ridge_finetune": (ridge_finetune, 0.0), "rank": (rank, 1), "test_sequences": (test_sequences, 1)}
    lowest |= {"alpha_finetune": (alpha_finetune, 1 / dim)}
    check(dim=dim, tokens=tokens, seeds=chosen, dtype=dtype, at_least=lowest)
    _check_update(rank, start, starts, dim, optimiser)
    if not 0 < fraction <= 1:
        raise InputError(f"fraction {fraction} must be above 0 and at most 1")
    count = round(alpha_finetune * dim)
    if "reused" in kinds and count > round(alpha * dim**2):
        raise InputError(
            f"data 'reused' needs {count} sequences and stage 1 has {round(alpha * dim**2)}: lower alpha_finetune"
        )
    machine = _Machine(place(device), DTYPES[dtype])
    found: dict[str, list[dict[str, Tensor]]] = {kind: [] for kind in kinds}
    notes: list[str] = []
    size = alpha * dim**2 * tokens * dim
    for part in _groups(chosen, size):
        first = _first_stage(settings, dim, part, machine, progress, None if solve_first else optimiser)
        notes.extend(first.notes)
        for kind in kinds:
            given = _second_data(first, kind, count, part, settings, fraction, largest, rank, machine)
            w0 = first.w0(part, rank, machine)
            sources = generators(part, f"starts {kind}")
            second = _second_stage(
                given, ridge_finetune, rank, start, w0, sources, starts, activation, optimiser, progress
            )
            values = {**first.values, **overlaps(second.w, w0, second.a), "train_loss": second.loss}
            s = first.scaled(kind)
            values |= _errors(s, first.s0, second, w0, part, tokens, activation, test_sequences, machine)
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


_KEPT: ContextVar[tuple[int, dict[Any, _First]] | None] = ContextVar("kept", default=None)


@contextlib.contextmanager
def keep_pretrained(most: int = 1) -> Iterator[None]:
    """Within this block, pre-trained matrices are kept for simulations that differ in stage 2 only.

    Args:
        most: Stages kept, the newest; each takes the memory of its sequences.

    Example:
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
class _First:
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

    def w0(self, part: list[int], rank: int, machine: _Machine) -> Tensor:
        """The target's update."""
        return target_update(part, self.s.shape[-1], rank, machine)


def _second_stage(
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


def _first_stage(
    settings: dict[str, Any],
    dim: int,
    part: list[int],
    machine: _Machine,
    progress: bool,
    optimiser: Adam | None = None,
) -> _First:
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
    machine: _Machine,
    progress: bool,
    optimiser: Adam | None = None,
) -> _First:
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
    return _First(data, s, s0, values, notes)


def _second_data(
    first: _First,
    kind: str,
    count: int,
    part: list[int],
    settings: dict[str, Any],
    fraction: float | int,
    largest: bool,
    rank: int,
    machine: _Machine,
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


def _errors(
    s: Tensor,
    s0: Tensor,
    update: Update,
    w0: Tensor,
    part: list[int],
    tokens: int,
    activation: str,
    test_sequences: int,
    machine: _Machine,
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


def target_update(part: Sequence[int], dim: int, rank: int, machine: _Machine) -> Float[Tensor, "b d r"]:
    """W*: orthogonal columns of squared norm d, so that the target's overlaps are exact."""
    drawn = normal(generators(part, "target update"), (dim, rank), machine.device, machine.dtype)
    q, r = torch.linalg.qr(drawn)
    columns: Tensor = q * torch.diagonal(r, dim1=-2, dim2=-1).sign()[:, None, :]
    return columns * math.sqrt(dim * Q0_UPDATE)


def _trace(a: Tensor, b: Tensor) -> Tensor:
    total: Tensor = (a * b).sum((-2, -1))
    return total


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    if isinstance(seeds, int):
        if seeds < 1:
            raise InputError(f"seeds {seeds} must be at least 1")
        return list(range(seeds))
    return list(seeds)


def _check_pretrain(
    settings: dict[str, Any], dim: int, seeds: list[int], dtype: str, optimiser: Adam | None = None
) -> None:
    if whole("dim", dim) < 1:
        raise InputError(f"dim {dim} must be at least 1")
    lowest: dict[str, tuple[float | int, float | int]] = {"alpha": (settings["alpha"], 1 / dim**2)}
    lowest |= {
        "kappa0": (settings["kappa0"], 0.0),
        "noise": (settings["noise"], 0.0),
        "ridge": (settings["ridge"], 0.0),
    }
    check(
        dim=dim,
        tokens=settings["tokens"],
        seeds=seeds,
        activation=settings["activation"],
        dtype=dtype,
        at_least=lowest,
    )
    if settings["kappa0"] == 0:
        raise InputError("kappa0 0 leaves no target: give a number above 0")
    if settings["penalty"] not in PENALTIES:
        raise unknown_name("penalty", settings["penalty"], PENALTIES)
    if settings["penalty"] == "frobenius":
        if optimiser is not None:
            raise InputError(
                "Adam trains factors, whose decay is penalty 'nuclear': use that, or leave the optimiser out"
            )
        if settings["activation"] != "linear":
            raise InputError("penalty 'frobenius' is solved with activation 'linear' only: use penalty 'nuclear'")
        if settings["ridge"] == 0:
            raise InputError("ridge 0 with penalty 'frobenius' has no unique solution: give a number above 0")


def _check_update(rank: int, start: str, starts: int, dim: int, optimiser: Adam | None = None) -> None:
    known = STARTS if optimiser is None else ADAM_STARTS
    if start not in known:
        raise unknown_name("start", start, known)
    if not 1 <= rank <= dim:
        raise InputError(f"rank {rank} must be from 1 to dim {dim}")
    if starts < 1:
        raise InputError(f"starts {starts} must be at least 1")


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
