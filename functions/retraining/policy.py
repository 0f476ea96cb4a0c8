"""Retraining policy, and the pure decision whether an alarm leads to a retrain.

A hundred alarms make one retrain; a retrain's own effect never makes the next; retrains without a promotion make the next
wait longer. `decide` asks the rules of `RULES` in order; the first that fires decides, and all findings are recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Any, Literal, Self

from croniter import croniter
from pydantic import AwareDatetime, BaseModel, Field, model_validator

from toque.functions.monitoring.alarms import Alarm
from toque.functions.retraining.windows import TrainingWindow
from toque.functions.rollout.judge.decide import Finding
from toque.functions.rollout.state import Stage
from toque.registry import Entry

__all__ = [
    "RULES",
    "Action",
    "Blackout",
    "Finished",
    "RetrainDecision",
    "RetrainState",
    "RetrainingPolicy",
    "Running",
    "Situation",
    "TrainingWindow",
    "Trigger",
    "counted_starts",
    "current_cooldown",
    "decide",
    "retrains_in_vain",
    "step",
]

Action = Literal["retrain", "resume", "skip"]
Trigger = Literal["performance", "drift", "age", "schedule", "volume", "manual"]
"""The monitors that may lead to a retrain: "quality" is not among them: a broken feed is repaired, not learnt from."""
_TRANSIENT = ("performance", "drift")  # monitors whose alarms may be over by themselves
_AGAIN = timedelta(hours=1)  # between retrains of which one after the other fails
MOST_BUDGET = 1_000
_MAX_FINISHED = MOST_BUDGET  # retrains that the fold remembers, so that every budget can be spent


class Blackout(BaseModel, frozen=True, extra="forbid"):
    """Time span in which no retrain starts."""

    start: AwareDatetime
    end: AwareDatetime


class RetrainingPolicy(BaseModel, frozen=True, extra="forbid"):
    """Policy that says when and how a model is retrained.

    triggers: the monitors whose alarms count. important: features of which one must have drifted for drift to count; empty:
        any. max_age, schedule, min_new_labels: raise an alarm of the policy's own ("age", "schedule", "volume") once the champion
        is older, at the times of a cron expression, and once so many labels came since it or the last retrain began.
    persist: how long an alarm must have stood; quorum: how many must stand at once, each of another monitor or subject. Both
        do not apply to a person's request or the policy's own alarms.
    A person's request waits for neither cooldown, settle, budget nor blackouts: it begins now, unless a retrain or rollout is under way.
    cooldown: between the starts of two retrains; it grows by `backoff` with each in a row that brought no promotion, up to
        `max_cooldown`. One that failed counts for none of these. settle: after a promotion, while its own effects show.
    budget, budget_window: most retrains in a sliding window, at most 1,000. blackouts: times without a retrain.
    windows: a challenger is trained on each. holdout: how long before the newest labelled row those begin that are kept for the gate; the
        newest fifth where all rows are younger. label_delay: rows younger than this
        are in neither, since their labels are incomplete.
    max_champion_ratio: log loss of a challenger over the champion's on the held-out rows, at most; None: not compared.
    approver: in whose name a challenger that passed its gate is approved, if the model's registry policy has
        `automatic_approval`, which is off by default; None: never automatically.
    lost_after: wall-clock time without a heartbeat after which a retrain counts as dead and is taken up again.
    """

    triggers: tuple[Trigger, ...] = ("performance", "drift", "age", "schedule", "volume", "manual")
    important: tuple[str, ...] = ()
    max_age: timedelta | None = None
    schedule: str | None = None
    min_new_labels: int | None = Field(default=None, ge=1)
    persist: timedelta = timedelta(0)
    quorum: int = Field(default=1, ge=1)
    cooldown: timedelta = timedelta(days=14)
    backoff: float = Field(default=2.0, ge=1.0)
    max_cooldown: timedelta = timedelta(days=90)
    settle: timedelta = timedelta(days=3)
    budget: int = Field(default=12, ge=1, le=MOST_BUDGET)
    budget_window: timedelta = timedelta(days=365)
    blackouts: tuple[Blackout, ...] = ()
    windows: tuple[TrainingWindow, ...] = (TrainingWindow(name="all"), TrainingWindow(name="recent", days=60))
    holdout: timedelta = timedelta(days=7)
    label_delay: timedelta = timedelta(days=1)
    max_champion_ratio: float | None = Field(default=1.0, gt=0)
    approver: str | None = "retraining-policy"
    lost_after: timedelta = timedelta(minutes=30)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [window.name for window in self.windows]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"windows need at least one, each with its own name; got {names}")
        if self.schedule is not None and not croniter.is_valid(self.schedule):
            raise ValueError(
                f"schedule {self.schedule!r} is no cron expression; write five fields, as in '0 6 * * 1'"
            )
        for name in ("holdout", "lost_after", "budget_window"):
            if getattr(self, name) <= timedelta(0):
                raise ValueError(f"{name} must be longer than zero, got {getattr(self, name)}")
        return self

    def counts(self, alarm: Alarm) -> bool:
        """Whether an alarm of such a monitor, about such features, may lead to a retrain."""
        return alarm.monitor in self.triggers and self.is_important(alarm)

    def is_important(self, alarm: Alarm) -> bool:
        """Whether an alarm is anything but drift of features of which none is important."""
        drifted = alarm.columns if alarm.monitor == "drift" else ()
        return not self.important or not drifted or not set(drifted).isdisjoint(self.important)


class Running(BaseModel, frozen=True):
    """Retrain that has begun and not ended.

    number: of its journal entry. at: when, on the platform's clock. wall: when it was last begun, by the wall clock.
    """

    number: int
    alarm: Alarm
    at: AwareDatetime
    wall: AwareDatetime
    champion: int


class Finished(BaseModel, frozen=True):
    """Outcome of a retrain that has ended. version: the challenger that was rolled out, if any."""

    number: int
    started_at: AwareDatetime
    outcome: Literal["rolled_out", "no_challenger", "failed"]
    version: int | None = None
    text: str = ""


class RetrainState(BaseModel, frozen=True):
    """State folded from the journal `retraining/{model}`.

    last_skip: rule of the last recorded skip since the last start.
    """

    running: Running | None = None
    finished: tuple[Finished, ...] = ()
    starts: tuple[AwareDatetime, ...] = ()
    last_skip: str | None = None


class Situation(BaseModel, frozen=True):
    """Situation of the model beside the alarm, as an input of the decision.

    champion_since: when it took over. rollout_open: whether a rollout is under way. ends: how rollouts ended, by challenger.
    wall: the wall clock, by which a retrain counts as dead; `now` may be a replayed time. seen: last heartbeat of the retrain that runs.
    incidents: for each column that a standing data-quality incident spoils, what it says. standing: what the alarms are about
    that stand against the champion and are not explained, "monitor/subject".
    """

    champion: int | None
    champion_since: AwareDatetime | None = None
    rollout_open: bool = False
    ends: dict[int, Stage] = {}
    wall: AwareDatetime
    seen: AwareDatetime | None = None
    incidents: dict[str, str] = {}
    standing: tuple[str, ...] = ()


class RetrainDecision(BaseModel, frozen=True):
    """Decision on an alarm: what to do, by which rule, and what every rule found."""

    action: Action
    rule: str
    findings: tuple[Finding, ...]

    @property
    def text(self) -> str:
        """Text of the rule that decided."""
        return next((one.text for one in self.findings if one.rule == self.rule), "nothing speaks against it")


@dataclass(frozen=True, slots=True)
class _RuleInput:
    state: RetrainState
    alarm: Alarm
    world: Situation
    policy: RetrainingPolicy
    now: datetime


def decide(
    state: RetrainState, alarm: Alarm, world: Situation, policy: RetrainingPolicy, now: datetime
) -> RetrainDecision:
    """Decide whether `alarm` leads to a retrain. Raises: ValueError if `now` has no time zone."""
    if now.tzinfo is None:
        raise ValueError(f"now {now} has no time zone; pass an aware UTC time")
    inputs = _RuleInput(state, alarm, world, policy, now)
    findings = [(action, rule(inputs)) for action, rule in RULES]
    action, rule = next(((a, f.rule) for a, f in findings if f.fired), ("retrain", "go"))
    return RetrainDecision(action=action, rule=rule, findings=tuple(finding for _, finding in findings))


def counted_starts(state: RetrainState) -> tuple[datetime, ...]:
    """Return the starts of retrains that did not fail; one that died has changed nothing, so nothing waits for it."""
    failed = {one.started_at for one in state.finished if one.outcome == "failed"}
    return tuple(start for start in state.starts if start not in failed)


def failures_in_row(state: RetrainState) -> tuple[Finished, ...]:
    """Return the last retrains in a row that failed, newest first."""
    return tuple(takewhile(lambda one: one.outcome == "failed", reversed(state.finished)))


def retrains_in_vain(state: RetrainState, ends: Mapping[int, Stage]) -> int:
    """Count the last retrains in a row that brought no promotion; those that failed do not count."""
    count = 0
    for one in reversed(state.finished):
        if one.outcome == "failed":
            continue
        if one.version is not None and ends.get(one.version) == "promoted":
            break
        count += 1
    return count


def current_cooldown(state: RetrainState, ends: Mapping[int, Stage], policy: RetrainingPolicy) -> timedelta:
    """Compute the cooldown in force after retrains without a promotion."""
    factor = policy.backoff ** min(retrains_in_vain(state, ends), 32)
    longest = max(policy.max_cooldown, policy.cooldown)
    return min(
        longest, timedelta(seconds=min(policy.cooldown.total_seconds() * factor, longest.total_seconds()))
    )


def _age(inputs: _RuleInput, rule: Literal["running", "dead"]) -> Finding:
    """Tell a running retrain from one that counts as dead, since it has been silent for too long."""
    running = inputs.state.running
    if running is None:
        return Finding(rule=rule, fired=False, text="no retrain has begun and not ended")
    wall, limit = inputs.world.wall, inputs.policy.lost_after
    silence = wall - max(running.wall, inputs.world.seen or running.wall)
    silent = "" if inputs.world.seen is None else f", silent for {silence}"
    text = f"retrain {running.number} began {wall - running.wall} ago and has not ended{silent}; dead after {limit}"
    return Finding(rule=rule, fired=(silence < limit) == (rule == "running"), text=text)


def _no_trigger(inputs: _RuleInput) -> Finding:
    alarm = inputs.alarm
    fired = alarm.recovered or alarm.monitor not in inputs.policy.triggers
    text = f"alarm of {alarm.monitor}{' (recovered)' if alarm.recovered else ''}; triggers: {inputs.policy.triggers}"
    return Finding(rule="no_trigger", fired=fired, text=text)


def _unimportant(inputs: _RuleInput) -> Finding:
    """Check for drift of features that the policy does not count."""
    alarm, important = inputs.alarm, inputs.policy.important
    counted = sorted(set(alarm.columns) & set(important))
    fired = not inputs.policy.is_important(alarm)
    text = (
        f"of the important features {', '.join(counted) or 'none'} drifted"
        if important
        else "every feature is important"
    )
    return Finding(rule="unimportant", fired=fired, text=text)


def _too_young(inputs: _RuleInput) -> Finding:
    """Check for an alarm that has not stood long enough."""
    age, persist = inputs.now - inputs.alarm.raised_at, inputs.policy.persist
    fired = inputs.alarm.monitor in _TRANSIENT and age < persist
    return Finding(
        rule="too_young", fired=fired, text=f"the alarm has stood for {age}, must stand for {persist}"
    )


def _no_quorum(inputs: _RuleInput) -> Finding:
    """Check for too few alarms that stand at once."""
    agreeing = {*inputs.world.standing, f"{inputs.alarm.monitor}/{inputs.alarm.subject}"}
    fired = inputs.alarm.monitor in _TRANSIENT and len(agreeing) < inputs.policy.quorum
    text = f"{len(agreeing)} of {inputs.policy.quorum} alarms that must stand at once: {', '.join(sorted(agreeing))}"
    return Finding(rule="no_quorum", fired=fired, text=text)


def _explained(inputs: _RuleInput) -> Finding:
    """Check for drift of columns that an incident spoiled, when the alarm was raised or by now."""
    alarm, rule = inputs.alarm, "explained"
    if alarm.explained_by:
        text = f"{', '.join(alarm.columns)}: explained by the incidents {', '.join(alarm.explained_by)}"
        return Finding(rule=rule, fired=True, text=text)
    standing = inputs.world.incidents
    left = [name for name in alarm.columns if name not in standing]
    if alarm.monitor != "drift" or not alarm.columns or left:
        return Finding(rule=rule, fired=False, text="no data-quality incident explains the alarm")
    text = "; ".join(standing[name] for name in alarm.columns)
    return Finding(rule=rule, fired=True, text=f"explained by a data-quality incident: {text}")


def _broken_feed(inputs: _RuleInput) -> Finding:
    """Check for a broken feed, whose rows a training would learn from; a person's request overrides it."""
    incidents_text = "; ".join(sorted(set(inputs.world.incidents.values())))
    fired = bool(incidents_text) and inputs.alarm.monitor != "manual"
    text = (
        f"the feed is broken: {incidents_text}"
        if incidents_text
        else "no data-quality incident stands on a column"
    )
    return Finding(rule="broken_feed", fired=fired, text=text)


