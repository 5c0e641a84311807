"""The two laws as functions: of named parameters for people, and of many parameter vectors at once for the fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Float

from lorascope.core.errors import InputError, unknown_name

Numbers: TypeAlias = float | int | np.generic | np.ndarray | Sequence[Any]
Law = Literal["additive", "multiplicative"]
LAWS: tuple[str, ...] = get_args(Law)
AXES: tuple[str, ...] = ("N", "R", "D")
AXIS_WORDS = {"N": "model size N", "R": "rank R", "D": "data size D"}
AMPLITUDES = {"N": "A", "R": "B", "D": "C"}
EXPONENTS = {"N": "alpha", "R": "beta", "D": "gamma"}


def check_law(law: str) -> None:
    """Raise an `InputError` for a law that is not known."""
    if law not in LAWS:
        raise unknown_name("law", str(law), LAWS)


def default_floor(law: str) -> bool:
    """Whether the law as published has a floor: Eq. 8 of arXiv 2501.03152 has none, Zhang et al. (2024) have one."""
    check_law(law)
    return law == "multiplicative"


@dataclass(frozen=True)
class Form:
    """A law for some axes, with or without a floor: which parameters a vector holds, and in which order.

    Attributes:
        law: ``"additive"`` or ``"multiplicative"``.
        axes: The axes that vary, from N, R, D.
        floor: Whether there is a constant E.
    """

    law: str
    axes: tuple[str, ...]
    floor: bool

    @property
    def amplitudes(self) -> tuple[str, ...]:
        """Names of the amplitudes: one an axis for the additive law, one in all for the multiplicative law."""
        return tuple(AMPLITUDES[axis] for axis in self.axes) if self.law == "additive" else ("A",)

    @property
    def exponents(self) -> tuple[str, ...]:
        """Names of the exponents, one an axis."""
        return tuple(EXPONENTS[axis] for axis in self.axes)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all parameters in the order of a vector: amplitudes, exponents, floor."""
        return (*self.amplitudes, *self.exponents, *(("E",) if self.floor else ()))

    @property
    def size(self) -> int:
        """Number of parameters."""
        return len(self.names)

    @property
    def linear(self) -> tuple[int, ...]:
        """Places of the parameters in which the law is linear: amplitudes and floor."""
        first = len(self.amplitudes)
        return (*range(first), *((self.size - 1,) if self.floor else ()))


def values(form: Form, theta: Float[np.ndarray, "b p"], x: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "b n"]:
    """Evaluate many parameter vectors at many places at once.

    Args:
        form: The law.
        theta: Parameter vectors in the order of ``form.names``, (b, p).
        x: ln(value / reference) of each place and axis, (n, k).

    Returns:
        The metric, (b, n), in the metric's unit.
    """
    k = len(form.axes)
    if form.law == "additive":
        terms = np.exp(-theta[:, k : 2 * k, None] * x.T[None])
        found = np.einsum("bk,bkn->bn", theta[:, :k], terms)
    else:
        found = theta[:, :1] * np.exp(-theta[:, 1 : k + 1] @ x.T)
    return np.asarray(found + theta[:, -1:] if form.floor else found)


def derivatives(
    form: Form, theta: Float[np.ndarray, "b p"], x: Float[np.ndarray, "n k"]
) -> tuple[Float[np.ndarray, "b n"], Float[np.ndarray, "b p n"]]:
    """The same with the derivative of each value by each parameter, (b, p, n)."""
    count, k = len(theta), len(form.axes)
    slopes = np.ones((count, form.size, len(x)))
    if form.law == "additive":
        terms = np.exp(-theta[:, k : 2 * k, None] * x.T[None])
        slopes[:, :k] = terms
        terms = terms * theta[:, :k, None]
        np.multiply(terms, -x.T[None], out=slopes[:, k : 2 * k])
        found = terms.sum(axis=1)
    else:
        power = np.exp(-theta[:, 1 : k + 1] @ x.T)
        slopes[:, 0] = power
        found = theta[:, :1] * power
        np.multiply(found[:, None, :], -x.T[None], out=slopes[:, 1 : k + 1])
    return (found + theta[:, -1:] if form.floor else found), slopes


