"""What stage 2 leaves: its order parameters, and what is known against them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from lorascope.theory._record import Record


@dataclass(frozen=True, kw_only=True)
class FineTuned(Record):
    """Order parameters of stage 2.

    Attributes:
        alpha: N' / d.
        tokens: T.
        ridge: lambda'.
        noise: Dn, the variance of the residual that pre-training leaves (``active``: that of the chosen sequences).
        base_error: Q0 - 2M + Q, what pre-training adds to the test error before the factor (T+1)/T.
        activation: ``linear`` or ``softmax``.
        data: ``fresh``, ``reused``, ``recalibrated`` or ``active``.
        fraction: Share of a pool that ``active`` labels; 1 for the others.
        largest: Whether ``active`` takes the largest logits.
        smallest_dim: d from which on ``reused`` takes 5 % of the stage-1 sequences or less, as the equations want; None for
            other data.
        m: Overlap of the update with its target, over d.
        q: Squared norm of the update over d.
        v: Susceptibility.
        alignment: m / sqrt(q q0), how well the direction is recovered.
        test_error: Of the noiseless target on fresh sequences.
        train_loss: Over d, penalty included.
        jump: Share of the sequences whose proximal map can jump: linear, P(4 v b_max / T^2 > 1); softmax, with
            several minima.
        start: The start whose solution has the lowest energy.
        energies: Energy (training loss over d) of the solution that each start led to, by the name of the start.
        converged: Whether the last change was below the tolerance.
        iterations: Of the last pass.
        residual: Last change.
        warnings: Why a number is not to be trusted, one sentence each; empty if nothing is known against it.
        schema_version: Version of this layout.
    """

    alpha: float
    tokens: int
    ridge: float
    noise: float
    base_error: float
    activation: str
    data: str
    fraction: float
    largest: bool
    smallest_dim: int | None
    m: float
    q: float
    v: float
    alignment: float
    test_error: float
    train_loss: float
    jump: float
    start: str
    energies: dict[str, float]
    converged: bool
    iterations: int
    residual: float
    warnings: list[str] = field(default_factory=list)
    schema_version: int = 2

    kind: ClassVar[str] = "fine_tuned"
    version: ClassVar[int] = 2

    @property
    def valid(self) -> bool:
        """Whether there is no warning."""
        return not self.warnings
