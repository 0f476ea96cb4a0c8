"""Result of one step of a rollout, as functions return it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from toque.functions.rollout.evidence.sums import Evidence
from toque.functions.rollout.judge.decide import Decision
from toque.functions.rollout.judge.interval import improvement
from toque.functions.rollout.state import RolloutState, Stage
from toque.registry import Entry


class TickResult(BaseModel):
    """Result of one tick: what it found and did.

    entry: number of the journal entry it wrote; None: it wrote nothing.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    rollout: int | None = None
    challenger: int | None = None
    stage: str = "none"
    action: str = "hold"
    rule: str = "no_rollout"
    text: str = "no rollout is open"
    labels: int = 0
    estimate: float | None = None
    lower: float | None = None
    upper: float | None = None
    entry: int | None = None


def tick_result(
    model: str, state: RolloutState, stage: Stage, evidence: Evidence, decision: Decision, entry: Entry | None
) -> TickResult:
    """Say what a decision on evidence led to. entry: of the journal, or None if nothing was written."""
    gain = improvement(evidence.loss, state.policy)
    return TickResult(
        model=model,
        rollout=state.rollout,
        challenger=state.challenger,
        stage=stage,
        action=decision.action,
        rule=decision.rule,
        text=decision.text,
        labels=evidence.loss.labels,
        estimate=None if gain is None else gain.estimate,
        lower=None if gain is None else gain.lower,
        upper=None if gain is None else gain.upper,
        entry=None if entry is None else entry.number,
    )
