"""Measuring an adapter: one call from model and data to information per layer; and loading the model for it."""

from lorascope.measuring.loading import load_model_and_tokenizer
from lorascope.measuring.measure import DEFAULT_METRICS, measure

__all__ = ["DEFAULT_METRICS", "load_model_and_tokenizer", "measure"]
