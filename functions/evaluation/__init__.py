"""Evaluation of models by metrics, baselines to beat, and the offline gate.

The package knows labels, predictions and registered versions. It must not know how a version is trained or rolled out.
"""

from toque.functions.evaluation.checks import (
    Check,
    Direction,
    FairnessRule,
    Invariance,
    RobustnessRule,
    SliceRule,
)
from toque.functions.evaluation.errors import EvaluationError
from toque.functions.evaluation.gate import Gate, gate_in_force, judge
from toque.functions.evaluation.language.answer_gate import check_policy_gates
from toque.functions.evaluation.metrics.probabilities import (
    Interval,
    ReliabilityPoint,
    auc,
    bootstrap,
    brier,
    ece,
    log_loss,
    reliability,
    row_log_loss,
)
from toque.functions.evaluation.offline_gate import GateResult, evaluate_gate, predict_table
from toque.functions.evaluation.offpolicy import OffPolicy, doubly_robust, ips, judge_split, snips

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
    "check_policy_gates",
    "doubly_robust",
    "ece",
    "evaluate_gate",
    "gate_in_force",
    "ips",
    "judge",
    "judge_split",
    "log_loss",
    "predict_table",
    "reliability",
    "row_log_loss",
    "snips",
]
