"""From the theory to a real model: small runs of different seeds and data sizes beside the theory's curve."""

from lorascope.bridge.compare import bridge
from lorascope.bridge.noise import EffectiveNoise, effective_noise, relative_distance
from lorascope.bridge.plan import BridgePlan
from lorascope.bridge.result import BridgeResult
from lorascope.bridge.runs import run_plan
from lorascope.bridge.shape import CurvePoint, ShapeFit, check_curve, fit_shape, theory_curve
from lorascope.bridge.subspaces import LayerAlignment, compare_layers, overlap, principal_angles, summarise_layers

__all__ = [
    "BridgePlan",
    "BridgeResult",
    "CurvePoint",
    "EffectiveNoise",
    "LayerAlignment",
    "ShapeFit",
    "bridge",
    "check_curve",
    "compare_layers",
    "effective_noise",
    "fit_shape",
    "overlap",
    "principal_angles",
    "relative_distance",
    "run_plan",
    "summarise_layers",
    "theory_curve",
]
