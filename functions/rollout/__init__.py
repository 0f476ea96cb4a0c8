"""Rollouts that take a challenger through shadow and canary, judge it by always-valid tests, and promote it or not.

Knows policies, evidence and the journal of decisions. Must not know how models are trained or served.
"""

from toque.functions.rollout.controller import Rollouts
from toque.functions.rollout.errors import NoRollout, RolloutActive, RolloutError
from toque.functions.rollout.evidence.metrics import MetricValue
from toque.functions.rollout.evidence.sums import (
    ArmCounts,
    Evidence,
    MetricSums,
    PairedLoss,
    UnitCounts,
)
from toque.functions.rollout.explain import Explanation, explain
from toque.functions.rollout.jobs import (
    end_rollout,
    explain_rollout,
    list_rollouts,
    look_at_rollout,
    pause_rollout,
    record_metric,
    resume_rollout,
    rollout_budget,
    rollout_record,
    rollout_status,
    start_rollout,
    tick_rollout,
)
from toque.functions.rollout.judge.decide import Decision, Finding, decide
from toque.functions.rollout.objectives import ErrorBudget, error_budgets
from toque.functions.rollout.planning.jobs import RolloutPlan, plan, plan_rollout
from toque.functions.rollout.policy import Guardrail, RolloutPolicy, Slo
from toque.functions.rollout.record import RolloutRecord
from toque.functions.rollout.state import Budget, History, Outcome, RolloutState
from toque.functions.rollout.status import RolloutStatus, TickResult
from toque.functions.stats import ClusterSums

__all__ = [
    "ArmCounts",
    "Budget",
    "ClusterSums",
    "Decision",
    "ErrorBudget",
    "Evidence",
    "Explanation",
    "Finding",
    "Guardrail",
    "History",
    "MetricSums",
    "MetricValue",
    "NoRollout",
    "Outcome",
    "PairedLoss",
    "RolloutActive",
    "RolloutError",
    "RolloutPlan",
    "RolloutPolicy",
    "RolloutRecord",
    "RolloutState",
    "RolloutStatus",
    "Rollouts",
    "Slo",
    "TickResult",
    "UnitCounts",
    "decide",
    "end_rollout",
    "error_budgets",
    "explain",
    "explain_rollout",
    "list_rollouts",
    "look_at_rollout",
    "pause_rollout",
    "plan",
    "plan_rollout",
    "record_metric",
    "resume_rollout",
    "rollout_budget",
    "rollout_record",
    "rollout_status",
    "start_rollout",
    "tick_rollout",
]