def _other_champion(inputs: _RuleInput) -> Finding:
    fired = inputs.alarm.version != inputs.world.champion
    text = f"the alarm concerns version {inputs.alarm.version}, the champion is {inputs.world.champion}"
    return Finding(rule="other_champion", fired=fired, text=text)


def _rollout_open(inputs: _RuleInput) -> Finding:
    fired = inputs.world.rollout_open
    return Finding(
        rule="rollout_open", fired=fired, text=f"a challenger is {'' if fired else 'not '}being rolled out"
    )


def _settling(inputs: _RuleInput) -> Finding:
    since, settle = inputs.world.champion_since, inputs.policy.settle
    champion = inputs.world.champion
    if since is None or champion is None or inputs.world.ends.get(champion) != "promoted":
        return Finding(rule="settling", fired=False, text="the champion was not promoted by a rollout")
    age = inputs.now - since
    fired = age < settle and not _by_hand(inputs)
    return Finding(rule="settling", fired=fired, text=f"champion for {age}, settles for {settle}")


def _blackout(inputs: _RuleInput) -> Finding:
    within = next((b for b in inputs.policy.blackouts if b.start <= inputs.now < b.end), None)
    text = "no blackout" if within is None else f"blackout until {within.end}"
    return Finding(rule="blackout", fired=within is not None and not _by_hand(inputs), text=text)


