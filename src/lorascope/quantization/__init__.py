"""Quantising a base model with information retention: ICQ of arXiv 2402.05445, its storage, and what it gains."""

from lorascope.quantization.codebooks import codebook
from lorascope.quantization.icq import IcqTensor, code_entropy_bits, quantize_icq

__all__ = ["IcqTensor", "code_entropy_bits", "codebook", "quantize_icq"]
