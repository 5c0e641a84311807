"""Measuring an adapter: one call from model and data to information per layer."""

from lorascope.measuring.measure import DEFAULT_METRICS, measure

__all__ = ["DEFAULT_METRICS", "measure"]
