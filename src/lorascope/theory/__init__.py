"""The solvable theory of LoRA: parameters to predicted curves, with numpy and scipy only."""

from lorascope.theory.finetuning import FineTuned, finetune, finetune_after
from lorascope.theory.pretraining import Pretrained, bayes_floor, pretrain

__all__ = ["FineTuned", "Pretrained", "bayes_floor", "finetune", "finetune_after", "pretrain"]
