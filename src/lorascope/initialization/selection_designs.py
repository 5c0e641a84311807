"""Choosing some rows out of many by their numbers: the largest scores, or a design that is informative as a whole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lorascope.core.errors import InputError
from lorascope.core.seeds import derive_seed


@dataclass(frozen=True)
class Design:
    """Rows in the order in which a greedy design takes them.

    Attributes:
        order: Indices of the chosen rows, the first chosen first.
        gains: What each of them adds to log det M, in nats.
        first_gains: What each row of the pool would add if it were the first, in nats.
    """

    order: Int[np.ndarray, " k"]
    gains: Float[np.ndarray, " k"]
    first_gains: Float[np.ndarray, " n"]


def relative_ridge(features: Float[np.ndarray, "n c d"], ridge: float) -> float:
    """The ridge in the features' own units: ``ridge`` times the mean squared norm of a row over d.

    With ``ridge`` 1 the prior weighs as much as one usual row that is spread evenly over all directions. Designs then
    don't change when all features are scaled.

    Args:
        features: c vectors a row.
        ridge: Dimensionless, above 0.

    Returns:
        The ridge; 1 where all features are 0.

    Raises:
        InputError: ``ridge`` is not a positive number.

    Example:
        >>> relative_ridge(np.array([[[3.0, 4.0]]]), 1.0)
        12.5
    """
    if not (np.isfinite(ridge) and ridge > 0):
        raise InputError(f"ridge {ridge} must be a number above 0")
    energy = float(np.mean(np.sum(np.square(features, dtype=np.float64), axis=(1, 2))))
    return ridge * energy / features.shape[2] if energy > 0 else 1.0


def greedy_d_optimal(features: Float[np.ndarray, "n c d"], count: int, *, ridge: float = 1.0) -> Design:
    r"""Take rows one after the other, each time the one that adds most to the log-determinant of the information.

    .. math:: M(S) = \lambda I + \sum_{i \in S} E_i^\top E_i, \qquad
        \Delta_i = \log\det M(S \cup i) - \log\det M(S) = \log\det(I + E_i M(S)^{-1} E_i^\top)

    E_i (c, d) holds the row's feature vectors: one where its label is known; one for each possible label, times the root
    of its probability, where it is not. A row much like a chosen one adds little: that is where diversity comes from.
    log det is monotone and submodular in S, so that the greedy design reaches at least 1 - 1/e of the best value.

    Every step is exact. With S_i = I + E_i M^-1 E_i^T kept for all rows, taking j with S_j = L L^T and U = L^-1 E_j M^-1
    leaves M^-1 - U^T U and S_i - (E_i U^T)(E_i U^T)^T: O(n c^2 d + c d^2) a step. Ties go to the earlier row.

    Args:
        features: E, one (c, d) block a row; rows with fewer vectors are filled with zeros.
        count: k, rows to take, at most n.
        ridge: See `relative_ridge`.

    Returns:
        The rows and what they add.

    Raises:
        InputError: A feature is NaN or infinite, ``count`` is not from 1 to n, or ``ridge`` is not above 0.

    Example:
        >>> greedy_d_optimal(np.array([[[2.0, 0.0]], [[1.9, 0.0]], [[0.0, 1.0]]]), 2).order.tolist()
        [0, 2]

    References:
        Greedy maximisation of submodular functions: Nemhauser, Wolsey and Fisher, 1978. Determinantal point processes:
        arXiv 1207.6083. Fisher information of all possible labels in active learning: arXiv 2106.09675.
    """
    block = np.asarray(features, dtype=np.float64)
    if block.ndim != 3 or not len(block):
        raise InputError(f"features of shape {block.shape} are not (rows, vectors, features) with at least one row")
    if not np.isfinite(block).all():
        row = int(np.flatnonzero(~np.isfinite(block).all(axis=(1, 2)))[0])
        raise InputError(f"features of row {row} hold NaN or infinity: score the pool again in float32")
    rows, vectors, size = block.shape
    _check_count(count, rows)
    scale = relative_ridge(block, ridge)
    inverse = np.eye(size) / scale
    unit = np.eye(vectors)
    blocks = unit + block @ block.transpose(0, 2, 1) / scale
    flat = block.reshape(rows * vectors, size)
    first = np.linalg.slogdet(blocks)[1]
    current, taken = first.copy(), np.zeros(rows, dtype=bool)
    order, gains = [], []
    for _ in range(count):
        best = int(np.argmax(np.where(taken, -np.inf, current)))
        order.append(best)
        gains.append(float(max(current[best], 0.0)))
        taken[best] = True
        lower = np.linalg.cholesky(unit + block[best] @ inverse @ block[best].T)
        step = np.linalg.solve(lower, block[best] @ inverse)
        inverse -= step.T @ step
        inverse = (inverse + inverse.T) / 2
        part = (flat @ step.T).reshape(rows, vectors, vectors)
        blocks -= part @ part.transpose(0, 2, 1)
        current = np.linalg.slogdet(blocks)[1]
    return Design(np.array(order), np.array(gains), first)


def log_det_information(features: Float[np.ndarray, "n c d"], chosen: list[int], *, ridge: float = 1.0) -> float:
    """log det M(S) - log det M(empty set), in nats, from its definition; see `greedy_d_optimal`.

    Example:
        >>> round(log_det_information(np.array([[[1.0]], [[1.0]]]), [0, 1]), 4)  # log(1 + 2)
        1.0986
    """
    block = np.asarray(features, dtype=np.float64)
    scale = relative_ridge(block, ridge)
    picked = block[chosen].reshape(-1, block.shape[2])
    return float(np.linalg.slogdet(np.eye(block.shape[2]) + picked.T @ picked / scale)[1])


def largest(scores: Float[np.ndarray, " n"], count: int) -> Int[np.ndarray, " k"]:
    """Indices of the largest scores, largest first; ties go to the earlier row.

    Raises:
        InputError: A score is NaN, or ``count`` is not from 1 to n.

    Example:
        >>> largest(np.array([1.0, 3.0, 3.0]), 2).tolist()
        [1, 2]
    """
    values = np.asarray(scores, dtype=np.float64)
    if np.isnan(values).any():
        row = int(np.flatnonzero(np.isnan(values))[0])
        raise InputError(f"the score of row {row} is NaN: score the pool again in float32")
    _check_count(count, len(values))
    return np.argsort(-values, kind="stable")[:count]


def at_random(rows: int, count: int, seed: int) -> Int[np.ndarray, " k"]:
    """Rows drawn without replacement; the first of a larger draw with the same seed are those of a smaller one.

    Example:
        >>> set(at_random(9, 2, 0)) <= set(at_random(9, 5, 0))
        True
    """
    _check_count(count, rows)
    return np.random.default_rng(derive_seed(seed, "select", rows)).permutation(rows)[:count]


def _check_count(count: int, rows: int) -> None:
    if isinstance(count, bool) or not 1 <= count <= rows:
        raise InputError(f"budget {count} does not fit a pool of {rows} different rows: give 1 to {rows}")
