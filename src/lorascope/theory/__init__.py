"""The solvable theory of LoRA: parameters to predicted curves, with numpy and scipy only."""

from lorascope.theory.finetuned import FineTuned
from lorascope.theory.finetuning import finetune, finetune_after
from lorascope.theory.prediction import Prediction, finite_size, predict
from lorascope.theory.pretraining import Pretrained, bayes_floor, pretrain
from lorascope.theory.recovery import weak_recovery

__all__ = [
    "FineTuned",
    "Prediction",
    "Pretrained",
    "bayes_floor",
    "finetune",
    "finetune_after",
    "finite_size",
    "predict",
    "pretrain",
    "weak_recovery",
]
