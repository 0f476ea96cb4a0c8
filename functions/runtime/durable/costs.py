"""Costs of invocations by the day of their submission, and spending of teams by calendar month (UTC).

What has succeeded is final: it is summed once and kept. Of a day that is kept only the invocations are read that were
submitted since, and those that had not succeeded. What was read before the time was up is kept too, so a day of any length is
summed in the end; whoever looks reads the newest days first, and of days that it does not reach, what is kept counts.
An invocation that is deleted later stays in the sums of its day. One whose submitter was killed before it was queued, and that
was submitted again after its day was summed, is missing. Spending counts each attempt that has ended once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from pydantic import BaseModel

from toque.functions.runtime.admission.occupancy import Spent
from toque.functions.runtime.durable.ledger import Ledger
from toque.functions.runtime.durable.record import Record
from toque.functions.runtime.receipt import Total, Usage, summed
from toque.registry.journal.entry import Entry
from toque.registry.journal.fold import Fold
from toque.registry.journal.journal import Journal
from toque.registry.store.object_store import ObjectStore

_DAY: Final = timedelta(days=1)
_SETTLED: Final = timedelta(minutes=10)  # for notes of invocations, and clocks that differ
_KEEP_EVERY: Final = 200  # records, of two or more requests each
_Span = tuple[datetime, datetime]  # from a time on, up to before another
JOURNAL = "spending"
_MONTHS = 13  # that are kept
_RECENT = 1_024  # attempts that are remembered: one whose writer was killed is counted again within minutes, or never


class CostRow(Total, frozen=True):
    """Sum of the receipts of one function, day (UTC), caller and model. model: argument of that name; empty without one."""

    model: str = ""


class KnownCosts(BaseModel, frozen=True):
    """Sums that are known at once.

    rows: those of the days. behind: days (UTC) whose sums lack what ended since they were summed, the newest first; never: those among them
    that were not summed yet, and have no row.
    """

    rows: list[CostRow]
    behind: list[date] = []
    never: list[date] = []


class _Partial(BaseModel, frozen=True):
    """Sums of those of a day's invocations that were read before the time was up, and that nobody has to read again.

    spans: of their submissions, the newest first; rows: what has succeeded; others: ids of the rest.
    """

    spans: list[_Span] = []
    rows: list[CostRow] = []
    others: list[str] = []

    def holes(self, start: datetime, end: datetime) -> list[_Span]:
        """List the spans between two times that were not read, the newest first."""
        holes: list[_Span] = []
        for since, until in self.spans:
            if until < end:
                holes.append((until, end))
            end = min(end, since)
        return [*holes, (start, end)] if start < end else holes

    def plus(self, records: Iterable[Record], span: _Span) -> _Partial:
        """Add what was read of a span, which is all that was submitted in it."""
        final, rest = _split(records)
        spans: list[_Span] = []
        for since, until in sorted([*self.spans, span], reverse=True):
            if spans and until >= spans[-1][0]:
                spans[-1] = (min(since, spans[-1][0]), spans[-1][1])
            else:
                spans.append((since, until))
        others = [*self.others, *(record.id for record in rest)]
        return _Partial(spans=spans, rows=summed([*self.rows, *costs_of(final)]), others=others)

    def plus_whole(self, records: Sequence[Record], end: datetime) -> _Partial:
        """Add the first of what was submitted before a time, newest first, without the last moment, of which there may be more."""
        whole = [record for record in records if record.submitted_at > records[-1].submitted_at]
        return self.plus(whole, (whole[-1].submitted_at, end)) if whole else self


class _Kept(BaseModel, frozen=True):
    """Sums of what one day's invocations used.

    upto: of what was submitted before it; rows: what has succeeded; others: ids of the rest; other_rows: what these had used when they
    were read last, and what was submitted after `upto`; partial: of what was submitted after it, while that is not read whole.
    """

    upto: datetime
    rows: list[CostRow] = []
    others: list[str] = []
    other_rows: list[CostRow] = []
    partial: _Partial | None = None


class _Late(Exception):  # noqa: N818  # no failure: what is known must do
    """Raised when there is no time left to read on."""


def costs_since(ledger: Ledger, first: date) -> list[CostRow]:
    """Sum the receipts of the invocations that were submitted since the beginning of a day (UTC), however long that takes."""
    return known_costs(ledger, first, within_s=math.inf).rows


def known_costs(
    ledger: Ledger, first: date, *, within_s: float, clock: Callable[[], float] = time.monotonic
) -> KnownCosts:
    """Sum the receipts of the invocations that were submitted since the beginning of a day (UTC), as far as they are known in time.

    within_s: how long invocations are read, the newest days first; of the other days what is kept counts.
    """
    now, until = ledger.clock(), clock() + within_s
    walk, there = _Walk(ledger), set(ledger.store.list("costs/"))
    rows: list[CostRow] = []
    behind: list[date] = []
    never: list[date] = []
    today = now.astimezone(UTC).date()
    for day in (today - number * _DAY for number in range((today - first).days + 1)):
        data = ledger.store.find(_key(day)) if _key(day) in there else None
        kept = None if data is None else _Kept.model_validate_json(data)
        if kept is None and walk.is_over:
            continue
        try:
            rows += _of_day(walk, day, now, kept, lambda: clock() < until)
        except _Late:
            if kept is None and not never and walk.is_empty(day):
                continue
            behind.append(day)
            summed_once = kept is not None and (kept.partial is None or kept.upto > _start(day))
            never += [] if summed_once else [day]
            rows += [] if kept is None else [*kept.rows, *kept.other_rows]
    return KnownCosts(rows=summed(rows), behind=behind, never=never)


def costs_of(records: Iterable[Record]) -> list[CostRow]:
    """Sum the receipts of invocations, of those that have one."""
    return summed(CostRow.of(each.receipt, model=_model(each.arguments)) for each in records if each.receipt)


class _Walk:
    """Walk over invocations from the newest to the oldest, which goes on where it stopped: days without any cost nothing.

    is_over: whether the oldest of all was passed.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.is_over = ledger, False
        self._left: Iterator[tuple[str, Entry]] = iter(())
        self._next: tuple[str, Entry] | None = None
        self._stopped_at: datetime | None = None

    def between(self, start: datetime, end: datetime) -> Iterator[Record]:
        """Iterate over the invocations that were submitted in [start, end), newest first."""
        found, self._stopped_at = self._newest(end), None
        while found is not None and found[1].at >= start:
            yield self.ledger.follow(*found).record
            found = self._advance()
        self._stopped_at = start

    def is_empty(self, day: date) -> bool:
        """Whether no invocation was submitted on a day."""
        found = self._newest(_start(day) + _DAY)
        return found is None or found[1].at < _start(day)

    def _newest(self, end: datetime) -> tuple[str, Entry] | None:
        """Find the newest invocation that was submitted before a time."""
        if self._stopped_at != end:
            self._left, self._stopped_at = self.ledger.submitted(end), end
            return self._advance()
        return self._next

    def _advance(self) -> tuple[str, Entry] | None:
        self._next = next(self._left, None)
        self.is_over = self._next is None
        return self._next


