"""The theory's value for each quantity of a simulation, under the simulation's names."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from lorascope.core.errors import InputError
from lorascope.theory._record import Q0_UPDATE, whole
from lorascope.theory.finetuned import FineTuned
from lorascope.theory.finetuning import finetune, finetune_after
from lorascope.theory.points import SimulationPoint
from lorascope.theory.pretraining import Pretrained, pretrain

STAGE1 = ("alpha", "tokens", "kappa0", "noise", "ridge", "penalty", "activation")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the theory says about a simulated point.

    Attributes:
        values: Quantity of the simulation -> prediction, in the limit of large d, but for ``correction``.
        warnings: Why they are not to be trusted.
    """

    values: dict[str, float]
    warnings: list[str] = field(default_factory=list)


def predict(point: SimulationPoint, *, samples: int | None = None) -> Prediction:
    """The theory's value for each quantity that a simulated point has and the theory describes.

    Args:
        point: Of `lorascope.simulation`, or read from a file.
        samples: Quasi-random points.

    Returns:
        Predictions under the names of the point's samples.

    Raises:
        InputError: The theory of rank 1 does not describe this setting.

    Example:
        >>> point = SimulationPoint(
        ...     stage="pretrain",
        ...     settings={"alpha": 0.1, "tokens": 3, "kappa0": 1.0, "noise": 0.5, "ridge": 0.1},
        ...     dim=40,
        ...     samples={"Q": [1.3]},
        ... )
        >>> round(predict(point).values["Q"], 3)
        1.268
    """
    given = point.settings
    if given.get("rank", 1) != 1:
        raise InputError(f"rank {given['rank']} is not described by the theory of rank 1: use rank 1")
    values: dict[str, float] = {}
    words: list[str] = []
    more: dict[str, Any] = {} if samples is None else {"samples": samples}
    if point.stage == "finetune":
        names = ("alpha", "tokens", "ridge", "noise", "base_error")
        second = finetune(**{name: given[name] for name in names if name in given}, **more)
        values |= _second(second)
        words = second.warnings
    else:
        first = pretrain(**{name: given[name] for name in STAGE1 if name in given}, **more)
        values |= _first(first)
        words = first.warnings
        if point.stage == "pipeline":
            data = given.get("data", "fresh")
            second = finetune_after(
                first,
                alpha=given["alpha_finetune"],
                ridge=given["ridge_finetune"],
                data=data,
                fraction=given.get("fraction", 0.1),
                largest=given.get("largest", False),
                dim=point.dim,
                **more,
            )
            values |= _second(second)
            if first.activation == "linear":
                values["test_error_overlaps"] = second.test_error
                values["correction"] = finite_size(first, second, point.dim)
            words = second.warnings
    return Prediction(
        values={name: value for name, value in values.items() if name in point.samples}, warnings=list(words)
    )


def finite_size(first: Pretrained, second: FineTuned, dim: int) -> float:
    r"""The leading term that finite d adds to the linear test error, :math:`2 \tfrac{T+1}{T} \tau (q - q_0) / \sqrt d`.

    :math:`\tau = \mathrm{Tr}(S - S_0)/d`. On fresh data other terms of the same size cancel
    part of it, so that it helps with reused data at most.

    Args:
        first: Stage 1.
        second: Stage 2.
        dim: d.

    Example:
        >>> first = pretrain(alpha=0.3, tokens=2, kappa0=0.5, noise=0.5, ridge=0.03)
        >>> second = finetune_after(first, alpha=3.0, ridge=0.5, data="reused", samples=512)
        >>> abs(finite_size(first, second, 200)) < 0.05
        True
    """
    if whole("dim", dim) < 2:
        raise InputError(f"dim {dim} must be at least 2")
    scale = first.beta if second.data == "recalibrated" else 1.0
    tau = scale * first.trace - math.sqrt(first.kappa0)
    return 2 * (first.tokens + 1) / first.tokens * tau * (second.q - Q0_UPDATE) / math.sqrt(dim)


def _first(found: Pretrained) -> dict[str, float]:
    names = ("Q", "M", "Q0", "delta_eff", "delta_reuse", "error", "rank_fraction")
    return {name: getattr(found, name) for name in names}


def _second(found: FineTuned) -> dict[str, float]:
    return {name: getattr(found, name) for name in ("m", "q", "alignment", "train_loss", "test_error")}
