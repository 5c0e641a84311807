"""Where a LoRA adapter should start, by the curvature of the user's own data: statistics, directions, layers and ranks."""

from lorascope.initialization.memory import NEEDS
from lorascope.initialization.samples import SampleOptions, SampleScores, gradient_energy
from lorascope.initialization.statistics import Collected, LayerStatistics, collect_statistics

__all__ = [
    "NEEDS",
    "Collected",
    "LayerStatistics",
    "SampleOptions",
    "SampleScores",
    "collect_statistics",
    "gradient_energy",
]