def _of_day(
    walk: _Walk, day: date, now: datetime, known: _Kept | None, may_read: Callable[[], bool]
) -> list[CostRow]:
    """Sum a day, and keep the sums. Raises: _Late."""
    start = _start(day)
    kept = known or _Kept(upto=start)
    end, settled = start + _DAY, min(start + _DAY, now - _SETTLED)
    if kept.upto == end and not kept.others:
        return kept.rows
    newest = max(settled, kept.upto)
    fresh = list(_while(may_read, walk.between(newest, end))) if newest < end else []
    again: list[Record] = []  # of what has not succeeded, what was read now
    read = _read_settled(walk, day, kept, settled, may_read, again)
    seen = {record.id for record in again}
    before = [each for each in (*kept.others, *read.others) if each not in seen]
    try:
        again += _while(may_read, walk.ledger.find_all(before)) if before else ()
    except _Late:
        _keep(walk, day, kept.model_copy(update={"partial": read}), kept)
        raise
    final, rest = _split(again)
    rows, other_rows = summed([*kept.rows, *read.rows, *costs_of(final)]), costs_of([*rest, *fresh])
    others = [each.id for each in rest]
    new = _Kept(upto=newest, rows=rows, others=others, other_rows=other_rows)
    went_on = kept.upto < settled == end or settled - kept.upto >= _SETTLED
    if went_on or (rows, others, other_rows) != (kept.rows, kept.others, kept.other_rows):
        _keep(walk, day, new, known)
    return [*rows, *other_rows]


