"""Decision of the judge, with the rule that made it and the findings of all rules."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from toque.functions.rollout.judge.rule_input import Finding

Action = Literal["hold", "drop", "advance", "ramp", "promote", "roll_back", "inconclusive"]


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
