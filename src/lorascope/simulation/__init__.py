"""The solvable attention model at finite d, simulated: pre-training, LoRA, and both as PyTorch would train them."""

from lorascope.simulation._stages import keep_pretrained
from lorascope.simulation.adam import Adam
from lorascope.simulation.run import simulate_finetune, simulate_pipeline, simulate_pretrain

__all__ = ["Adam", "keep_pretrained", "simulate_finetune", "simulate_pipeline", "simulate_pretrain"]
