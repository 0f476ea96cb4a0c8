"""Replay of a recorded decision from the journal alone."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from functions.rollout.errors import RolloutError
from functions.rollout.evidence.sums import Evidence
from functions.rollout.judge.decide import Decision, decide
from functions.rollout.state import History, RolloutState, step
from registry import Entry


class Explanation(BaseModel):
    """Recorded decision and its replay from the journal.

    text: what was decided, and whether it comes out again, in a sentence. same: whether every finding did, bit for bit;
    different: the rules that find something else now, each as "rule" or "rule of version 3".
    state, evidence: the inputs of the rules, complete together with `at`. recomputed: None for a person's decision,
    which no rule made.
    """

    model_config = ConfigDict(frozen=True)

    entry: int
    at: datetime
    text: str
    same: bool
    different: tuple[str, ...] = ()
    recorded: Decision
    recomputed: Decision | None
    state: RolloutState
    evidence: Evidence


def explain(entries: Iterable[Entry], number: int) -> Explanation:
    """Replay the decision of entry `number` and compare it with the record.

    entries: the journal from its first entry on, at least up to that one.
    Raises: RolloutError if it is not there or holds no decision.
    """
    history = History()
    for entry in entries:
        if entry.number == number:
            return _explain(history, entry)
        history = step(history, entry)
    raise RolloutError(f"the journal of this model's rollouts has no entry {number}")


def _explain(before: History, entry: Entry) -> Explanation:
    state = before.current
    if entry.body["event"] != "decided" or state is None:
        raise RolloutError(f"entry {entry.number} is {entry.body['event']!r} and holds no decision")
    at = datetime.fromisoformat(entry.body["at"])
    recorded = Decision.model_validate(entry.body["decision"])
    evidence = Evidence.model_validate(entry.body["evidence"])
    replayed = _again(state, evidence, recorded, at)
    same = replayed is None or replayed == recorded
    return Explanation(
        entry=entry.number,
        at=at,
        text=_sentence(state, recorded, at, same=same, by_whom=entry.actor if replayed is None else None),
        same=same,
        different=() if replayed is None else _different(recorded, replayed),
        recorded=recorded,
        recomputed=replayed,
        state=state,
        evidence=evidence,
    )


def _again(state: RolloutState, evidence: Evidence, recorded: Decision, at: datetime) -> Decision | None:
    if recorded.rule == "by_hand":
        return None
    rules_then = {finding.rule for finding in recorded.findings}  # rules added since were not asked then
    return decide(state, evidence, state.policy, at, rules=rules_then)


def _different(recorded: Decision, replayed: Decision) -> tuple[str, ...]:
    before, now = ({(one.rule, one.arm): one for one in made.findings} for made in (recorded, replayed))
    return tuple(
        rule if arm is None else f"{rule} of version {arm}"
        for rule, arm in dict.fromkeys([*before, *now])
        if before.get((rule, arm)) != now.get((rule, arm))
    )


def _sentence(
    state: RolloutState, recorded: Decision, at: datetime, *, same: bool, by_whom: str | None
) -> str:
    challengers = f"version{'s' if state.rivals else ''} {', '.join(map(str, state.alive))}"
    rule = "hand" if by_whom is not None else recorded.rule
    what = (
        f"{at:%Y-%m-%d %H:%M} UTC, rollout {state.rollout}: {challengers} against {state.champion}, in {state.stage}: "
        f"{recorded.action} by {rule}: {recorded.text}"
    )
    if by_whom is not None:
        return f"{what}. {by_whom} decided, so there is no rule to ask again."
    return f"{what}. Made again, it is {'the same, bit for bit' if same else 'NOT the same: see different'}."
