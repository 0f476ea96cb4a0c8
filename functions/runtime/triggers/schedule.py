"""Schedules of functions that run by the clock, each tick once, fired by any number of tickers.

A schedule's state is a journal of its own. A tick fires by one append to it, so one ticker of several wins;
the invocation's key is made of schedule and tick, so if a ticker dies between claiming and submitting, the
next one submits, and nothing runs twice. Once submitted, the tick is marked so by a second append: its invocation
may be deleted, and is then never submitted again.
"""

from __future__ import annotations

import hashlib
import logging
import zoneinfo
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from croniter import croniter
from pydantic import BaseModel

from toque.functions.runtime import catalog
from toque.functions.runtime.clock import aware
from toque.functions.runtime.context import Context
from toque.functions.runtime.declaration import Cron
from toque.functions.runtime.durable.invocation import ledger_of
from toque.functions.runtime.durable.ledger import invocation_id
from toque.functions.runtime.durable.record import ENDED
from toque.functions.runtime.errors import FunctionError, InvalidArguments, KeyConflict
from toque.functions.runtime.run.declared import DeclaredFunction
from toque.functions.runtime.telemetry import LATENESS, SKIPPED
from toque.functions.runtime.triggers.names import names_of
from toque.registry.access import DEFAULT_WORKSPACE
from toque.registry.journal import Entry, Fold
from toque.registry.journal.journal import Journal

_MOMENT = timedelta(microseconds=1)
_SUBMITTED_WITHIN = timedelta(
    days=1
)  # the least that retention keeps of an invocation: until then its key is taken
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Schedule on which a function runs. name: its journal is `schedules/{name}`."""

    name: str
    function: DeclaredFunction
    cron: Cron


class ScheduleState(BaseModel, frozen=True):
    """State of a schedule: the last tick that was handled, and the last one that fired.

    cron: expression and zone by which the last one was handled, None if an older release did;
    submitted: whether the invocation of the last one that fired was accepted; None: an older release fired it, and did not say.
    """

    last: datetime | None = None
    fired: datetime | None = None
    invocation: str | None = None
    count: int = 0
    submitted: bool | None = None
    cron: str | None = None


class ScheduleStatus(BaseModel, frozen=True):
    """Status of a schedule for display.

    last_tick: the last one handled, fired or skipped; invocation: of the last tick that fired; next_tick: the
    first after now.
    """

    name: str
    function: str
    expression: str
    timezone: str
    last_tick: datetime | None
    fired: int
    invocation: str | None
    invocation_status: str | None
    next_tick: datetime


class Fired(BaseModel, frozen=True):
    """Tick of a schedule that was handled. skipped: why it did not fire."""

    schedule: str
    tick: datetime
    invocation: str | None = None
    skipped: str | None = None


@dataclass(frozen=True, slots=True)
class Tick:
    """Action to take for a tick that is due."""

    at: datetime
    action: Literal["fire", "skip"]
    reason: str = ""


_added: dict[tuple[str, str], Schedule] = {}  # workspace and name -> schedule


def add(schedule: Schedule, *, workspace: str = DEFAULT_WORKSPACE) -> None:
    """Add a schedule that no decorator declares, a project's for instance, to a workspace; the same name replaces it."""
    _added[workspace, schedule.name] = schedule


def declared(used: Context, *, record: bool = False) -> list[Schedule]:
    """List the schedules in a workspace: of the functions that it sees, and those that were added to it.

    record: whether the names of new ones are recorded, so that they stay theirs.
    """

    def fits(name: str, cron: Cron) -> bool | None:
        state = _state_of(used, name).refresh()
        if state.last is None:
            return None
        return state.fired is None or tick_before(cron, state.fired + _MOMENT) == state.fired

    schedules = [
        Schedule(name, function, cron)
        for function in catalog.all_functions()
        if function.schedule and used.sees(function.reference)
        for name, cron in zip(
            names_of(used, "schedule", function.name, function.schedule, fits=fits, record=record),
            function.schedule,
            strict=True,
        )
    ]
    return [*schedules, *(added for (workspace, _), added in _added.items() if workspace == used.workspace)]


