"""Where a LoRA adapter should start, by the curvature of the user's own data: statistics, directions, layers and ranks."""

from lorascope.initialization.budget import directions_for, effective_directions, water_fill
from lorascope.initialization.directions import MODES
from lorascope.initialization.initialize import initialize_lora_fisher
from lorascope.initialization.layer_sums import LayerStatistics
from lorascope.initialization.memory import NEEDS
from lorascope.initialization.result import FisherInitialization
from lorascope.initialization.samples import SampleOptions, SampleScores, gradient_energy
from lorascope.initialization.statistics import collect_statistics
from lorascope.initialization.statistics_pass import Collected

__all__ = [
    "MODES",
    "NEEDS",
    "Collected",
    "FisherInitialization",
    "LayerStatistics",
    "SampleOptions",
    "SampleScores",
    "collect_statistics",
    "directions_for",
    "effective_directions",
    "gradient_energy",
    "initialize_lora_fisher",
    "water_fill",
]
