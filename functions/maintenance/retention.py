"""Retention: how long a workspace keeps predictions, labels, invocations and reports, and what removes the rest.

Invocations are walked from the oldest; a walk goes on where the one before it stopped. Queues are read from their first notes up
to an age, each note once ever. What is passed and kept, since it has not ended or ended later, is remembered and looked at again.
So a walk costs what it deletes and what is left of such age, however many younger ones there are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime, timedelta
from functools import partial
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from toque.functions.prediction_log import LABELS_TABLE
from toque.functions.runtime.context import Context, context
from toque.functions.runtime.declaration import Cron, Retries
from toque.functions.runtime.declaration.command import View
from toque.functions.runtime.durable.ledger import Ledger
from toque.functions.runtime.durable.queue import INDEX
from toque.functions.runtime.durable.record import Record
from toque.functions.runtime.durable.store_requests import READERS, all_at_once, in_batches
from toque.functions.runtime.function import function
from toque.registry import Fold, ObjectStore, Table
from toque.registry.journal.journal import Journal
from toque.registry.store import table_names
from toque.registry.store.tables.upkeep import drop_days

_DIGEST = re.compile(r'"sha256": ?"([0-9a-f]{64})"')
_PREDICTED = ("predictions/", "predictions_large/", "scores/")
# A value younger than this may belong to an invocation that is being accepted.
_UNUSED_FOR = timedelta(days=1)
PROGRESS = "queues/retention.json"
_AGE = r"^[0-9]+(\.[0-9]+)?[dwy]?$"
_CHILD = re.compile(r"([0-9a-f]{32})/[0-9]+")  # key of what a workflow submitted, after its id

_MOST_DAYS = 36_500
_AGES = " In days, or as 90d, 12w or 1y, at least a day; for ever unless given."
_SHOWN = View(
    facts=" | ".join(
        f"{kind}: {kind} as {{:g}} days or for ever"
        for kind in ("predictions", "labels", "invocations", "reports")
    )
)


def _days(age: object) -> object:
    """Read an age such as 90d, 12w or 1y as days."""
    if not isinstance(age, str):
        return age
    if not re.fullmatch(_AGE[1:-1], age):
        raise PydanticCustomError("age", "{age} is no age; write days, or 90d, 12w or 1y", {"age": repr(age)})
    number, unit = age.rstrip("dwy"), age[-1]
    days = float(number) * {"w": 7, "y": 365}.get(unit, 1)
    if not 1 <= days <= _MOST_DAYS:  # a rule that no schema of a text tells
        raise ValueError(f"{age!r} is not from 1 to {_MOST_DAYS} days")
    return days


_Days = Annotated[float, Field(ge=1, le=_MOST_DAYS)]
_AgeText = Annotated[str, Field(pattern=_AGE)]
Age = Annotated[_Days | None, BeforeValidator(_days, json_schema_input_type=_Days | _AgeText | None)]


class Retention(BaseModel, frozen=True, extra="forbid"):
    """Days that a workspace keeps each kind of data; None keeps it for ever, as without any setting.

    predictions, with the scores of their answers, and labels: by the day they were made or received. invocations: ended ones with arguments, results and logs,
    and cached results. reports: pages that were not written again meanwhile.
    """

    predictions: _Days | None = None
    labels: _Days | None = None
    invocations: _Days | None = None
    reports: _Days | None = None


class Expired(BaseModel, frozen=True):
    """What a run of `apply_retention` deleted: files of tables, invocations with large values and results, and reports."""

    prediction_files: int = 0
    label_files: int = 0
    invocations: int = 0
    results: int = 0
    reports: int = 0


def _setting(here: Context) -> Fold[Retention]:
    return Fold(
        Journal(here.store, "retention", actor=here.actor),
        Retention(),
        lambda _, entry: Retention.model_validate(entry.body["keep"]),
        encode=Retention.model_dump,
        decode=Retention.model_validate,
    )


@function(http=True, role="admin", command="privacy retention set", view=_SHOWN)
def set_retention(
    predictions: Annotated[
        Age,
        Field(description="Age to which predictions and the scores of their answers are kept." + _AGES),
    ] = None,
    labels: Annotated[Age, Field(description="Age to which labels are kept." + _AGES)] = None,
    invocations: Annotated[
        Age,
        Field(
            description="Age to which ended invocations are kept, with their results and logs, and cached results."
            + _AGES
        ),
    ] = None,
    reports: Annotated[
        Age, Field(description="Age to which reports are kept after they were last written." + _AGES)
    ] = None,
) -> Retention:
    """Set the days that this workspace keeps each kind of data, in place of the setting before.

    Rollouts, monitors and retraining see nothing older: keep predictions and labels longer than any of them looks back.
    """
    kept = Retention(predictions=predictions, labels=labels, invocations=invocations, reports=reports)
    _setting(context()).transact(lambda before: {"keep": kept.model_dump()} if before != kept else None)
    return kept


@function(http=True, role="viewer", command="privacy retention show", view=_SHOWN)
def retention() -> Retention:
    """Read the days that this workspace keeps each kind of data; None: for ever."""
    return _setting(context()).refresh()


@function(
    http=True,
    role="admin",
    timeout_s=3600,
    retries=Retries(max_attempts=3),
    max_concurrency=1,
    schedule=Cron("17 3 * * *", jitter_s=600),
)
def apply_retention() -> Expired:
    """Delete what is past its retention in this workspace; nothing where none is set. Safe to kill and repeat."""
    here = context()
    keep, now = _setting(here).refresh(), here.clock()
    # Tables first: after a long backlog, what is left of the invocations goes in the next attempts and nights.
    done = Expired(
        prediction_files=sum(
            _drop_days(here.store, prefix, _first_kept(now, keep.predictions)) for prefix in _PREDICTED
        ),
        label_files=_drop_days(here.store, LABELS_TABLE, _first_kept(now, keep.labels)),
        reports=0
        if keep.reports is None
        else _drop_objects(here, "reports/", now - timedelta(days=keep.reports)),
    )
    if keep.invocations is None:
        return done
    invocations, results = _drop_invocations(here, now - timedelta(days=keep.invocations))
    return done.model_copy(update={"invocations": invocations, "results": results})


def _first_kept(now: datetime, days: float | None) -> date | None:
    return None if days is None else (now - timedelta(days=days)).date()


def _drop_days(store: ObjectStore, prefix: str, before: date | None) -> int:
    if before is None:
        return 0
    names = [
        name
        for name in table_names(store)
        if name == prefix or (prefix.endswith("/") and name.startswith(prefix))
    ]
    return sum(drop_days(Table(store, name), before=before) for name in names)


def _drop_objects(here: Context, prefix: str, before: datetime) -> int:
    """Delete objects that were last written before a time; returns their number."""
    old = [info.key for info in here.store.scan(prefix) if info.modified_at < before]
    for key in old:
        here.store.delete(key)
    return len(old)


def _drop_invocations(here: Context, before: datetime) -> tuple[int, int]:
    """Delete invocations that ended before a time, then cached results and large values that nothing names any more."""
    ledger = Ledger(here.store, actor=here.actor, clock=here.clock)
    named: set[str] = set()

    def note_named(record: Record) -> None:
        named.update(_digests(record.model_dump_json()))

    walk = Walk(ledger, before, kept=note_named)
    walk.run()
    results = _drop_objects(here, "memos/", before)
    for keys in in_batches(here.store.list("memos/")):
        for data in all_at_once([partial(here.store.find, key) for key in keys]):
            named.update(_digests((data or b"").decode()))
    # A value's time is that of the last invocation which named it, for those that were submitted since the first walk.
    for invocation, first in ledger.submitted(walk.since) if before < walk.since else ():
        if first.at < before:
            break
        record = ledger.find(invocation, first)
        if record is not None:
            note_named(record)
    return walk.deleted, results + _drop_values(here, named, before)


def _digests(text: str) -> Iterator[str]:
    return (found[1] for found in _DIGEST.finditer(text))


def _drop_values(here: Context, named: set[str], before: datetime) -> int:
    """Delete large values whose digest is not among the named ones; returns their number."""
    unused = [
        info.key
        for info in here.store.scan("values/")
        if info.modified_at < before - _UNUSED_FOR
        and info.key.rpartition("/")[2].removesuffix(".json") not in named
    ]
    for key in unused:
        here.store.delete(key)
    return len(unused)


class Progress(BaseModel, frozen=True):
    """Progress of the walks so far. Whoever was stalled may store an older one: it is complete too, and its notes are read again.

    since: when the first walk began; index: entries read of the queues' index; positions: notes read of each queue; left: ids of the
    invocations that were passed and kept.
    """

    since: datetime
    index: int = 0
    positions: dict[str, int] = {}
    left: list[str] = []


class Walk:
    """Walk that deletes the invocations which ended before a time.

    deleted: how many so far; kept: called with each record that it passes and keeps. Killed anywhere, the next walk goes on there.
    """

    def __init__(self, ledger: Ledger, before: datetime, *, kept: Callable[[Record], object]) -> None:
        self._ledger, self._before, self._kept = ledger, before, kept
        data = ledger.store.find(PROGRESS)
        self._progress = (
            Progress(since=ledger.clock()) if data is None else Progress.model_validate_json(data)
        )
        self._stored = data
        self.deleted = 0

    @property
    def since(self) -> datetime:
        """When the first walk of all began."""
        return self._progress.since

    def run(self) -> None:
        """Walk to the end, which is a note that is not older than the time."""
        left: list[str] = []
        for batch in in_batches(self._progress.left):
            left += self._drop(batch)
        self._store(left=left)
        for name in self._queues():
            count = 1  # of most queues no further note is old enough
            while self._read_on(name, count):
                count = READERS

    def _queues(self) -> list[str]:
        """Read the names of the queues that have notes to read."""
        positions, index = dict(self._progress.positions), self._progress.index
        for entry in Journal(self._ledger.store, INDEX, actor=self._ledger.actor).entries(index):
            index = entry.number + 1
            if "opened" in entry.body:
                positions.setdefault(entry.body["opened"], 0)
        self._store(positions=positions, index=index)
        return list(positions)

    def _read_on(self, name: str, count: int) -> bool:
        """Read the next `count` notes of a queue and drop what they name; returns whether there may be more that are old enough."""
        journal = Journal(self._ledger.store, f"queues/{name}", actor=self._ledger.actor)
        begin, invocations, closed = self._progress.positions[name], dict[str, None](), False
        number = begin
        for data in all_at_once(
            [partial(self._ledger.store.find, journal.key(begin + each)) for each in range(count)]
        ):
            if data is None:
                break
            entry = journal.parse(number, data)[0]
            if entry.at >= self._before:
                break
            number, closed = number + 1, bool(entry.body.get("closed"))
            if "invocation" in entry.body:
                invocations[entry.body["invocation"]] = None
        left = [*dict.fromkeys([*self._progress.left, *self._drop(list(invocations))])]
        positions = self._progress.positions | {name: number}
        if closed:
            del positions[name]
        self._store(positions=positions, left=left)
        return not closed and number == begin + count

    def _drop(self, invocations: Sequence[str]) -> list[str]:
        """Delete those of some invocations that ended before the time; returns the ids of the others that are there."""
        found = all_at_once([partial(self._ledger.find, each) for each in invocations])
        records = [record for record in found if record is not None]
        gone = {each for each, record in zip(invocations, found, strict=True) if record is None}
        all_at_once([partial(self._ledger.complete_deletion, each) for each in gone])
        aged = [record for record in records if self._is_old(record)]
        needed = self._of_parents_to_replay(aged)
        old = [record.id for record in aged if record.id not in needed]
        self._ledger.delete_ended(old)
        self.deleted += len(old)
        rest = [record for record in records if record.id not in old]
        for record in rest:
            self._kept(record)
        return [record.id for record in rest]

    def _of_parents_to_replay(self, records: Sequence[Record]) -> set[str]:
        """Find those that a workflow submitted which is there and has not succeeded: it may go on, or be redriven, and its replay
        names their keys again, which must not run them again.
        """
        parents = {record.id: match[1] for record in records if (match := _CHILD.fullmatch(record.key or ""))}
        names = list(dict.fromkeys(parents.values()))
        found = all_at_once([partial(self._ledger.find, name) for name in names])
        replayed = {
            name
            for name, record in zip(names, found, strict=True)
            if record is not None and record.status != "succeeded"
        }
        return {child for child, parent in parents.items() if parent in replayed}

    def _is_old(self, record: Record) -> bool:
        return record.ended and (record.finished_at or record.submitted_at) < self._before

    def _store(self, **changes: object) -> None:
        self._progress = self._progress.model_copy(update=changes)
        data = self._progress.model_dump_json().encode()
        if data != self._stored:
            self._ledger.store.put(PROGRESS, data)
            self._stored = data
