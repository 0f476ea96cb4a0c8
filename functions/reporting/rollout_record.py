"""Record of one rollout as values: every look at its confidence sequence, what was decided then and why, and by whom.

Made from the journal alone, by the functions that decided; `rollout_page` writes the same as a file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import AwareDatetime, BaseModel, ConfigDict

from toque.functions.reporting.rollout_page import RolloutDecision, read_rollout
from toque.functions.rollout.judge.arms import with_shared_alpha
from toque.functions.rollout.judge.interval import improvement
from toque.functions.rollout.state import RolloutState
from toque.functions.runtime.context import context
from toque.functions.runtime.function import function
from toque.registry import Entry, Journal

MAX_LOOKS = 400


class Gain(BaseModel):
    """Estimated reduction of the mean loss by one challenger; lower, upper: valid at every look, None where unbounded."""

    model_config = ConfigDict(frozen=True)

    version: int
    labels: int
    estimate: float
    lower: float | None
    upper: float | None


class Look(BaseModel):
    """One recorded look at a rollout. entry: its number in the journal."""

    model_config = ConfigDict(frozen=True)

    entry: int
    at: AwareDatetime
    stage: str
    action: str
    rule: str
    text: str
    gains: tuple[Gain, ...]


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


@function(http=True, role="viewer", timeout_s=60, in_thread=True)
def rollout_record(model: str, rollout: int | None = None) -> RolloutRecord:
    """Give the looks, decisions and changes of one rollout of `model`; looks that only held are thinned out.

    rollout: number of the journal entry that began it, as `rollout_status` tells; the newest one unless given.
    Raises: RolloutError if no rollout began there.
    """
    used = context()
    entries = list(Journal(used.store, f"rollouts/{model}", actor=used.actor).entries())
    state, decisions, by_hand = read_rollout(entries, rollout)
    by_number = {entry.number: entry for entry in entries}
    kept = thinned(decisions)
    return RolloutRecord(
        model=model,
        state=state,
        looks=tuple(map(_look, kept)),
        left_out=len(decisions) - len(kept),
        changes=tuple(_change(by_number[int(str(row[0]))]) for row in by_hand),
    )


def thinned(decisions: Sequence[RolloutDecision], most: int = MAX_LOOKS) -> list[RolloutDecision]:
    """Keep every decision that changed something, the last one, and evenly so many others that `most` stay."""
    if len(decisions) <= most:
        return list(decisions)
    told = [each.decision.action != "hold" or each is decisions[-1] for each in decisions]
    every = math.ceil(len(decisions) / max(1, most - sum(told)))
    return [each for index, each in enumerate(decisions) if told[index] or index % every == 0]


def _look(one: RolloutDecision) -> Look:
    policy = with_shared_alpha(one.before.policy, one.before)
    evidence = {one.before.challenger: one.evidence} | one.evidence.rivals
    found = {version: improvement(each.loss, policy) for version, each in evidence.items()}
    return Look(
        entry=one.entry,
        at=one.at,
        stage=one.before.stage,
        action=one.decision.action,
        rule=one.decision.rule,
        text=one.decision.text,
        gains=tuple(
            Gain(
                version=version,
                labels=gain.labels,
                estimate=gain.estimate,
                lower=_finite(gain.lower),
                upper=_finite(gain.upper),
            )
            for version, gain in found.items()
            if gain is not None
        ),
    )


def _change(entry: Entry) -> Change:
    body = entry.body
    return Change(
        entry=entry.number,
        at=body["at"],
        event=body["event"],
        reason=body.get("reason") or body.get("note") or "",
        actor=entry.actor,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
