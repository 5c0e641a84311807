"""Scores of rows as arrays: rows of several lengths, parts put together, shares of choices, gradients' scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class GradientScores:
    """Gradients of the pool's rows, for one label or for several possible ones.

    Attributes:
        energy: |G V|^2 summed over layers, float64 of (rows, labels); 0 where a row has fewer labels.
        features: Short projections of G V, float64 of (rows, labels, features).
        weights: Probability of each label, float64 of (rows, labels).
    """

    energy: Float[np.ndarray, "n c"]
    features: Float[np.ndarray, "n c f"]
    weights: Float[np.ndarray, "n c"]

    @property
    def expected_energy(self) -> Float[np.ndarray, " n"]:
        """Mean energy over the labels."""
        found: np.ndarray = (self.weights * self.energy).sum(1)
        return found

    @property
    def weighted_features(self) -> Float[np.ndarray, "n c f"]:
        """Features times the roots of the probabilities, as `greedy_d_optimal` takes them."""
        found: np.ndarray = np.sqrt(self.weights)[:, :, None] * self.features
        return found


def filled(rows: Sequence[Sequence[float | int]], value: float) -> np.ndarray:
    """Rows of several lengths as one float64 array."""
    found = np.full((len(rows), max(map(len, rows))), value, dtype=np.float64)
    for index, row in enumerate(rows):
        found[index, : len(row)] = row
    return found


def joined(parts: Sequence[np.ndarray], name: str) -> np.ndarray:
    """Parts below each other, narrower ones filled up."""
    if parts[0].ndim == 1:
        return np.concatenate(parts)
    width = max(part.shape[1] for part in parts)
    value = {"log_likelihoods": -np.inf, "tokens": 1.0}.get(name, 0.0)
    padded = []
    for part in parts:
        room = [(0, 0)] * part.ndim
        room[1] = (0, width - part.shape[1])
        padded.append(np.pad(part, room, constant_values=value))
    return np.concatenate(padded)


def choice_shares(log_likelihoods: np.ndarray) -> np.ndarray:
    """Softmax over the choices; minus infinity marks a choice that a row does not have."""
    top = log_likelihoods.max(1, keepdims=True)
    raw = np.exp(log_likelihoods - top)
    found: np.ndarray = raw / raw.sum(1, keepdims=True)
    return found
