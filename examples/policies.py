"""Policies of examples whose weeks pass in a minute: a few hundred rows a day decide, and nobody has to approve."""

from datetime import timedelta
from typing import Final

from toque.functions.retraining.policy import RetrainingPolicy, TrainingWindow
from toque.functions.rollout import RolloutPolicy
from toque.registry import AutomaticApproval, ModelPolicy

ROLLOUT: Final = RolloutPolicy(
    season=timedelta(0),  # their weeks have no weekdays
    dependence="unit",
    planned_labels=600,
    shadow_min_labels=200,
    canary_share=0.3,
    mismatch_alpha=0.001,
)
RETRAINING: Final = RetrainingPolicy(
    windows=(TrainingWindow(name="all"), TrainingWindow(name="recent", days=5)),
    holdout=timedelta(days=1),
    cooldown=timedelta(days=5),
    settle=timedelta(days=2),
)
GOVERNANCE: Final = ModelPolicy(
    guarded=frozenset({"champion"}),
    gates=("offline",),
    automatic_approval=AutomaticApproval(reason="an example without people"),
)