def _cooling(inputs: _RuleInput) -> Finding:
    """Check for the time since the last retrain that came to an end, and since the last that failed again."""
    failures, starts = failures_in_row(inputs.state), counted_starts(inputs.state)
    if len(failures) > 1 and inputs.now - failures[0].started_at < _AGAIN:
        text = f"{len(failures)} retrains in a row failed; the next may start {_AGAIN} after the last did"
        return Finding(rule="cooldown", fired=not _by_hand(inputs), text=text)
    if not starts:
        return Finding(rule="cooldown", fired=False, text="never retrained")
    cooldown = current_cooldown(inputs.state, inputs.world.ends, inputs.policy)
    age = inputs.now - starts[-1]
    vain = retrains_in_vain(inputs.state, inputs.world.ends)
    text = f"{age} since the last start, cooldown {cooldown}" + (f" after {vain} in vain" if vain else "")
    return Finding(
        rule="cooldown",
        fired=age < cooldown and not _by_hand(inputs),
        text=text,
        statistic=age.total_seconds(),
        threshold=cooldown.total_seconds(),
    )


def _over_budget(inputs: _RuleInput) -> Finding:
    starts = counted_starts(inputs.state)
    spent = sum(start > inputs.now - inputs.policy.budget_window for start in starts)
    text = f"{spent} of {inputs.policy.budget} retrains in {inputs.policy.budget_window}"
    return Finding(rule="budget", fired=spent >= inputs.policy.budget and not _by_hand(inputs), text=text)


