"""What the theory advises: each function answers one question and returns a frozen result that carries its flags."""

from lorascope.theory._rows import Setting
from lorascope.theory.prescriptions_curves import Curve, Mismatch, Point, curve, mismatch, point
from lorascope.theory.prescriptions_labels import Budget, Selection, select_active, split_budget
from lorascope.theory.prescriptions_pretraining import (
    Recalibration,
    Regularisation,
    best_pretraining,
    recalibrate,
    regularise,
)
from lorascope.theory.prescriptions_threshold import Thresholds, thresholds, weak_threshold

__all__ = [
    "Budget",
    "Curve",
    "Mismatch",
    "Point",
    "Recalibration",
    "Regularisation",
    "Selection",
    "Setting",
    "Thresholds",
    "best_pretraining",
    "curve",
    "mismatch",
    "point",
    "recalibrate",
    "regularise",
    "select_active",
    "split_budget",
    "thresholds",
    "weak_threshold",
]
