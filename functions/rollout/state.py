"""State of rollouts as a pure fold of their journal, `step(history, entry)`; nothing here reads or writes.

One journal a model, `rollouts/{model}`; one entry for each thing that happened, with the evidence and the policy it
was decided on, so that the decision can be made again from the journal alone. Each rollout's alpha is drawn from a yearly
budget of wrong promotions, and the journal remembers what was drawn.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

from toque.functions.rollout.policy import RolloutPolicy
from toque.registry import Entry

Stage = Literal["shadow", "canary", "promoted", "rolled_back", "inconclusive"]
OPEN_STAGES: tuple[Stage, ...] = ("shadow", "canary")
YEAR = timedelta(days=365)
MAX_OUTCOMES = 64  # finished rollouts that the fold remembers; the journal keeps them all
# Of the rest of the budget for one rollout: it never runs dry, rollouts only get slower.
MAX_SHARE_OF_REST = 0.25


class RolloutState(BaseModel):
    """State of one rollout, as folded from the journal.

    rollout: number of the entry that began it. traffic_entry: the registry entry on which the last change of traffic
    was decided; the change is made only while that is still the newest, hence at most once.
    canary_since: when users first met the challenger. step, step_since: which share of the policy's ramp it has, and since when
    (None: since the canary began). split_share: the canary's part of what it and the champion answer, where it was noted;
    split_entry: the registry entry of a split that was set by hand since, of which counts began anew. judged_labels: paired labels at the last recorded decision.
    settled: the rollout has ended and its last change of traffic was seen to be made, or given up on.
    rivals: the other challengers that are still in the shadow. entered: all that started, where there were several.
    """

    model_config = ConfigDict(frozen=True)

    rollout: int
    champion: int
    challenger: int
    policy: RolloutPolicy
    stage: Stage
    started_at: AwareDatetime
    stage_since: AwareDatetime
    traffic_entry: int
    canary_since: AwareDatetime | None = None
    step: int = 0
    step_since: AwareDatetime | None = None
    split_share: float | None = None
    split_entry: int | None = None
    paused: bool = False
    settled: bool = False
    judged_labels: int = 0
    reason: str = ""
    rivals: tuple[int, ...] = ()
    entered: tuple[int, ...] = ()

    @property
    def versions(self) -> tuple[int, ...]:
        """All challengers that started, including those that left."""
        return self.entered or (self.challenger,)

    @property
    def alive(self) -> tuple[int, ...]:
        """Challengers that are still judged, the front-runner first."""
        return (self.challenger, *self.rivals)

    @property
    def split_since(self) -> datetime:
        """When the units were split as they are now: evidence from before is of other shares."""
        return self.step_since or self.canary_since or self.started_at

    @property
    def canary_share(self) -> float:
        """Share that the policy gives the canary at this step."""
        return self.policy.shares[self.step]

    @property
    def is_last_step(self) -> bool:
        """Whether the canary has its largest share."""
        return self.step + 1 >= len(self.policy.shares)

    def only(self, version: int) -> RolloutState:
        """Copy the state with `version` as the only challenger left."""
        return self.model_copy(update={"challenger": version, "rivals": ()})

    @property
    def is_open(self) -> bool:
        """Whether the rollout still has something to decide."""
        return self.stage in OPEN_STAGES


class Outcome(BaseModel):
    """How one finished rollout ended."""

    model_config = ConfigDict(frozen=True)

    rollout: int
    champion: int
    challenger: int
    stage: Stage
    rule: str
    started_at: AwareDatetime
    ended_at: AwareDatetime
    note: str = ""


class AlphaSpent(BaseModel):
    """Alpha, the chance of a wrong promotion, that one rollout was given when it started."""

    model_config = ConfigDict(frozen=True)

    at: AwareDatetime
    alpha: float


class History(BaseModel):
    """State of all rollouts of a model: the newest one, how the last ones ended, and the alphas of the past year."""

    model_config = ConfigDict(frozen=True)

    current: RolloutState | None = None
    outcomes: tuple[Outcome, ...] = ()
    spent: tuple[AlphaSpent, ...] = ()

    @property
    def open(self) -> RolloutState | None:
        """Rollout that is under way, or None."""
        return self.current if self.current is not None and self.current.is_open else None


def step(history: History, entry: Entry) -> History:
    """Fold one entry of the journal into `history`.

    Raises: ValueError for an event that is not of this journal, or that concerns no rollout.
    """
    number, body = entry.number, entry.body
    event, at = body["event"], datetime.fromisoformat(body["at"])
    if event == "started":
        state = _started(number, body, at)
        within = [one for one in history.spent if one.at > at - YEAR]
        spent = (*within, AlphaSpent(at=at, alpha=state.policy.alpha))
        return history.model_copy(update={"current": state, "spent": spent})
    current = history.current
    if current is None:
        raise ValueError(
            f"entry {number}: event {event!r} before any rollout started; the journal is damaged"
        )
    if event == "decided":
        return _decided(history, current, body, at)
    if event == "settled":
        return _settled(history, current, body)
    if event == "split":
        return history.model_copy(update={"current": _split(current, body, at)})
    if event in ("paused", "resumed"):
        return history.model_copy(update={"current": _paused(current, at, paused=event == "paused")})
    raise ValueError(
        f"entry {number}: unknown event {event!r}; it was written by a newer Toque: upgrade this one"
    )


def _started(number: int, body: dict[str, Any], at: datetime) -> RolloutState:
    return RolloutState(
        rollout=number,
        champion=body["champion"],
        challenger=body["challenger"],
        policy=RolloutPolicy.model_validate(body["policy"]),
        stage="shadow",
        started_at=at,
        stage_since=at,
        traffic_entry=body["traffic_entry"],
        reason=body["reason"],
        rivals=tuple(body.get("rivals", ())),
        entered=(body["challenger"], *body["rivals"]) if body.get("rivals") else (),
    )


def _paused(current: RolloutState, at: datetime, *, paused: bool) -> RolloutState:
    # Resuming starts the stage's clock again: time spent paused must not run into its timeout.
    since = current.stage_since if paused else at
    return current.model_copy(update={"paused": paused, "stage_since": since})


def _split(current: RolloutState, body: dict[str, Any], at: datetime) -> RolloutState:
    """Begin the counts of a split that was set by hand."""
    update = {"step_since": at, "split_share": body["share"], "split_entry": body["traffic_entry"]}
    return current.model_copy(update=update)


def _settled(history: History, current: RolloutState, body: dict[str, Any]) -> History:
    after = current.model_copy(update={"settled": True, "stage": body["stage"]})
    last = history.outcomes[-1].model_copy(update={"stage": body["stage"], "note": body["note"]})
    return history.model_copy(update={"current": after, "outcomes": (*history.outcomes[:-1], last)})


def _decided(history: History, current: RolloutState, body: dict[str, Any], at: datetime) -> History:
    update: dict[str, Any] = {"judged_labels": body["labels"]}
    arms = _arms_left(current, body["decision"])
    if arms:
        update |= {**arms, "traffic_entry": body["traffic_entry"]}
    if body["stage"] != current.stage:
        update |= {"stage": body["stage"], "stage_since": at, "traffic_entry": body["traffic_entry"]}
        update |= {"canary_since": at} if body["stage"] == "canary" else {}
    if body["decision"]["action"] == "ramp":
        update |= {"step": current.step + 1, "step_since": at, "traffic_entry": body["traffic_entry"]}
    if "traffic_entry" in update:
        update |= {"split_share": None, "split_entry": None}
    elif current.stage == "canary":
        update |= {"split_share": body["evidence"].get("canary_share")}
    after = current.model_copy(update=update)
    if after.is_open:
        return history.model_copy(update={"current": after})
    outcome = Outcome(
        rollout=after.rollout,
        champion=after.champion,
        challenger=after.challenger,
        stage=after.stage,
        rule=body["decision"]["rule"],
        started_at=after.started_at,
        ended_at=at,
    )
    outcomes = (*history.outcomes, outcome)[-MAX_OUTCOMES:]
    return history.model_copy(update={"current": after, "outcomes": outcomes})


def _arms_left(current: RolloutState, decision: dict[str, Any]) -> dict[str, Any]:
    """Update the challengers after a decision: some leave, or one goes on alone."""
    chosen, dropped = decision.get("chosen"), decision.get("dropped") or ()
    if chosen is not None:
        return {"challenger": chosen, "rivals": ()}
    left = [version for version in current.alive if version not in dropped]
    return {"challenger": left[0], "rivals": tuple(left[1:])} if dropped and left else {}


class Budget(BaseModel):
    """Budget of wrong promotions and what rollouts of the past 365 days drew from it.

    rollouts: how many started. spent: sum of their alphas, a bound on the expected number of promotions of challengers that
    were not better, however each start depended on how the ones before ended. left: of the policy's budget; None: the policy has no budget.
    alpha: what a rollout that starts now runs at.
    """

    model_config = ConfigDict(frozen=True)

    rollouts: int
    spent: float
    left: float | None
    alpha: float


def budget(history: History, policy: RolloutPolicy, now: datetime) -> Budget:
    """Compute the budget as of `now`. A rollout gets the policy's alpha, but no more than a quarter of what is left.

    Source: linearity of expectation over rollouts, each wrong with a chance of at most its alpha given what came before.
    """
    recent = [one.alpha for one in history.spent if one.at > now - YEAR]
    spent = sum(recent)
    if policy.wrong_promotions_a_year is None:
        return Budget(rollouts=len(recent), spent=spent, left=None, alpha=policy.alpha)
    left = max(policy.wrong_promotions_a_year - spent, 0.0)
    return Budget(
        rollouts=len(recent), spent=spent, left=left, alpha=min(policy.alpha, MAX_SHARE_OF_REST * left)
    )


def within_budget(policy: RolloutPolicy, history: History, now: datetime) -> RolloutPolicy:
    """Return the policy with the alpha that the budget affords.

    Raises: ValueError if nothing is left, which takes a budget that was lowered.
    """
    found = budget(history, policy, now)
    if found.alpha <= 0.0:
        raise ValueError(
            f"wrong_promotions_a_year={policy.wrong_promotions_a_year} is spent: {found.rollouts} rollouts of the past year "
            f"were given {found.spent:.4g}; raise it, or wait until the oldest of them are a year old"
        )
    return policy if found.alpha == policy.alpha else policy.model_copy(update={"alpha": found.alpha})
