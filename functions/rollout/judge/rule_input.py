"""Input of the rules that judge a rollout, and the finding that each rule returns."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict

from toque.functions.rollout.evidence.sums import Evidence
from toque.functions.rollout.judge.interval import Improvement
from toque.functions.rollout.policy import RolloutPolicy
from toque.functions.rollout.state import RolloutState


class Finding(BaseModel):
    """Finding of one rule: a statistic, its threshold, and the sentence that a person reads.

    arm: the challenger it is about, where there were several.
    """

    model_config = ConfigDict(frozen=True)

    rule: str
    fired: bool
    text: str
    statistic: float | None = None
    threshold: float | None = None
    arm: int | None = None


@dataclass(frozen=True, slots=True)
class RuleInput:
    """Everything that a rule may read."""

    state: RolloutState
    evidence: Evidence
    policy: RolloutPolicy
    now: datetime
    improvement: Improvement | None

    @property
    def in_stage(self) -> timedelta:
        """Time since the stage began, or was resumed."""
        return self.now - self.state.stage_since
