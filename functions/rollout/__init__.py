"""Rollouts: a challenger goes through shadow and canary, is judged by always-valid tests, and promoted or not.

Knows policies, evidence and the journal of decisions. Must not know how models are trained or served.
"""

from functions.rollout.budget import Budget
from functions.rollout.controller import Rollouts, Ticked
from functions.rollout.errors import NoRollout, RolloutActive, RolloutError
from functions.rollout.evidence.metrics import MetricValue
from functions.rollout.evidence.sums import (
    ArmCounts,
    ClusterSums,
    Evidence,
    MetricSums,
    PairedLoss,
    UnitCounts,
)
from functions.rollout.explain import Explained, explain
from functions.rollout.jobs import (
    end_rollout,
    explain_rollout,
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
from functions.rollout.planning.jobs import plan_rollout
from functions.rollout.planning.plan import RolloutPlan, plan
from functions.rollout.policy import Guardrail, RolloutPolicy, Slo
from functions.rollout.state import History, Outcome, RolloutState
from functions.rollout.status import Sight

__all__ = [
    "ArmCounts",
    "Budget",
    "ClusterSums",
    "Decision",
    "Evidence",
    "Explained",
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
    "Rollouts",
    "Sight",
    "Slo",
    "Ticked",
    "UnitCounts",
    "decide",
    "end_rollout",
    "explain",
    "explain_rollout",
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
