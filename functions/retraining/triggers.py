"""Triggers of a retrain, and its run: submitted once, however many inspections find one due, and known to live by its heartbeat.

Alarms that stand against the champion lead to one, and those that a policy raises by itself. A retrain may train for days: by its
silence, not its length, it counts as dead.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from itertools import count
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from croniter import croniter
from pydantic import AwareDatetime, BaseModel

from toque.functions.features.entity_rows import LABEL_KNOWN_AT
from toque.functions.monitoring import Alarm, alarms
from toque.functions.monitoring.alarms import Monitor
from toque.functions.retraining.definition import TrainedModel
from toque.functions.retraining.policy import RetrainingPolicy, RetrainState, Running, counted_starts, step
from toque.functions.runtime.clock import Clock
from toque.functions.runtime.context import context
from toque.functions.runtime.durable.heartbeat import repeated
from toque.functions.runtime.durable.invocation import ledger_of
from toque.functions.runtime.durable.ledger import invocation_id
from toque.functions.runtime.errors import KeyConflict
from toque.functions.runtime.function import Function
from toque.registry import Fold, Journal, ModelVersion, Table
from toque.registry.errors import Unavailable

_BEAT_EVERY = timedelta(minutes=1)
_TIMES_WITHIN = 4  # of `lost_after`, so that it outlasts heartbeats that fail


class ChampionSeen(BaseModel, frozen=True):
    """Champion version, and when it was first seen to be champion."""

    version: int
    since: AwareDatetime


def due_alarms(definition: TrainedModel) -> list[Alarm]:
    """Find the alarm to retrain for: that of an unfinished retrain, else the oldest against the champion that counts.

    Without one that counts it is an alarm of the policy's own, else the oldest that stands, so that its skip is on record.
    """
    state = retrains(definition.name).refresh()
    if state.running is not None:
        return [state.running.alarm]
    champion, policy = champion_of(definition.name), definition.retraining
    if champion is None or policy is None:
        return []
    standing = standing_against(definition.name, champion.version)
    counted = [one for one in standing if policy.counts(one)] if len(standing) >= policy.quorum else []
    return (counted or list(_policy_alarms(definition, policy, champion, state)) or standing)[:1]


def standing_against(model: str, version: int) -> list[Alarm]:
    """List the alarms that stand against a version and may lead to a retrain, oldest first."""
    return [
        one
        for one in alarms(model).standing()
        if one.version == version and one.monitor in ("performance", "drift") and not one.explained_by
    ]


def retrains(model: str) -> Fold[RetrainState]:
    """Open the journal of a model's retrains."""
    used = context()
    return Fold(
        Journal(used.store, f"retraining/{model}", actor=used.actor, clock=used.clock),
        RetrainState(),
        step,
        encode=lambda state: state.model_dump(mode="json"),
        decode=RetrainState.model_validate,
    )


def champion_of(model: str) -> ModelVersion | None:
    """Find the champion version of a model, or None."""
    return context().registry().find_version(model, "champion")


def champion_since(model: str) -> datetime | None:
    """Return when the current champion was first seen, on the platform's clock; None without a champion."""
    used, champion = context(), champion_of(model)
    if champion is None:
        return None
    key = f"retraining/{model}/seen.json"
    kept = used.store.find(key)
    seen = ChampionSeen.model_validate_json(kept) if kept is not None else None
    if seen is None or seen.version != champion.version:
        seen = ChampionSeen(version=champion.version, since=used.clock())
        used.store.put(key, seen.model_dump_json().encode())
    return seen.since