def run_due(
    used: Context, *, now: datetime | None = None, schedules: Iterable[Schedule] | None = None
) -> list[Fired]:
    """Fire every tick that is due in the store of `used`; makes no request if none is due.

    now: by default the clock's; schedules: by default the declared ones. A new schedule begins now, without
    earlier ticks. Raises: ExceptionGroup of what failed, such as the store, once every schedule had its turn.
    """
    at = aware(now or used.clock())
    fired: list[Fired] = []
    failures: list[Exception] = []
    for schedule in declared(used, record=True) if schedules is None else schedules:
        try:
            handled = _runner(used, schedule).fire(at)
            fired += handled
            for each in handled:
                _count(used.workspace, each, at)
        except FunctionError:  # for instance its arguments do not fit: the others must still fire
            _logger.exception("schedule %s cannot fire", schedule.name)
        except Exception as error:  # noqa: BLE001  # raised below: one schedule's must not keep the others from their turn
            error.add_note(f"in the schedule {schedule.name}")
            failures.append(error)
    if failures:
        raise ExceptionGroup(f"{len(failures)} schedules", failures)
    return fired


def _count(workspace: str, handled: Fired, at: datetime) -> None:
    skipped = SKIPPED.labels(
        workspace, handled.schedule
    )  # counted from zero, so that the first one is an increase
    if handled.skipped is None:
        LATENESS.labels(workspace, handled.schedule).observe(max(0.0, (at - handled.tick).total_seconds()))
    else:
        skipped.inc()
        _logger.warning(
            "schedule %s: the tick of %s is skipped: %s",
            handled.schedule, handled.tick.isoformat(), handled.skipped,
        )  # fmt: skip


def status(used: Context, *, schedules: Iterable[Schedule] | None = None) -> list[ScheduleStatus]:
    """Read the status of every schedule from the store."""
    now = used.clock()
    return [_runner(used, each).status(now) for each in (declared(used) if schedules is None else schedules)]


def plan(cron: Cron, *, name: str, last: datetime, now: datetime) -> Tick | None:
    """Decide the next action of a schedule that has handled all ticks up to `last`; None if nothing is due."""
    due = now - timedelta(seconds=_jitter_s(cron, name, tick_before(cron, now + _MOMENT)))
    latest = tick_before(cron, due + _MOMENT)
    if latest <= last:
        return None
    if cron.catch_up == "all":
        return Tick(tick_after(cron, last), "fire")
    if cron.catch_up == "none" and now - latest > timedelta(seconds=cron.grace_s + cron.jitter_s):
        return Tick(latest, "skip", f"missed by more than grace_s={cron.grace_s}")
    return Tick(latest, "fire")


def tick_after(cron: Cron, moment: datetime) -> datetime:
    """Compute the first tick after a moment."""
    ticks = _iterator(cron, moment)
    found: datetime = ticks.get_next(datetime)
    while _repeated(cron, found):
        found = ticks.get_next(datetime)
    return found.astimezone(UTC)


def tick_before(cron: Cron, moment: datetime) -> datetime:
    """Compute the last tick before a moment."""
    ticks = _iterator(cron, moment)
    found: datetime = ticks.get_prev(datetime)
    while _repeated(cron, found):
        found = ticks.get_prev(datetime)
    return found.astimezone(UTC)


