"""Figures of measurements and runs: ``x_info`` computes what is shown, ``plot_x`` draws it. Imports no torch."""

from __future__ import annotations

from lorascope.figures.layers import (
    DepthProfileInfo,
    LayerHeatmapInfo,
    depth_profile_info,
    layer_heatmap_info,
    plot_depth_profile,
    plot_layer_heatmap,
)
from lorascope.figures.runs import (
    LossCurvesInfo,
    MetricAgainstRankInfo,
    RankSeries,
    loss_curves_info,
    metric_against_rank_info,
    plot_loss_curves,
    plot_metric_against_rank,
)

__all__ = [
    "DepthProfileInfo",
    "LayerHeatmapInfo",
    "LossCurvesInfo",
    "MetricAgainstRankInfo",
    "RankSeries",
    "depth_profile_info",
    "layer_heatmap_info",
    "loss_curves_info",
    "metric_against_rank_info",
    "plot_depth_profile",
    "plot_layer_heatmap",
    "plot_loss_curves",
    "plot_metric_against_rank",
]
