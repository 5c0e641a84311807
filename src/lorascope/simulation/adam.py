"""Both stages as PyTorch users train them: factors, weight decay, Adam, minibatches, a random start."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from lorascope.core.errors import InputError, unknown_name
from lorascope.simulation._model import Sequences, adjoint, logits, loss_and_slope, normal
from lorascope.simulation.finetune import FinetuneData, Update
from lorascope.simulation.pretrain import Solution

FACTORS = ("lora", "tied")
ADAM_STARTS = ("informed", "random", "spectral")


@dataclass(frozen=True, kw_only=True)
class Adam:
    r"""How to train by Adam. The rate falls to zero along a cosine; all entries of the factors are of order one.

    Attributes:
        factors: ``lora``: the update is :math:`B A^T` with B zero and A normal at a random start, as PEFT has it, and the
            penalty :math:`(\lambda'/2)(|A|^2 + |B|^2)`. ``tied``: :math:`W W^T` with :math:`\lambda' |W|^2`, the theory's
            form. Stage 1 is always tied, :math:`S = W W^T / \sqrt{p d}`.
        rate: Learning rate at the start.
        steps: Updates of each stage.
        batch: Sequences in a minibatch; None for all of them.
        kappa: Columns of W in stage 1 over d; from 1 on it is the nuclear penalty of the theory.

    Raises:
        InputError: A value is out of range or unknown.
    """

    factors: str = "lora"
    rate: float = 0.05
    steps: int = 1000
    batch: int | None = None
    kappa: float = 1.0

    def __post_init__(self) -> None:
        if self.factors not in FACTORS:
            raise unknown_name("factors", self.factors, FACTORS)
        for name, value in {"rate": self.rate, "kappa": self.kappa}.items():
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} {value} must be a number above 0")
        if self.steps < 1:
            raise InputError(f"steps {self.steps} must be at least 1")
        if self.batch is not None and self.batch < 1:
            raise InputError(f"batch {self.batch} must be at least 1; leave it out to train on all sequences at once")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping, with ``optimiser`` as the name of the method."""
        return {"optimiser": "adam", **asdict(self)}


def factor_pair_logits(x: Tensor, b: Tensor, a: Tensor) -> Float[Tensor, "b n t t"]:
    r""":math:`x_a^T B A^T x_b / d - \delta_{ab} \mathrm{Tr}(B A^T) / d`, with gradients."""
    batch, count, tokens, dim = x.shape
    flat = x.reshape(batch, count * tokens, dim)
    left, right = ((flat @ factor).view(batch, count, tokens, -1) for factor in (b, a))
    trace = (b * a).sum((-2, -1)) / dim
    eye = torch.eye(tokens, device=x.device, dtype=x.dtype)
    return left @ right.mT / dim - trace[:, None, None, None] * eye


def train_update(
    data: FinetuneData,
    ridge: float | int,
    adam: Adam,
    *,
    rank: int,
    start: str,
    informed: Float[Tensor, "b d r"],
    sources: Sequence[torch.Generator],
    activation: str = "linear",
    progress: bool = False,
) -> Update:
    """Stage 2 by Adam; see `lorascope.simulation.finetune.fine_tune` for the loss.

    Args:
        data: Sequences with frozen and target logits.
        ridge: lambda'.
        adam: How to train.
        rank: Columns of the factors.
        start: ``random`` (what people do), ``informed`` (at the target) or ``spectral``.
        informed: The target W*.
        sources: A generator a seed, for the random start and the order of the minibatches.
        activation: ``linear`` or ``softmax``.
        progress: Show a progress bar.

    Returns:
        The factors of each seed with the training loss over d.

    Raises:
        InputError: The start is unknown.
    """
    if start not in ADAM_STARTS:
        raise unknown_name("start", start, ADAM_STARTS)
    _, count, _, dim = data.x.shape
    sources = list(sources)
    tied = adam.factors == "tied"
    if start == "random":
        drawn = normal(sources, (dim, rank), data.x.device, data.x.dtype)
        first = drawn if tied else torch.zeros_like(drawn)
    elif start == "informed":
        first = drawn = informed
    else:
        _, vectors = torch.linalg.eigh(adjoint(data.x, data.y - data.z))
        first = drawn = vectors[..., -rank:] * math.sqrt(dim)
    b = nn.Parameter(first.clone())
    a = b if tied else nn.Parameter(drawn.clone())

    def loss(rows: Tensor | None) -> Tensor:
        x, z, y = (take(part, rows) for part in (data.x, data.z, data.y))
        scale = 1.0 if rows is None else count / rows.shape[1]
        fit = loss_and_slope(z + factor_pair_logits(x, b, a), y, activation)[0].sum(1) * scale
        return fit + ridge / 2 * (b.square().sum((-2, -1)) + a.square().sum((-2, -1)))

    _train([b] if tied else [b, a], loss, adam, count, sources, "stage 2 (Adam)", progress)
    with torch.no_grad():
        final = loss(None) / dim
    return Update(b.detach(), final, 1.0, 1.0, None if tied else a.detach())