def _by_hand(inputs: _RuleInput) -> bool:
    """Whether a person asked for it, who knows what waiting would be for."""
    return inputs.alarm.monitor == "manual"


RULES: tuple[tuple[Action, Callable[[_RuleInput], Finding]], ...] = (
    ("skip", lambda inputs: _age(inputs, "running")),
    ("resume", lambda inputs: _age(inputs, "dead")),
    ("skip", _no_trigger),
    ("skip", _unimportant),
    ("skip", _explained),
    ("skip", _broken_feed),
    ("skip", _other_champion),
    ("skip", _too_young),
    ("skip", _no_quorum),
    ("skip", _rollout_open),
    ("skip", _settling),
    ("skip", _blackout),
    ("skip", _cooling),
    ("skip", _over_budget),
)


def step(state: RetrainState, entry: Entry) -> RetrainState:
    """Fold one entry of `retraining/{model}`. Raises: ValueError for an event that is not of this journal."""
    body: dict[str, Any] = entry.body
    if body["event"] == "skipped":
        return state.model_copy(update={"last_skip": body["decision"]["rule"]})
    if body["event"] == "started":
        running = Running.model_validate({**body["running"], "number": entry.number})
        starts = (*state.starts, running.at)[-_MAX_FINISHED:]
        return RetrainState(running=running, finished=state.finished, starts=starts)
    if body["event"] == "resumed" and state.running is not None:
        wall = datetime.fromisoformat(body["world"]["wall"])
        return state.model_copy(update={"running": state.running.model_copy(update={"wall": wall})})
    if body["event"] == "finished":
        one = Finished.model_validate(body["finished"])
        finished, starts = (*state.finished, one)[-_MAX_FINISHED:], state.starts
        if one.outcome == "failed":  # it counts for nothing, so it takes the place of none that counts
            starts = tuple(start for start in starts if start != one.started_at)
        return state.model_copy(
            update={"running": None, "finished": finished, "starts": starts, "last_skip": None}
        )
    raise ValueError(
        f"entry {entry.number}: unknown event {body['event']!r}; it was written by a newer Toque: upgrade this one"
    )
