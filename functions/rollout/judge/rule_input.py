"""One look at a rollout, as a rule sees it, and what a rule says."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict

from functions.rollout.evidence.sums import Evidence
from functions.rollout.judge.interval import Improvement
from functions.rollout.policy import RolloutPolicy
from functions.rollout.state import RolloutState


class Finding(BaseModel):
    """What one rule found: a statistic, the threshold it was held against, and the sentence a person reads.

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
class Look:
    """All that a rule may ask."""

    state: RolloutState
    evidence: Evidence
    policy: RolloutPolicy
    now: datetime
    improvement: Improvement | None

    @property
    def in_stage(self) -> timedelta:
        """Time since the stage began, or was resumed."""
        return self.now - self.state.stage_since