def _read_settled(
    walk: _Walk,
    day: date,
    kept: _Kept,
    settled: datetime,
    may_read: Callable[[], bool],
    others: list[Record],
) -> _Partial:
    """Read what was submitted since a day was kept, and keep it in parts; adds what has not succeeded to `others`. Raises: _Late."""
    read = kept.partial or _Partial()
    for start, end in read.holes(kept.upto, settled):
        records: list[Record] = []
        try:
            for record in _while(may_read, walk.between(start, end)):
                records.append(record)
                if len(records) % _KEEP_EVERY == 0:
                    _keep(walk, day, kept.model_copy(update={"partial": read.plus_whole(records, end)}), kept)
        except _Late:
            _keep(walk, day, kept.model_copy(update={"partial": read.plus_whole(records, end)}), kept)
            raise
        read = read.plus(records, (start, end))
        others += _split(records)[1]
    return read


def _split(records: Iterable[Record]) -> tuple[list[Record], list[Record]]:
    """Split records into those that have succeeded, which is final, and the others."""
    final: list[Record] = []
    rest: list[Record] = []
    for record in records:
        (final if record.status == "succeeded" else rest).append(record)
    return final, rest


def _keep(walk: _Walk, day: date, sums: _Kept, known: _Kept | None) -> None:
    if sums != known:
        walk.ledger.store.put(_key(day), sums.model_dump_json().encode())


def _while(may_read: Callable[[], bool], records: Iterable[Record]) -> Iterator[Record]:
    """Give records as long as there is time. Raises: _Late."""
    left = iter(records)
    while may_read():
        try:
            yield next(left)
        except StopIteration:
            return
    raise _Late


def _start(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _key(day: date) -> str:
    return f"costs/{day.isoformat()}.json"


def _model(arguments: Mapping[str, Any]) -> str:
    """Find the model that an invocation was about; arguments so large that they lie elsewhere are not read for it."""
    given = arguments.get("json")
    found = given.get("model") if isinstance(given, dict) else None
    return found if isinstance(found, str) else ""


class _State(BaseModel, frozen=True):
    """months: CPU and GPU seconds by month and team; recent: workers of the attempts that were counted last."""

    months: dict[str, dict[str, tuple[float, float]]] = {}
    recent: tuple[str, ...] = ()


class Spending:
    """Sums of what the experiments in a store used, by team and month."""

    def __init__(self, store: ObjectStore, *, actor: str) -> None:
        journal = Journal(store, JOURNAL, actor=actor)
        decode = _State.model_validate
        self.fold = Fold(journal, _State(), _fold_entry, encode=_State.model_dump, decode=decode)

    def add(self, worker: str, team: str, usage: Usage) -> None:
        """Count what an attempt used; one that is counted already is left alone. One read and one write."""
        body = {"worker": worker, "team": team, "cpu_s": usage.cpu_s, "gpu_s": usage.gpu_s}
        self.fold.transact(lambda state: None if worker in state.recent else body)

    def of_month(self, now: datetime) -> Mapping[str, Spent]:
        """What each team has spent in the month of `now`; one read."""
        month = self.fold.refresh().months.get(_month(now), {})
        return {team: Spent(*seconds) for team, seconds in month.items()}


def _month(at: datetime) -> str:
    return at.strftime("%Y-%m")


def _fold_entry(state: _State, entry: Entry) -> _State:
    body, month = entry.body, _month(entry.at)
    teams = dict(state.months.get(month, {}))
    cpu_s, gpu_s = teams.get(body["team"], (0.0, 0.0))
    teams[body["team"]] = cpu_s + body["cpu_s"], gpu_s + body["gpu_s"]
    months = dict(sorted({**state.months, month: teams}.items())[-_MONTHS:])
    return _State(months=months, recent=(*state.recent, body["worker"])[-_RECENT:])
