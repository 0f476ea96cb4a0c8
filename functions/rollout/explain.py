"""Replay of a recorded decision from the journal alone.

Sums are in the journal to the bit. What is computed of them comes out to the bit on the same kind of processor; on another one a
logarithm may be rounded otherwise, so numbers are compared within `SAME_WITHIN`, and verdicts exactly.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from toque.functions.rollout.errors import RolloutError
from toque.functions.rollout.evidence.sums import Evidence
from toque.functions.rollout.judge.decide import Decision, Finding, decide
from toque.functions.rollout.record import RolloutDecision
from toque.functions.rollout.state import History, RolloutState, step
from toque.registry import Entry

SAME_WITHIN = 1e-9
"""Difference of two numbers, as a part of either, that processors which round otherwise may make."""
_NEAR_ZERO = 1e-12
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?")


class Explanation(BaseModel):
    """Recorded decision and its replay from the journal.

    text: what was decided, and whether it comes out again, in a sentence. same: whether every finding did: verdicts exactly, numbers
    within `SAME_WITHIN`; exact: to the bit. different: the rules that find something else now, each as "rule" or "rule of version 3".
    state, evidence: the inputs of the rules, complete together with `at`. recomputed: None for a person's decision,
    which no rule made.
    """

    model_config = ConfigDict(frozen=True)

    entry: int
    at: datetime
    text: str
    same: bool
    exact: bool = True
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
    record = RolloutDecision.of(entry, state)
    at, recorded, evidence = record.at, record.decision, record.evidence
    replayed = _again(state, evidence, recorded, at)
    exact = replayed is None or replayed == recorded
    same = replayed is None or exact or _alike(recorded, replayed)
    return Explanation(
        entry=entry.number,
        at=at,
        text=_sentence(
            state, recorded, at, same=same, exact=exact, by_whom=entry.actor if replayed is None else None
        ),
        same=same,
        exact=exact,
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
        if not _alike_findings(before.get((rule, arm)), now.get((rule, arm)))
    )


def _alike(recorded: Decision, replayed: Decision) -> bool:
    """Whether two decisions are the same but for how a processor rounds."""
    verdicts = [(one.action, one.rule, one.dropped, one.chosen) for one in (recorded, replayed)]
    return verdicts[0] == verdicts[1] and not _different(recorded, replayed)


def _alike_findings(before: Finding | None, now: Finding | None) -> bool:
    if before is None or now is None:
        return before is now
    numbers = ((before.statistic, now.statistic), (before.threshold, now.threshold))
    return (
        (before.rule, before.fired, before.arm) == (now.rule, now.fired, now.arm)
        and all(_close(*pair) for pair in numbers)
        and _alike_texts(before.text, now.text)
    )


def _close(before: float | None, now: float | None) -> bool:
    if before is None or now is None:
        return before is now
    return before == now or math.isclose(before, now, rel_tol=SAME_WITHIN, abs_tol=_NEAR_ZERO)


def _alike_texts(before: str, now: str) -> bool:
    """Whether two texts are the same but for the last place of a number, which may have been rounded up in one and down in the other."""
    if _NUMBER.sub("#", before) != _NUMBER.sub("#", now):
        return False
    pairs = zip(_NUMBER.findall(before), _NUMBER.findall(now), strict=True)
    return all(a == b or abs(float(a) - float(b)) <= 1.01 * max(_place(a), _place(b)) for a, b in pairs)


def _place(number: str) -> float:
    """Value of the last printed place of a number, 0 of a whole one: a count is never rounded."""
    digits, _, exponent = number.partition("e")
    decimals = len(digits.partition(".")[2])
    return 10.0 ** (int(exponent or 0) - decimals) if decimals or exponent else 0.0


def _sentence(
    state: RolloutState, recorded: Decision, at: datetime, *, same: bool, exact: bool, by_whom: str | None
) -> str:
    challengers = f"version{'s' if state.rivals else ''} {', '.join(map(str, state.alive))}"
    rule = "hand" if by_whom is not None else recorded.rule
    what = (
        f"{at:%Y-%m-%d %H:%M} UTC, rollout {state.rollout}: {challengers} against {state.champion}, in {state.stage}: "
        f"{recorded.action} by {rule}: {recorded.text}"
    )
    if by_whom is not None:
        return f"{what}. {by_whom} decided, so there is no rule to ask again."
    if exact:
        return f"{what}. Made again, it is the same, bit for bit."
    if same:
        return f"{what}. Made again, it is the same within {SAME_WITHIN:g}: this processor rounds otherwise."
    return f"{what}. Made again, it is NOT the same: see different."
