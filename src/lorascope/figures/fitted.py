"""What figures need of a fitted scaling law; figures lie below the room that makes one, and know it by this only."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class FittedLaw(Protocol):
    """What these figures need of a fit; `lorascope.scaling.ScalingFit` has it."""

    @property
    def metric(self) -> str:
        """Name of the metric."""

    @property
    def level(self) -> float:
        """Confidence level."""

    @property
    def noise(self) -> str:
        """``"relative"`` or ``"absolute"``."""

    @property
    def sigma(self) -> float:
        """Standard deviation of a run."""

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes that vary."""

    @property
    def reference(self) -> dict[str, float]:
        """Geometric means of the axes."""

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Smallest and largest value of each axis."""

    @property
    def data(self) -> dict[str, np.ndarray]:
        """Each axis and the metric, one value a run."""

    @property
    def fitted(self) -> np.ndarray:
        """The law at each run."""

    @property
    def residuals(self) -> np.ndarray:
        """Metric minus law."""

    @property
    def boot(self) -> np.ndarray:
        """Bootstrap parameters; empty without a bootstrap."""

    def predict(self, N: Any = None, R: Any = None, D: Any = None) -> Any:
        """The law's value."""

    def predict_interval(self, N: Any = None, R: Any = None, D: Any = None, *, level: float | None = None) -> Any:
        """Interval of the law's value."""
