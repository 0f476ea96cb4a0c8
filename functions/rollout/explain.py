"""A decision made again from the journal alone."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from functions.rollout.decide import Decision, decide
from functions.rollout.errors import RolloutError
from functions.rollout.evidence import Evidence
from functions.rollout.state import History, step
from registry import Entry


class Explained(BaseModel):
    """A recorded decision made again. same: whether every finding came out bit for bit as recorded."""

    model_config = ConfigDict(frozen=True)

    entry: int
    at: datetime
    recorded: Decision
    recomputed: Decision | None
    same: bool
    evidence: Evidence


def explain(entries: Iterable[Entry], number: int) -> Explained:
    """Make the decision of entry `number` again.

    entries: the journal from its first entry on, at least up to that one.
    Raises: RolloutError if it is not there or holds no decision.
    """
    history = History()
    for entry in entries:
        if entry.number == number:
            return _explain(history, entry)
        history = step(history, entry)
    raise RolloutError(f"the journal of this model's rollouts has no entry {number}")


def _explain(before: History, entry: Entry) -> Explained:
    state = before.current
    if entry.body["event"] != "decided" or state is None:
        raise RolloutError(f"entry {entry.number} is {entry.body['event']!r} and holds no decision")
    at = datetime.fromisoformat(entry.body["at"])
    recorded = Decision.model_validate(entry.body["decision"])
    evidence = Evidence.model_validate(entry.body["evidence"])
    if recorded.rule == "by_hand":  # a person's decision has no rule to ask again
        return Explained(
            entry=entry.number, at=at, recorded=recorded, recomputed=None, same=True, evidence=evidence
        )
    again = decide(state, evidence, state.policy, at)
    return Explained(
        entry=entry.number,
        at=at,
        recorded=recorded,
        recomputed=again,
        same=again == recorded,
        evidence=evidence,
    )