def train_pretrained(
    data: Sequences,
    ridge: float | int,
    adam: Adam,
    *,
    sources: Sequence[torch.Generator],
    activation: str = "linear",
    progress: bool = False,
) -> Solution:
    r"""Stage 1 by Adam on :math:`S = W W^T / \sqrt{p d}` with the penalty :math:`d \tilde\lambda \mathrm{Tr} S`.

    Args:
        data: Training sequences.
        ridge: :math:`\tilde\lambda`.
        adam: How to train.
        sources: A generator a seed, for the start (half a standard normal) and the minibatches.
        activation: ``linear`` or ``softmax``.
        progress: Show a progress bar.

    Returns:
        S and its logits; ``change`` is the share by which the loss fell in the last tenth of the steps.
    """
    _, count, _, dim = data.x.shape
    sources = list(sources)
    width = max(1, round(adam.kappa * dim))
    w = nn.Parameter(0.5 * normal(sources, (dim, width), data.x.device, data.x.dtype))
    scale = 1 / math.sqrt(width)  # `factor_pair_logits` divides by d; the logits of S are W W^T / (d sqrt(p))

    def loss(rows: Tensor | None) -> Tensor:
        x, y = take(data.x, rows), take(data.y, rows)
        share = 1.0 if rows is None else count / rows.shape[1]
        z = factor_pair_logits(x, w, w) * scale
        fit = loss_and_slope(z, y, activation)[0].sum(1) * share
        return fit + ridge * dim * w.square().sum((-2, -1)) / math.sqrt(width * dim)

    change = _train([w], loss, adam, count, sources, "stage 1 (Adam)", progress)
    s = w.detach() @ w.detach().mT / math.sqrt(width * dim)
    return Solution(s, logits(data.x, s), adam.steps, change, True)


def take(values: Tensor, rows: Tensor | None) -> Tensor:
    """Some sequences of each seed: ``rows`` of (b, k), or all."""
    if rows is None:
        return values
    return values[torch.arange(values.shape[0], device=values.device)[:, None], rows]


def _train(
    parameters: list[nn.Parameter],
    loss: Callable[[Tensor | None], Tensor],
    adam: Adam,
    count: int,
    sources: list[torch.Generator],
    label: str,
    progress: bool,
) -> float:
    """Adam acts on each number by itself, so that seeds that are trained together do not touch each other."""
    optimiser = torch.optim.Adam(parameters, lr=adam.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, adam.steps)
    size = count if adam.batch is None else min(adam.batch, count)
    order: Tensor | None = None
    place = count
    near_end, before = adam.steps - max(1, adam.steps // 10), math.nan
    with torch.enable_grad(), tqdm(total=adam.steps, desc=label, unit="step", disable=not progress) as bar:
        for step in range(adam.steps):
            rows = None
            if size < count:
                if place + size > count:
                    order = torch.stack([torch.randperm(count, generator=source) for source in sources])
                    order, place = order.to(parameters[0].device), 0
                assert order is not None
                rows = order[:, place : place + size]
                place += size
            if step == near_end:
                with torch.no_grad():
                    before = float(loss(None).sum())
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss(rows).sum(), parameters), strict=True):
                parameter.grad = gradient
            optimiser.step()
            schedule.step()
            bar.update()
    with torch.no_grad():
        after = float(loss(None).sum())
    return abs(before - after) / max(abs(after), 1e-300)
