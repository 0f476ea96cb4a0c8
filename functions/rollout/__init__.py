"""Rollouts: a challenger goes through shadow and canary, is judged by always-valid tests, and promoted or not.

Knows policies, evidence and the journal of decisions. Must not know how models are trained or served.
"""

from functions.rollout.decide import Decision, Finding, decide
from functions.rollout.errors import NoRollout, RolloutActive, RolloutError
from functions.rollout.evidence import ArmCounts, ClusterSums, Evidence, PairedLoss
from functions.rollout.policy import RolloutPolicy
from functions.rollout.state import History, Outcome, RolloutState

__all__ = [
    "ArmCounts",
    "ClusterSums",
    "Decision",
    "Evidence",
    "Finding",
    "History",
    "NoRollout",
    "Outcome",
    "PairedLoss",
    "RolloutActive",
    "RolloutError",
    "RolloutPolicy",
    "RolloutState",
    "decide",
]