class _ScheduleRunner:
    """Runner of one schedule in this process."""

    def __init__(self, used: Context, schedule: Schedule) -> None:
        self._used = used
        self._schedule = schedule
        self._fold = _state_of(used, schedule.name)
        self._quiet: tuple[datetime, datetime] | None = None  # between these moments nothing is due

    def fire(self, now: datetime) -> list[Fired]:
        """Fire or skip every tick that is due."""
        fired: list[Fired] = []
        try:
            while (handled := self._fire_next(now)) is not None:
                fired.append(handled)
        except InvalidArguments:  # they will not fit in the next round either
            self._quiet = (now, tick_after(self._schedule.cron, now))
            raise
        return fired

    def _fire_next(self, now: datetime) -> Fired | None:
        if self._fold.state.last is None:
            text = self._schedule.cron.text
            begun = {"kind": "begun", "tick": now.isoformat(), "cron": text}
            # With another expression it is another schedule.
            self._fold.transact(lambda state: None if state.last and state.cron in {None, text} else begun)
        if self._quiet is not None and self._quiet[0] <= now < self._quiet[1]:
            return None
        self._quiet = None
        self._ensure_submitted(now)  # of a ticker that died, or whose store did not take it
        if self._plan(self._fold.state, now) is None:
            if not self._schedule.cron.jitter_s:
                self._quiet = (now, tick_after(self._schedule.cron, now))
            return None
        claimed = self._claim(now)
        self._ensure_submitted(now)
        return claimed

    def status(self, now: datetime) -> ScheduleStatus:
        """Read the status of the schedule."""
        state, cron = self._fold.refresh(), self._schedule.cron
        ledger = ledger_of(self._used)
        return ScheduleStatus(
            name=self._schedule.name,
            function=self._schedule.function.name,
            expression=cron.expression,
            timezone=cron.timezone,
            last_tick=state.last,
            fired=state.count,
            invocation=state.invocation,
            invocation_status=ledger.find_status(state.invocation) if state.invocation else None,
            next_tick=tick_after(cron, now),
        )

    def _plan(self, state: ScheduleState, now: datetime) -> Tick | None:
        if state.last is None:
            return None
        return plan(self._schedule.cron, name=self._schedule.name, last=state.last, now=now)

    def _claim(self, now: datetime) -> Fired | None:
        """Append the decision on the next tick, unless another ticker has."""
        self._fold.refresh()
        busy = self._busy(now)
        if busy and self._schedule.cron.overlap == "queue":
            return None
        if busy and self._schedule.cron.overlap == "replace":
            ledger_of(self._used).cancel(str(self._fold.state.invocation))
            busy = False
        entry = self._fold.transact(self._decision(now, busy=busy))
        return _fired_of(self._schedule.name, entry.body) if entry else None

    def _decision(self, now: datetime, *, busy: bool) -> Callable[[ScheduleState], dict[str, Any] | None]:
        last_invocation = self._fold.state.invocation

        def decide(state: ScheduleState) -> dict[str, Any] | None:
            tick = self._plan(state, now)
            # Another ticker has fired since: first check whether that run is submitted and has ended.
            if tick is None or state.invocation != last_invocation:
                return None
            body = {"tick": tick.at.isoformat(), "cron": self._schedule.cron.text}
            if tick.action == "skip":
                return body | {"kind": "skipped", "reason": tick.reason}
            if busy:
                reason = f"the run of {state.fired} is not over: invocation {state.invocation}"
                return body | {"kind": "skipped", "reason": reason}
            self._arguments(tick.at)  # raises before the tick is claimed
            invocation = invocation_id(self._schedule.function.name, self._key(tick.at))
            return body | {"kind": "fired", "invocation": invocation, "marked": True}

        return decide

    def _busy(self, now: datetime) -> bool:
        """Whether the run of the last tick that fired is not over; one that was deleted is."""
        invocation = self._fold.state.invocation
        if invocation is None:
            return False
        self._ensure_submitted(now)
        status = ledger_of(self._used).find_status(invocation)
        return status is not None and status not in ENDED

    def _ensure_submitted(self, now: datetime) -> None:
        """Submit the last fired tick, unless it was submitted; any ticker may have claimed it."""
        state = self._fold.state
        tick = state.fired
        if tick is None or state.submitted:
            return
        if state.submitted is None and now - tick >= _SUBMITTED_WITHIN:
            return  # by an older release; its invocation may have been deleted since
        ledger, function = ledger_of(self._used), self._schedule.function
        invocation = str(state.invocation)
        accepted = ledger.find_status(invocation) is not None
        if not accepted:
            try:
                invocation = ledger.submit(function, self._arguments(tick), key=self._key(tick))
            except KeyConflict:  # accepted just now, by a ticker with another definition
                accepted = True
        if (
            accepted
        ):  # it stands, whatever the definition says now; who accepted it may have died before it was queued
            ledger.notify(invocation)

        def mark(later: ScheduleState) -> dict[str, Any] | None:
            if later.fired != tick or later.submitted:
                return None
            # Older releases take an entry of any other kind for one that handles its tick.
            return {
                "kind": "submitted",
                "tick": (later.last or tick).isoformat(),
                "invocation": invocation,
            }

        self._fold.transact(mark)

    def _arguments(self, tick: datetime) -> dict[str, Any]:
        cron = self._schedule.cron
        from_tick = {cron.tick_as: tick.isoformat()} if cron.tick_as else {}
        return self._schedule.function.signature.load(dict(cron.arguments) | from_tick)

    def _key(self, tick: datetime) -> str:
        return f"schedule {self._schedule.name} {tick.isoformat()}"


