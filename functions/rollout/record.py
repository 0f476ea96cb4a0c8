"""Record of one rollout from its journal alone: every decision with its evidence, what was done by hand, and by whom.

What it says was computed by the functions that decided, so it is what was judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from toque.functions.rollout.errors import RolloutError
from toque.functions.rollout.evidence.sums import Evidence, PairedLoss
from toque.functions.rollout.judge.interval import improvement
from toque.functions.rollout.judge.verdict import Decision, with_shared_alpha
from toque.functions.rollout.state import History, RolloutState, step
from toque.registry import Entry

MAX_LOOKS = 400
RolloutNumber = Annotated[
    int | None,
    Field(
        ge=0,
        le=1_000_000_000,
        description=(
            "Number of the journal entry that began the rollout, "
            "as `rollout_status` tells; the newest unless given."
        ),
    ),
]


class Effect(BaseModel):
    """Difference by which a challenger's mean loss is lower.

    lower, upper: valid at every look; None where unbounded. All are None until it can be judged.
    """

    model_config = ConfigDict(frozen=True)

    version: int
    labels: int
    estimate: float | None = None
    lower: float | None = None
    upper: float | None = None

    @classmethod
    def of(cls, version: int, loss: PairedLoss, state: RolloutState) -> Effect:
        """Judge the loss of one challenger of a rollout."""
        gain = improvement(loss, with_shared_alpha(state.policy, state))
        if gain is None:
            return cls(version=version, labels=loss.labels)
        lower, upper = (each if math.isfinite(each) else None for each in (gain.lower, gain.upper))
        return cls(version=version, labels=gain.labels, estimate=gain.estimate, lower=lower, upper=upper)


class Look(BaseModel):
    """One recorded look at a rollout. entry: its number in the journal; gains: of the challengers that could be judged."""

    model_config = ConfigDict(frozen=True)

    entry: int
    at: AwareDatetime
    stage: str
    action: str
    rule: str
    text: str
    gains: tuple[Effect, ...]


class Change(BaseModel):
    """Change of a rollout that a person, or the bookkeeping, made."""

    model_config = ConfigDict(frozen=True)

    entry: int
    at: AwareDatetime
    event: str
    reason: str
    actor: str


class RolloutRecord(BaseModel):
    """Record of one rollout from its journal. looks: oldest first, at most `MAX_LOOKS`; left_out: looks that held and are not among them."""

    model_config = ConfigDict(frozen=True)

    model: str
    state: RolloutState
    looks: tuple[Look, ...]
    left_out: int
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class RolloutDecision:
    """Recorded decision of a rollout, and the state before it."""

    entry: int
    at: datetime
    before: RolloutState
    decision: Decision
    evidence: Evidence

    @classmethod
    def of(cls, entry: Entry, before: RolloutState) -> RolloutDecision:
        """Read the decision that a journal entry records."""
        body = entry.body
        at = datetime.fromisoformat(body["at"])
        decision, evidence = (
            Decision.model_validate(body["decision"]),
            Evidence.model_validate(body["evidence"]),
        )
        return cls(entry.number, at, before, decision, evidence)

    @property
    def look(self) -> Look:
        """What was seen and decided, with the effect of each challenger."""
        evidence = {self.before.challenger: self.evidence} | self.evidence.rivals
        effects = [Effect.of(version, each.loss, self.before) for version, each in evidence.items()]
        return Look(
            entry=self.entry,
            at=self.at,
            stage=self.before.stage,
            action=self.decision.action,
            rule=self.decision.rule,
            text=self.decision.text,
            gains=tuple(each for each in effects if each.estimate is not None),
        )


def read_rollout(
    entries: Iterable[Entry], rollout: int | None = None
) -> tuple[RolloutState, list[RolloutDecision], list[Change]]:
    """Read a rollout from the journal: its last state, its decisions, and what was done by hand.

    entries: the whole journal, from its first entry on. rollout: number of the entry that began it; None: the newest.
    Raises: RolloutError if no rollout began there.
    """
    history, last, decisions, changes = History(), None, list[RolloutDecision](), list[Change]()
    for entry in entries:
        body, before, history = entry.body, history.current, step(history, entry)
        if body["event"] == "started":
            if rollout is not None and last is not None:
                break
            decisions, changes = [], []
            last = history.current if rollout in (None, entry.number) else None
        if last is None or history.current is None:
            continue
        last = history.current
        if body["event"] == "decided" and before is not None:
            decisions.append(RolloutDecision.of(entry, before))
        else:
            reason = body.get("reason") or body.get("note") or ""
            changes.append(
                Change(
                    entry=entry.number, at=body["at"], event=body["event"], reason=reason, actor=entry.actor
                )
            )
    if last is None:
        began = "any entry" if rollout is None else f"entry {rollout}"
        raise RolloutError(f"no rollout began at {began} of this journal; start one")
    return last, decisions, changes


def record_of(
    model: str, state: RolloutState, decisions: Sequence[RolloutDecision], changes: Sequence[Change]
) -> RolloutRecord:
    """Make the record of a rollout that was read; looks that only held are thinned out."""
    shown = thinned(decisions)
    return RolloutRecord(
        model=model,
        state=state,
        looks=tuple(each.look for each in shown),
        left_out=len(decisions) - len(shown),
        changes=tuple(changes),
    )


def thinned(decisions: Sequence[RolloutDecision], most: int = MAX_LOOKS) -> list[RolloutDecision]:
    """Keep every decision that changed something, the last one, and evenly so many others that `most` stay."""
    if len(decisions) <= most:
        return list(decisions)
    stays = [each.decision.action != "hold" or each is decisions[-1] for each in decisions]
    every = math.ceil(len(decisions) / max(1, most - sum(stays)))
    return [each for index, each in enumerate(decisions) if stays[index] or index % every == 0]