def _policy_alarms(
    definition: TrainedModel, policy: RetrainingPolicy, champion: ModelVersion, state: RetrainState
) -> Iterator[Alarm]:
    """Yield the alarms that the policy itself raises by age, schedule and number of labels."""
    now, since = context().clock(), champion_since(definition.name)
    if since is None:
        return
    last = max([since, *counted_starts(state)[-1:]])

    def alarm(monitor: Monitor, name: str, start: datetime, text: str) -> Alarm:
        return Alarm(
            key=f"{definition.name}/{monitor}/{champion.version}/{name}",
            model=definition.name,
            monitor=monitor,
            subject="champion",
            version=champion.version,
            raised_at=now,
            start=start,
            end=now,
            text=text,
        )

    if policy.max_age is not None and now - since >= policy.max_age:
        text = f"version {champion.version} has been champion for {now - since}; at most {policy.max_age}"
        yield alarm("age", str((now - since) // policy.max_age), since, text)
    tick = None if policy.schedule is None else croniter(policy.schedule, last).get_next(datetime)
    if tick is not None and tick <= now:
        yield alarm("schedule", tick.isoformat(), last, f"due at {tick} by {policy.schedule!r}")
    if policy.min_new_labels is not None:
        labels = _labels_since(definition, last)
        if labels >= policy.min_new_labels:
            text = f"{labels} labels came since {last}; a retrain is due at {policy.min_new_labels}"
            yield alarm("volume", last.isoformat(), last, text)


def _labels_since(definition: TrainedModel, since: datetime) -> int:
    """Count the labels that became known since a time, or the rows where the table lacks that column."""
    table = Table(context().store, definition.entities)
    if not table.exists():
        return 0
    time = LABEL_KNOWN_AT if LABEL_KNOWN_AT in table.schema().names else "event_timestamp"
    where = (
        (pc.field(time) > pa.scalar(since, pa.timestamp("us", "UTC")))
        & (pc.field(time) <= pa.scalar(context().clock(), pa.timestamp("us", "UTC")))
        & pc.field(definition.label).is_valid()
    )
    return int(table.read(columns=[time], where=where).num_rows)


def heartbeats(
    model: str, running: Running, policy: RetrainingPolicy, clock: Clock
) -> AbstractContextManager[None]:
    """Say within the block that a retrain goes on. clock: the wall's."""
    store, every = context().store, min(_BEAT_EVERY, policy.lost_after / _TIMES_WITHIN)

    def write() -> None:
        beat = {"number": running.number, "wall": running.wall.isoformat(), "at": clock().isoformat()}
        store.put(_key(model), json.dumps(beat).encode())

    return repeated(
        write, every_s=every.total_seconds(), name=f"retrain-{model}-{running.number}", tolerated=Unavailable
    )


def last_seen(model: str, running: Running | None) -> datetime | None:
    """Find the wall time of the last heartbeat of a retrain since it was last begun; None before its first, or if none runs."""
    found = None if running is None else context().store.find(_key(model))
    if found is None or running is None:
        return None
    beat = json.loads(found)
    own = (beat["number"], beat["wall"]) == (running.number, running.wall.isoformat())
    return datetime.fromisoformat(beat["at"]) if own else None


def _key(model: str) -> str:
    return f"retraining/{model}/lease.json"


def submit_once(
    function: Function[[Alarm], Any], alarm: Alarm, *, state: RetrainState, inspection: str
) -> str:
    """Submit the retrain of an alarm, unless one that inspections submitted has not ended; returns the invocation of either.

    function: the one that retrains. state: of the model's retrains. inspection: invocation of the caller, which may run twice.
    """
    # The key says which retrain of the model it would be, and how many submissions for it ended before it began: deferred by
    # the policy, cancelled or dead. It names no alarm: one retrain answers all that stand, and a policy words its own anew.
    last = state.finished[-1].number if state.finished else None
    ledger = ledger_of(context())
    for ended in count():
        key = f"{alarm.model} after retrain {last}, {ended} ended"
        invocation = invocation_id(function.name, key)
        found = next(ledger.find_all([invocation]), None)
        if found is None or not found.ended:
            break
        if found.parent == inspection:
            return invocation
    try:
        function.submit(alarm, key=key)
    except KeyConflict:
        # It waits for another alarm, or for this one in other words; its submitter may have died before its note to executors.
        ledger.notify(invocation)
    return invocation
