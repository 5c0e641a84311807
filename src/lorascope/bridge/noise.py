"""What a frozen model leaves of a multiple-choice task: residual variances, on the scale of the theory's effective noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.core.errors import DataError, InputError

Row = Mapping[str, Any]
"""A scored question: ``answer`` (index of the right choice) and ``log_likelihoods`` of the choices, in nats."""


@dataclass(frozen=True, kw_only=True)
class EffectiveNoise:
    r"""Residual variances of a frozen model on a task.

    The theory's noise Dn is the variance of target logits minus frozen logits that no update can explain. A real task shows
    labels, not target logits; so the residual is taken of the probabilities over the choices, :math:`p_{ic} - y_{ic}` with
    y one-hot, and what an update can explain is read off the largest run.

    Attributes:
        frozen: Mean of :math:`(p_{ic} - y_{ic})^2` over questions i and choices c, of the frozen model.
        frozen_error: Its standard error over questions.
        reference: The same of the largest run: an upper bound of what no update of this kind explains.
        reference_error: Its standard error.
        signal: ``frozen`` minus ``reference``: what the largest run explained.
        signal_error: Standard error of that difference over the same questions.
        noise: ``reference / signal``, the theory's Dn in units in which the update's own logits have variance 1 (q0 = 1);
            an upper bound as ``reference`` is. None if the signal is not above two of its standard errors.
        uniform: Residual variance of a model that finds all choices equally likely.
        shift: Mean square of the change of the choices' logits from frozen model to largest run, each question's mean
            taken out, in nats squared.
        questions: Number of questions.
    """

    frozen: float
    frozen_error: float
    reference: float
    reference_error: float
    signal: float
    signal_error: float
    noise: float | None
    uniform: float
    shift: float
    questions: int

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return asdict(self)


def centred(row: Row) -> NDArray[np.float64]:
    """Log-likelihoods of the choices without their mean, which the softmax over choices does not see."""
    values = np.asarray(row["log_likelihoods"], dtype=np.float64)
    found: NDArray[np.float64] = values - values.mean()
    return found


def residual(row: Row) -> float:
    """Mean over choices of (p - y)^2, y being 1 at the right answer.

    Example:
        >>> residual({"answer": 0, "log_likelihoods": [0.0, 0.0]})
        0.25
    """
    values = centred(row)
    p = np.exp(values - values.max())
    p /= p.sum()
    p[row["answer"]] -= 1.0
    return float((p * p).mean())


def logit_distance(row: Row, other: Row) -> float:
    """Mean over choices of the squared difference of centred logits, in nats squared."""
    gap = centred(row) - centred(other)
    return float((gap * gap).mean())


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; the error is NaN for a single value."""
    x = np.asarray(values, dtype=np.float64)
    return float(x.mean()), float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else math.nan


def effective_noise(frozen: Sequence[Row], reference: Sequence[Row]) -> EffectiveNoise:
    """Residual variances of the frozen model and of the largest run on the same questions.

    Args:
        frozen: Scored questions of the frozen model.
        reference: The same questions, scored by the largest run.

    Raises:
        InputError: There are fewer than two questions.
        DataError: The questions differ.
    """
    check_same(frozen, reference)
    if len(frozen) < 2:
        raise InputError(f"{len(frozen)} questions: an error needs at least two")
    before, after = ([residual(row) for row in rows] for rows in (frozen, reference))
    left, left_error = mean_and_error(after)
    all_, all_error = mean_and_error(before)
    signal, signal_error = mean_and_error([x - y for x, y in zip(before, after, strict=True)])
    flat = [residual({"answer": 0, "log_likelihoods": [0.0] * len(row["log_likelihoods"])}) for row in frozen]
    return EffectiveNoise(
        frozen=all_,
        frozen_error=all_error,
        reference=left,
        reference_error=left_error,
        signal=signal,
        signal_error=signal_error,
        noise=left / signal if signal > 2 * signal_error else None,
        uniform=float(np.mean(flat)),
        shift=float(np.mean([logit_distance(x, y) for x, y in zip(frozen, reference, strict=True)])),
        questions=len(frozen),
    )


def relative_distance(rows: Sequence[Row], frozen: Sequence[Row], reference: Sequence[Row]) -> float:
    r"""A run's error as the theory has it: distance of its logits to the largest run's over that of the frozen model's.

    .. math:: e = \frac{\sum_i |z_i - z_i^{ref}|^2}{\sum_i |z_i^{frozen} - z_i^{ref}|^2}

    with the logits z of the choices of question i, their mean taken out. 1 is no update, 0 the largest run. The theory's
    counterpart is the error of the update alone over that of no update, :math:`(q^2 + q_0^2 - 2m^2)/q_0^2`.

    Raises:
        DataError: The questions differ, or the largest run is the frozen model.
    """
    check_same(rows, reference)
    check_same(frozen, reference)
    own = math.fsum(logit_distance(x, y) for x, y in zip(rows, reference, strict=True))
    whole = math.fsum(logit_distance(x, y) for x, y in zip(frozen, reference, strict=True))
    if whole <= 0:
        raise DataError("the largest run has the logits of the frozen model: train it for more steps")
    return own / whole


def check_same(rows: Sequence[Row], others: Sequence[Row]) -> None:
    """Refuse to compare scores of different questions.

    Raises:
        DataError: Their number, their answers or their numbers of choices differ.
    """
    same = len(rows) == len(others) and all(
        x["answer"] == y["answer"] and len(x["log_likelihoods"]) == len(y["log_likelihoods"])
        for x, y in zip(rows, others, strict=True)
    )
    if not same:
        raise DataError("scores of different questions cannot be compared: score all runs on the same ones")