def additive(
    N: Numbers = 1.0,
    R: Numbers = 1.0,
    D: Numbers = 1.0,
    *,
    A: float | int = 0.0,
    alpha: float | int = 0.0,
    B: float | int = 0.0,
    beta: float | int = 0.0,
    C: float | int = 0.0,
    gamma: float | int = 0.0,
    E: float | int = 0.0,
    reference: Mapping[str, float | int] | None = None,
) -> np.ndarray:
    """The additive law, Eq. 8 of arXiv 2501.03152 as it must be meant, with an optional floor.

    Formula: y = A (N0/N)^alpha + B (R0/R)^beta + C (D0/D)^gamma + E. The printed third term is garbled; each axis has
    one term. N0, R0, D0 are not identifiable from A, B, C (a change of N0 by c changes A by c^-alpha), so that they are
    fixed at the geometric means of the data: A is then the contribution of model size at a typical run.

    Args:
        N: Parameters of the base model.
        R: Rank of the adapter.
        D: Rows of training data.
        A: Amplitude of N, in the metric's unit; 0 leaves the term out.
        alpha: Exponent of N. With A > 0, alpha > 0 means that the metric falls as N grows.
        B: Amplitude of R.
        beta: Exponent of R.
        C: Amplitude of D.
        gamma: Exponent of D.
        E: Floor: what remains when all axes grow without end and all exponents are positive.
        reference: N0, R0, D0; 1 where not given.

    Returns:
        The metric, in the broadcast shape of N, R, D.

    Raises:
        InputError: N, R or D is not positive and finite.

    Example:
        >>> float(additive(N=8.0, A=1.0, alpha=1 / 3, E=0.5))
        1.0

    References:
        arXiv 2501.03152, Eq. 8.
    """
    places = _ratios({"N": N, "R": R, "D": D}, reference)
    terms = [A * places["N"] ** -alpha, B * places["R"] ** -beta, C * places["D"] ** -gamma]
    return np.asarray(sum(terms) + E)


def multiplicative(
    N: Numbers = 1.0,
    R: Numbers = 1.0,
    D: Numbers = 1.0,
    *,
    A: float | int = 1.0,
    alpha: float | int = 0.0,
    beta: float | int = 0.0,
    gamma: float | int = 0.0,
    E: float | int = 0.0,
    reference: Mapping[str, float | int] | None = None,
) -> np.ndarray:
    """The multiplicative law of Zhang et al. (2024), with one factor for each of the three axes.

    Formula: y = A (N0/N)^alpha (R0/R)^beta (D0/D)^gamma + E. The paper fits two axes at a time (data and one of model
    size, rank, pretraining data); this is the same law over three.

    Args:
        N: Parameters of the base model.
        R: Rank of the adapter.
        D: Rows of training data.
        A: Amplitude, in the metric's unit: what the power terms contribute at the reference.
        alpha: Exponent of N; with A > 0, alpha > 0 means that the metric falls as N grows.
        beta: Exponent of R.
        gamma: Exponent of D.
        E: Floor.
        reference: N0, R0, D0; 1 where not given.

    Returns:
        The metric, in the broadcast shape of N, R, D.

    Raises:
        InputError: N, R or D is not positive and finite.

    Example:
        >>> float(multiplicative(N=4.0, D=9.0, A=6.0, alpha=0.5, gamma=0.5, E=1.0))
        2.0

    References:
        arXiv 2402.17193.
    """
    places = _ratios({"N": N, "R": R, "D": D}, reference)
    return np.asarray(A * places["N"] ** -alpha * places["R"] ** -beta * places["D"] ** -gamma + E)


def _ratios(given: Mapping[str, Numbers], reference: Mapping[str, float | int] | None) -> dict[str, np.ndarray]:
    reference = reference or {}
    return {axis: np.asarray(positive(axis, value) / reference.get(axis, 1.0)) for axis, value in given.items()}


def positive(axis: str, value: Numbers) -> np.ndarray:
    """The values of an axis as an array of positive finite numbers, or an `InputError` that names the first bad one."""
    try:
        found = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        raise InputError(f"{axis} is {value!r}: give numbers greater than 0") from None
    bad = ~(np.isfinite(found) & (found > 0))
    if bad.any():
        raise InputError(f"{axis} is {found[bad].flat[0]:g}: a power law needs finite numbers greater than 0")
    return found


def places(
    axes: Sequence[str], reference: Mapping[str, float | int], given: Mapping[str, Numbers | None]
) -> np.ndarray:
    """ln(value / reference) over the given axes, in their broadcast shape with the axes last."""
    missing = [axis for axis in axes if given.get(axis) is None]
    if missing:
        raise InputError(f"the law depends on {', '.join(axes)}: give {missing[0]}= too")
    checked = {axis: positive(axis, value) for axis, value in given.items() if value is not None}
    try:
        shape = np.broadcast_shapes(*(value.shape for value in checked.values()))
    except ValueError:
        shapes = ", ".join(f"{axis} {value.shape}" for axis, value in checked.items())
        raise InputError(f"the shapes of {shapes} do not go together: give arrays that broadcast") from None
    return np.stack([np.broadcast_to(np.log(checked[axis] / reference[axis]), shape) for axis in axes], axis=-1)
