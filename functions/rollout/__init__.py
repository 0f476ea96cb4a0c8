"""Rollouts that take a challenger through shadow and canary, judge it by always-valid tests, and promote it or not.

Knows policies, evidence and the journal of decisions. Must not know how models are trained or served.
"""

from typing import TYPE_CHECKING

from functions.renamed import old_names
from functions.rollout.budget import Budget
from functions.rollout.controller import Rollouts
from functions.rollout.errors import NoRollout, RolloutActive, RolloutError
from functions.rollout.evidence.metrics import MetricValue
from functions.rollout.evidence.sums import (
    ArmCounts,
    Evidence,
    MetricSums,
    PairedLoss,
    UnitCounts,
)
from functions.rollout.explain import Explanation, explain
from functions.rollout.jobs import (
    end_rollout,
    explain_rollout,
    list_rollouts,
    look_at_rollout,
    pause_rollout,
    record_metric,
    resume_rollout,
    rollout_budget,
    rollout_status,
    start_rollout,
    tick_rollout,
)
from functions.rollout.judge.decide import Decision, Finding, decide
from functions.rollout.objectives import ErrorBudget, error_budgets
from functions.rollout.planning.jobs import plan_rollout
from functions.rollout.planning.plan import RolloutPlan, plan
from functions.rollout.policy import Guardrail, RolloutPolicy, Slo
from functions.rollout.state import History, Outcome, RolloutState
from functions.rollout.status import RolloutStatus
from functions.rollout.tick_result import TickResult
from functions.stats import ClusterSums

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
    "rollout_status",
    "start_rollout",
    "tick_rollout",
]

if not TYPE_CHECKING:  # a type checker must not take every name as there
    __getattr__ = old_names(
        __name__, {"Explained": "Explanation", "Sight": "RolloutStatus", "Ticked": "TickResult"}
    )
