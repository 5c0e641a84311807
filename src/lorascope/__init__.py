"""lorascope: see what a LoRA adapter learned."""

__version__ = "0.1.0"
