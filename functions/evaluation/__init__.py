"""Judging models: metrics, baselines to beat, and the offline gate.

It knows labels, predictions and registered versions. It must not know how a version is trained or rolled out.
"""

from functions.evaluation.behaviour import Direction, Invariance
from functions.evaluation.calibration import ReliabilityPoint, reliability
from functions.evaluation.check import Check
from functions.evaluation.errors import EvaluationError
from functions.evaluation.fairness import FairnessRule
from functions.evaluation.gate import Gate, judge
from functions.evaluation.metrics import Interval, auc, bootstrap, brier, ece, log_loss, row_log_loss
from functions.evaluation.offline import GateResult, evaluate_gate, predict_table
from functions.evaluation.offpolicy import OffPolicy, doubly_robust, ips, snips
from functions.evaluation.robustness import RobustnessRule
from functions.evaluation.slices import SliceRule

__all__ = [
    "Check",
    "Direction",
    "EvaluationError",
    "FairnessRule",
    "Gate",
    "GateResult",
    "Interval",
    "Invariance",
    "OffPolicy",
    "ReliabilityPoint",
    "RobustnessRule",
    "SliceRule",
    "auc",
    "bootstrap",
    "brier",
    "doubly_robust",
    "ece",
    "evaluate_gate",
    "ips",
    "judge",
    "log_loss",
    "predict_table",
    "reliability",
    "row_log_loss",
    "snips",
]
