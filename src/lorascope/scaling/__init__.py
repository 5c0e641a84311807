"""Scaling laws of adapters: fit them to runs, compare them, test the paper's claims, plan the next run.

Imports no torch: fitting and planning work on any laptop.
"""

from lorascope.scaling.fit import fit_scaling_law
from lorascope.scaling.laws import AXES, LAWS, additive, multiplicative
from lorascope.scaling.result import ScalingFit
from lorascope.scaling.table import read_table

__all__ = [
    "AXES",
    "LAWS",
    "ScalingFit",
    "additive",
    "fit_scaling_law",
    "multiplicative",
    "read_table",
]
