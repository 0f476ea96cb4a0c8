"""Rollouts: a challenger goes through shadow and canary, is judged by always-valid tests, and promoted or not.

Knows policies, evidence and the journal of decisions. Must not know how models are trained or served.
"""

from functions.rollout.controller import Rollouts, Ticked
from functions.rollout.decide import Decision, Finding, decide
from functions.rollout.errors import NoRollout, RolloutActive, RolloutError
from functions.rollout.evidence import ArmCounts, ClusterSums, Evidence, PairedLoss
from functions.rollout.explain import Explained, explain
from functions.rollout.jobs import (
    end_rollout,
    explain_rollout,
    pause_rollout,
    resume_rollout,
    rollout_status,
    start_rollout,
    tick_rollout,
)
from functions.rollout.policy import RolloutPolicy
from functions.rollout.state import History, Outcome, RolloutState

__all__ = [
    "ArmCounts",
    "ClusterSums",
    "Decision",
    "Evidence",
    "Explained",
    "Finding",
    "History",
    "NoRollout",
    "Outcome",
    "PairedLoss",
    "RolloutActive",
    "RolloutError",
    "RolloutPolicy",
    "RolloutState",
    "Rollouts",
    "Ticked",
    "decide",
    "end_rollout",
    "explain",
    "explain_rollout",
    "pause_rollout",
    "resume_rollout",
    "rollout_status",
    "start_rollout",
    "tick_rollout",
]
