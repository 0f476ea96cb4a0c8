"""Reflexes of one workspace, run by the ticker in its own process: no run has to start before a bad release is pulled back.

They keep no state of their own: what is decided stands in the journals of rollouts, alarms and the registry, each of which takes
a decision once. What is kept here only saves reading.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta

from toque.functions.alerting.jobs import tell_people
from toque.functions.live_counts import ArmTally, LiveReader, WindowCounts, live_reader, window_at
from toque.functions.monitoring import Alarm, Alarms
from toque.functions.reflexes.alarms import recovery_of, rollback_alarm, service_alarm
from toque.functions.reflexes.champion import (
    BASELINE_WINDOWS,
    QUIET_SPANS,
    SPANS,
    ServiceFinding,
    is_quiet,
    judge_champion,
)
from toque.functions.reflexes.go_back import go_back
from toque.functions.rollout import RolloutPolicy, Rollouts
from toque.functions.rollout.jobs import declared_policy, rollouts
from toque.functions.runtime.changes.announcer import journals_in
from toque.functions.runtime.changes.feed import Watch, feed_of
from toque.functions.runtime.clock import system_clock
from toque.functions.runtime.context import Context, use_context
from toque.functions.runtime.triggers.events import publish
from toque.registry.models.traffic import CHAMPION, HOLDOUT, OUTSIDE

EVERY_S = 10.0
SAFETY_S = 60.0  # between looks for rollouts whose announcement was lost
_USERS = (CHAMPION, OUTSIDE, HOLDOUT)  # arms whose units a champion answers
_TOLD_FOR = timedelta(days=1)  # an older roll-back that nobody was told of is history
_logger = logging.getLogger(__name__)


class Reflexes:
    """Judges the models of one workspace that were asked in the last minutes.

    reader: of the live counts. watch: says when a rollout may have begun or ended elsewhere. clock: seconds since the epoch.
    """

    def __init__(
        self, used: Context, reader: LiveReader, watch: Watch, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._used, self._reader, self._watch, self._clock = used, reader, watch, clock
        self._rollouts: dict[str, Rollouts] = {}
        self._alarms: dict[str, Alarms] = {}
        self._standing: dict[str, dict[str, Alarm]] = {}
        self._before: dict[str, tuple[int, ArmTally]] = {}

    def tick(self) -> None:
        """Judge every model once, whatever happens to others. Raises: an ExceptionGroup of those that failed, after all had their turn."""
        failed: list[Exception] = []
        with use_context(self._used), self._watch.turn() as changed:
            asked = set(self._reader.models(self._clock()))
            for model in sorted(asked | (self._rollouts.keys() if changed else set())):
                try:
                    self._judge(model, changed=changed)
                except Exception as error:  # noqa: BLE001  # raised below
                    error.add_note(f"while the last minutes of model {model!r} were judged")
                    failed.append(error)
            if failed:
                raise ExceptionGroup(f"{len(failed)} models", failed)

    def _judge(self, model: str, *, changed: bool) -> None:
        first = model not in self._rollouts
        if first:
            self._rollouts[model] = rollouts(model, read_live=self._read)
        if first or changed:
            self._read_standing(model)
        if first or changed or self._is_unsettled(model):
            self._judge_rollout(model)
        self._judge_champion(model)

    def _read_standing(self, model: str) -> None:
        """Read which alarms stand: another ticker may have raised or ended some while it led."""
        self._standing[model] = {_about(alarm): alarm for alarm in self._alarms_of(model).standing()}

    def _is_unsettled(self, model: str) -> bool:
        current = self._rollouts[model].last_known().current
        return current is not None and not current.settled

    def _judge_rollout(self, model: str) -> None:
        """Tick a rollout by its live counts, and tell people of one that was rolled back."""
        one = self._rollouts[model]
        decided = one.tick_live()
        if decided.entry is not None:
            _logger.warning("%s: %s by %s: %s", model, decided.action, decided.rule, decided.text)
        history = one.history() if decided.entry is not None else one.last_known()
        last = history.outcomes[-1] if history.outcomes else None
        now = self._now()
        if last is not None and now - last.ended_at < _TOLD_FOR:
            found = rollback_alarm(model, last, decided, now)
            if found is not None:
                self._report(model, found)
        current = history.current
        for about, alarm in list(self._standing[model].items()):
            over = current is not None and about != f"rollout/rollout-{current.rollout}"
            if alarm.monitor == "rollout" and over:
                self._report(model, recovery_of(alarm, now, "another rollout has begun"))

    def _read(self, model: str, windows: Iterable[int]) -> Mapping[int, WindowCounts]:
        return self._reader.windows(model, windows, self._clock())

    def _judge_champion(self, model: str) -> None:
        now = self._clock()
        newest = window_at(now)
        spans = self._spans(model, SPANS, now)
        version = _champion_in(spans[-1])
        if version is None:
            return
        recent = [span.of(version=version, arms=_USERS) for span in spans]
        policy = _policy_of(model)
        before = self._hour_before(model, newest - max(SPANS), now)
        longer = self._spans(model, QUIET_SPANS, now) if is_quiet(recent, before) else []
        quiet = [span.of(version=version, arms=_USERS) for span in longer]
        findings = judge_champion(recent, before, policy.slos, quiet)
        if self._standing[model] or any(finding.broken for finding in findings):
            self._read_standing(model)
        for finding in findings:
            self._follow(model, version, finding, policy)

    def _spans(self, model: str, spans: Iterable[int], now: float) -> list[WindowCounts]:
        """Add up the counts of the last windows, for each of some numbers of them."""
        newest, lengths = window_at(now), list(spans)
        counts = self._reader.windows(model, range(newest - max(lengths) + 1, newest + 1), now)
        return [
            WindowCounts.sum(part for at, part in counts.items() if at > newest - span) for span in lengths
        ]

    def _hour_before(self, model: str, newest: int, now: float) -> ArmTally:
        """Add up the hour that ends with window `newest`, once in each window."""
        known = self._before.get(model)
        if known is None or known[0] != newest:
            counts = self._reader.windows(model, range(newest - BASELINE_WINDOWS + 1, newest + 1), now)
            known = self._before[model] = (newest, _users_of(WindowCounts.sum(counts.values())))
        return known[1]

    def _follow(self, model: str, version: int, finding: ServiceFinding, policy: RolloutPolicy) -> None:
        """Raise or end the alarm of one subject, and go back to the version before if the policy says so."""
        alarm, now = self._standing[model].get(f"service/{finding.subject}"), self._now()
        if finding.broken:
            if alarm is None:
                alarm = service_alarm(model, version, finding, now, canary=self._canary_of(model))
                self._report(model, alarm)
            if policy.go_back:
                go_back(self._used.registry(), self._alarms_of(model), alarm, version, policy, now)
        elif alarm is not None and (
            alarm.version != version or finding.level <= (alarm.threshold or finding.limit)
        ):
            self._report(model, recovery_of(alarm, now, finding.text))

    def _canary_of(self, model: str) -> int | None:
        """Find the version that is in its canary, and could take the champion's place."""
        state = self._rollouts[model].last_known().open
        return state.challenger if state is not None and state.stage == "canary" else None

    def _report(self, model: str, alarm: Alarm) -> None:
        if self._alarms_of(model).report(alarm):
            _logger.warning("%s: %s", model, alarm.text)
            _tell_now(alarm)
        if alarm.recovered:
            self._standing[model].pop(_about(alarm), None)
        else:
            self._standing[model][_about(alarm)] = alarm

    def _alarms_of(self, model: str) -> Alarms:
        if model not in self._alarms:
            used = self._used
            self._alarms[model] = Alarms(
                model,
                store=used.store,
                clock=used.clock,
                actor=used.actor,
                publish=lambda topic, payload, key: publish(topic, payload, key=key),
            )
        return self._alarms[model]

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)


