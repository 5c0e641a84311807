"""Scaling laws of adapters: fit them to runs, compare them, test the paper's claims, plan the next run.

Imports no torch: fitting and planning work on any laptop.
"""

from lorascope.scaling.claims import Claim
from lorascope.scaling.claims_paper import claims_paper
from lorascope.scaling.claims_sweep import claims_sweep
from lorascope.scaling.compare import Candidate, LawComparison, compare_laws
from lorascope.scaling.cost import Cost, cost_of
from lorascope.scaling.cost_shapes import ModelShape
from lorascope.scaling.design import next_cells
from lorascope.scaling.fit import fit_scaling_law
from lorascope.scaling.guess import first_guess
from lorascope.scaling.laws import AXES, LAWS, additive, multiplicative
from lorascope.scaling.paper import paper_averages, paper_mutual_information, paper_prompts, paper_table
from lorascope.scaling.paper_layout import axis_data, layout_table1, layout_table2, layout_table3
from lorascope.scaling.plan import recommend
from lorascope.scaling.plan_result import Plan
from lorascope.scaling.ranking import MetricRank, rank_metrics, which_to_watch
from lorascope.scaling.result import ScalingFit
from lorascope.scaling.table import read_table

__all__ = [
    "AXES",
    "LAWS",
    "Candidate",
    "Claim",
    "Cost",
    "LawComparison",
    "MetricRank",
    "ModelShape",
    "Plan",
    "ScalingFit",
    "additive",
    "axis_data",
    "claims_paper",
    "claims_sweep",
    "compare_laws",
    "cost_of",
    "first_guess",
    "fit_scaling_law",
    "layout_table1",
    "layout_table2",
    "layout_table3",
    "multiplicative",
    "next_cells",
    "paper_averages",
    "paper_mutual_information",
    "paper_prompts",
    "paper_table",
    "rank_metrics",
    "read_table",
    "recommend",
    "which_to_watch",
]
