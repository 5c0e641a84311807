"""Quantising a base model with information retention: ICQ of arXiv 2402.05445, its storage, and what it gains."""

from lorascope.quantization.codebooks import codebook
from lorascope.quantization.icq import IcqTensor, code_entropy_bits, quantize_icq
from lorascope.quantization.linear import IcqLinear
from lorascope.quantization.plugin import ICQConfig, icq_layers
from lorascope.quantization.whole import QuantizationReport, quantize_model

__all__ = [
    "ICQConfig",
    "IcqLinear",
    "IcqTensor",
    "QuantizationReport",
    "code_entropy_bits",
    "codebook",
    "icq_layers",
    "quantize_icq",
    "quantize_model",
]
