"""Decision of the judge, with the rule that made it and the findings of all rules; and that over several challengers.

All of them are shadows of the same requests. Each is judged at its part of alpha (the policy's divided by the number that
started, for good), so the chance that any challenger that is not better is ever promoted stays within alpha, however the
one for the canary is picked. Those proven worse, failing or too small leave early; the rest waits for the best.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict

from toque.functions.rollout.evidence.sums import Evidence
from toque.functions.rollout.judge.interval import Improvement
from toque.functions.rollout.policy import RolloutPolicy
from toque.functions.rollout.state import RolloutState

Action = Literal["hold", "drop", "advance", "ramp", "promote", "roll_back", "inconclusive"]


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


class Decision(BaseModel):
    """Decision on a rollout: what to do, by which rule, and what every rule found.

    With several challengers: dropped, those that leave the shadow; chosen, the one that goes to the canary.
    """

    model_config = ConfigDict(frozen=True)

    action: Action
    rule: str
    findings: tuple[Finding, ...]
    dropped: tuple[int, ...] = ()
    chosen: int | None = None

    @property
    def text(self) -> str:
        """Text of the rule that decided."""
        matching = [finding for finding in self.findings if finding.rule == self.rule]
        about = [finding for finding in matching if self.chosen is not None and finding.arm == self.chosen]
        fired = [finding for finding in matching if finding.fired]
        return next((finding.text for finding in (*about, *fired, *matching)), "no rule fired")


def with_shared_alpha(policy: RolloutPolicy, state: RolloutState) -> RolloutPolicy:
    """Divide alpha and guard_alpha of the policy by the number of challengers."""
    arms = len(state.versions)
    if arms == 1:
        return policy
    return policy.model_copy(update={"alpha": policy.alpha / arms, "guard_alpha": policy.guard_alpha / arms})


def combine_decisions(each: Mapping[int, Decision]) -> Decision:
    """Combine the decisions for each challenger alone into one decision.

    each: by version, the front-runner first.
    """
    findings = tuple(
        finding.model_copy(update={"arm": arm})
        for arm, decision in each.items()
        for finding in decision.findings
    )
    leaving = {arm: one for arm, one in each.items() if one.action == "roll_back" or one.rule == "too_small"}
    if len(leaving) == len(each):
        harmless = [one for one in leaving.values() if one.action == "inconclusive"]
        last = (harmless or list(leaving.values()))[0]
        return Decision(action=last.action, rule=last.rule, findings=findings)
    if leaving:
        text = "; ".join(f"version {arm} leaves by {one.rule}: {one.text}" for arm, one in leaving.items())
        finding = Finding(rule="dropped", fired=True, text=text)
        return Decision(action="drop", rule="dropped", findings=(*findings, finding), dropped=tuple(leaving))
    ready = {arm: one for arm, one in each.items() if one.action == "advance"}
    if ready:
        best = max(ready, key=lambda arm: _estimate(ready[arm]))
        return Decision(action="advance", rule="shadow_done", findings=findings, chosen=best)
    first = next(iter(each.values()))  # the remaining rules concern all challengers alike
    return Decision(action=first.action, rule=first.rule, findings=findings)


def _estimate(decision: Decision) -> float:
    found = next(finding for finding in decision.findings if finding.rule == "shadow_done")
    return -float("inf") if found.statistic is None else found.statistic