def reflexes_of(used: Context) -> Reflexes | None:
    """Make the reflexes of a context's workspace; None without Redis, or on a replayed clock, which has no last minutes."""
    if used.redis_url is None or used.clock is not system_clock:
        return None
    journals = journals_in(used.store, "rollouts/*")
    watch = feed_of(used.redis_url).watch(journals, every_s=EVERY_S, slow_s=SAFETY_S)
    return Reflexes(used, live_reader(used.redis_url, used.workspace), watch)


def _tell_now(alarm: Alarm) -> None:
    """Tell people of an alarm in this process, as a run takes seconds to start; the alarm's event does it again, once in all."""
    try:
        tell_people(alarm)
    except Exception as error:  # noqa: BLE001 - the event's run is retried, and says what is wrong
        _logger.info("%s: people are told by a run, not at once: %s", alarm.model, error)


def _champion_in(counts: WindowCounts) -> int | None:
    """Find the champion of the newest split that sent it requests."""
    answering = [arm for arm in counts.arms if arm.arm == CHAMPION]
    return max(answering).version if answering else None


def _users_of(counts: WindowCounts) -> ArmTally:
    return ArmTally.sum(tally for arm, tally in counts.arms.items() if arm.arm in _USERS)


def _about(alarm: Alarm) -> str:
    return f"{alarm.monitor}/{alarm.subject}"


def _policy_of(model: str) -> RolloutPolicy:
    """Find the declared policy; the default one where the project cannot be read, as somebody must watch all the same."""
    try:
        return declared_policy(model)
    except Exception:
        _logger.exception("%s: its policy cannot be read; the platform's defaults are used", model)
        return RolloutPolicy()
