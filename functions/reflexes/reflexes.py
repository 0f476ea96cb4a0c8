"""Reflexes of one workspace, run by the ticker in its own process: no run has to start to pull a bad release back.

They keep no state of their own: what is decided stands in the journals of rollouts, alarms and the registry, each of which takes
a decision once. What is kept here only saves reading. A champion that breaks soon after its release gives its place back to the
version before, where the policy says so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from toque.functions.alerting.jobs import tell_people
from toque.functions.live_counts import WINDOW_S, ArmTally, LiveReader, WindowCounts, live_reader, window_at
from toque.functions.monitoring import Alarm, Alarms, alarms
from toque.functions.reflexes.champion import (
    BASELINE_WINDOWS,
    QUIET_SPANS,
    SPANS,
    ServiceFinding,
    is_quiet,
    judge_champion,
)
from toque.functions.rollout import Outcome, RolloutPolicy, Rollouts, TickResult
from toque.functions.rollout.jobs import declared_policy, rollouts
from toque.functions.runtime.changes import Watch, feed_of, journals_in
from toque.functions.runtime.clock import system_clock
from toque.functions.runtime.context import Context, use_context
from toque.registry import Refused, Stale
from toque.registry.journal import Entry
from toque.registry.models.traffic import CHAMPION, HOLDOUT, OUTSIDE

EVERY_S = 10.0
SAFETY_S = 60.0  # between looks for rollouts whose announcement was lost
_USERS = (CHAMPION, OUTSIDE, HOLDOUT)  # arms whose units a champion answers
_TOLD_FOR = timedelta(days=1)  # an older roll-back that nobody was told of is history
_logger = logging.getLogger(__name__)
_BY_HAND = "by_hand"  # who rolled it back knows


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

    def _is_unsettled(self, model: str) -> bool:
        current = self._rollouts[model].last_known().current
        return current is not None and not current.settled

    def _read_standing(self, model: str) -> None:
        """Read which alarms stand: another ticker may have raised or ended some while it led."""
        self._standing[model] = {_about(alarm): alarm for alarm in self._alarms_of(model).standing()}

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
        answering = [arm for arm in spans[-1].arms if arm.arm == CHAMPION]
        if not answering:
            return
        version = max(answering).version  # of the newest split
        recent = [span.of(version=version, arms=_USERS) for span in spans]
        try:
            policy = declared_policy(model)
        except Exception:  # somebody must watch all the same
            _logger.exception("%s: its policy cannot be read; the platform's defaults are used", model)
            policy = RolloutPolicy()
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
            arms = WindowCounts.sum(counts.values()).arms
            known = newest, ArmTally.sum(tally for arm, tally in arms.items() if arm.arm in _USERS)
            self._before[model] = known
        return known[1]

    def _follow(self, model: str, version: int, finding: ServiceFinding, policy: RolloutPolicy) -> None:
        """Raise or end the alarm of one subject, and go back to the version before if the policy says so."""
        alarm, now = self._standing[model].get(f"service/{finding.subject}"), self._now()
        if finding.broken:
            if alarm is None:
                state = self._rollouts[model].last_known().open
                canary = state.challenger if state is not None and state.stage == "canary" else None
                alarm = service_alarm(model, version, finding, now, canary=canary)
                self._report(model, alarm)
            if policy.go_back:
                go_back(self._used.registry(), self._alarms_of(model), alarm, version, policy, now)
        elif alarm is not None and (
            alarm.version != version or finding.level <= (alarm.threshold or finding.limit)
        ):
            self._report(model, recovery_of(alarm, now, finding.text))

    def _report(self, model: str, alarm: Alarm) -> None:
        if self._alarms_of(model).report(alarm):
            _logger.warning("%s: %s", model, alarm.text)
            try:  # in this process, as a run takes seconds to start; the alarm's event does it again, once in all
                tell_people(alarm)
            except Exception as error:  # noqa: BLE001 - the event's run is retried, and says what is wrong
                _logger.info("%s: people are told by a run, not at once: %s", alarm.model, error)
        if alarm.recovered:
            self._standing[model].pop(_about(alarm), None)
        else:
            self._standing[model][_about(alarm)] = alarm

    def _alarms_of(self, model: str) -> Alarms:
        if model not in self._alarms:
            self._alarms[model] = alarms(model)
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


def _about(alarm: Alarm) -> str:
    return f"{alarm.monitor}/{alarm.subject}"


class Champions(Protocol):
    """Operations of the registry that a return needs."""

    def history(self, name: str, /) -> list[Entry]:
        """List the changes of a model, oldest first."""
        ...

    def rollback(self, name: str, alias: str, /, *, expected: int | None, to: int | None, reason: str) -> Any:
        """Point an alias back to version `to`. Raises: Stale; Refused."""
        ...


def go_back(
    registry: Champions, alarms: Alarms, alarm: Alarm, version: int, policy: RolloutPolicy, now: datetime
) -> bool:
    """Make the version before `version` the champion again; returns whether it was done by this call.

    Only where `version` was released within `policy.go_back_within`, and no alarm of this kind was ever raised about the
    version before: a fault that both share is not mended by going back. The registry takes it once, for one champion.
    """
    release = _release(registry.history(alarm.model), version)
    if release is None or release[0] < now - policy.go_back_within:
        return False
    before = release[1]
    about_before = [one for one in alarms.all() if one.version == before and not one.recovered]
    if any(one.monitor == "service" for one in about_before):
        return False
    try:
        found = registry.rollback(
            alarm.model, CHAMPION, expected=version, to=before, reason=f"goes back by itself: {alarm.key}"
        )
    except (Stale, Refused) as error:
        _logger.warning("%s: version %d breaks and stays: %s", alarm.model, version, error)
        return False
    _logger.warning("%s: back to version %s from %d: %s", alarm.model, found.version, version, alarm.text)
    return True


def _release(entries: Iterable[Entry], version: int) -> tuple[datetime, int] | None:
    """Find when a version last took the champion's place, and whose; None if it never took another's.

    The return to a version is no release of it: nothing in it is new.
    """
    champion: int | None = None
    release: tuple[datetime, int] | None = None
    for entry in entries:
        body = entry.body
        if body.get("alias") != CHAMPION or "version" not in body:
            continue
        replaced, champion = champion, body["version"]
        if body["kind"] == "alias" and champion == version and replaced not in {None, version}:
            release = entry.at, replaced
    return release


def rollback_alarm(model: str, ended: Outcome, decided: TickResult, now: datetime) -> Alarm | None:
    """Make the alarm of a rollout that rules have rolled back, with one key for ever; None if it ended otherwise."""
    if ended.stage != "rolled_back" or ended.rule == _BY_HAND:
        return None
    why = f": {decided.text}" if (decided.rollout, decided.rule) == (ended.rollout, ended.rule) else ""
    return Alarm(
        key=f"{model}/rollout/{ended.rollout}/rolled_back",
        model=model,
        monitor="rollout",
        subject=f"rollout-{ended.rollout}",
        version=ended.challenger,
        raised_at=now,
        start=ended.started_at,
        end=ended.ended_at,
        text=f"version {ended.challenger} was rolled back by {ended.rule}; users get version {ended.champion}{why}",
    )


def service_alarm(
    model: str, version: int, finding: ServiceFinding, now: datetime, *, canary: int | None = None
) -> Alarm:
    """Make the alarm of a champion whose last minutes are not as they should be; one key in each window.

    canary: version that could take its place, which is for a person to say.
    """
    way_out = "" if canary is None else f"; if its canary {canary} serves: toque rollout promote {model}"
    return Alarm(
        key=f"{model}/service/{finding.subject}/{version}/{window_at(now.timestamp())}",
        model=model,
        monitor="service",
        subject=finding.subject,
        version=version,
        raised_at=now,
        start=now - timedelta(seconds=max(SPANS) * WINDOW_S),
        end=now,
        text=f"version {version}: {finding.text}{way_out}",
        statistic=finding.value,
        threshold=finding.limit,
    )


def recovery_of(alarm: Alarm, now: datetime, text: str) -> Alarm:
    """Make the alarm that says that another is over."""
    return alarm.model_copy(
        update={
            "key": f"{alarm.key}/recovered",
            "recovered": True,
            "raised_at": now,
            "end": now,
            "text": text,
        }
    )
