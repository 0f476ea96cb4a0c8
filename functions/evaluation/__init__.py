"""Judging models: metrics, baselines to beat, and the offline gate.

It knows labels, predictions and registered versions. It must not know how a version is trained or rolled out.
"""

from functions.evaluation.errors import EvaluationError
from functions.evaluation.gate import Check, Gate, judge
from functions.evaluation.metrics import Interval, auc, bootstrap, brier, ece, log_loss, row_log_loss
from functions.evaluation.offline import GateResult, evaluate_gate, predict_table

__all__ = [
    "Check",
    "EvaluationError",
    "Gate",
    "GateResult",
    "Interval",
    "auc",
    "bootstrap",
    "brier",
    "ece",
    "evaluate_gate",
    "judge",
    "log_loss",
    "predict_table",
    "row_log_loss",
]