_runners: dict[tuple[str, str], tuple[Schedule, _ScheduleRunner]] = {}


def _runner(used: Context, schedule: Schedule) -> _ScheduleRunner:
    key = (used.store_url, schedule.name)
    known = _runners.get(key)
    if known is None or known[0] != schedule:
        known = _runners[key] = (schedule, _ScheduleRunner(used, schedule))
    return known[1]


def _state_of(used: Context, name: str) -> Fold[ScheduleState]:
    return Fold(
        Journal(used.store, f"schedules/{name}", actor=used.actor),
        ScheduleState(),
        _fold_entry,
        encode=ScheduleState.model_dump_json,
        decode=ScheduleState.model_validate_json,
    )


def _fold_entry(state: ScheduleState, entry: Entry) -> ScheduleState:
    if entry.body["kind"] == "submitted":
        invocation = entry.body.get("invocation", state.invocation)  # an older release does not say
        return state.model_copy(update={"submitted": True, "invocation": invocation})
    tick = datetime.fromisoformat(entry.body["tick"])
    handled = {"last": tick, "cron": entry.body.get("cron")}
    if entry.body["kind"] != "fired":
        return state.model_copy(update=handled)
    submitted = False if entry.body.get("marked") else None  # an older release does not mark what it submits
    changes = {"fired": tick, "invocation": entry.body["invocation"], "count": state.count + 1}
    return state.model_copy(update={**handled, **changes, "submitted": submitted})


def _fired_of(name: str, body: dict[str, Any]) -> Fired:
    tick = datetime.fromisoformat(body["tick"])
    return Fired(schedule=name, tick=tick, invocation=body.get("invocation"), skipped=body.get("reason"))


def _iterator(cron: Cron, moment: datetime) -> Any:
    return croniter(cron.expression, moment.astimezone(zoneinfo.ZoneInfo(cron.timezone)))


def _repeated(cron: Cron, tick: datetime) -> bool:
    """Whether a tick at a fixed hour is the repeated one, on the day the clocks go back."""
    hours = cron.expression.split()[1]
    # By UTC: croniter leaves fold as it was.
    local = tick.astimezone(UTC).astimezone(zoneinfo.ZoneInfo(cron.timezone))
    return not hours.startswith("*") and local.fold == 1


def _jitter_s(cron: Cron, name: str, tick: datetime) -> float:
    if not cron.jitter_s:
        return 0.0
    digest = hashlib.sha256(f"{name} {tick.isoformat()}".encode()).digest()
    return cron.jitter_s * int.from_bytes(digest[:8]) / 2**64
