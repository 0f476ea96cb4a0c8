"""Costs of invocations by the day of their submission; what has succeeded is summed once and kept.

Of a day that is kept only the invocations are read that were submitted since, and those that had not succeeded: a success is
final, anything else may be run again. An invocation that is deleted later stays in the sums of its day. One whose submitter was
killed before it was queued, and that was submitted again after its day was summed, is missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from pydantic import BaseModel

from functions.runtime.durable.ledger import Ledger
from functions.runtime.durable.record import Record
from functions.runtime.receipt import Total
from registry.store import ObjectStore

_DAY: Final = timedelta(days=1)
_SETTLED: Final = timedelta(minutes=10)  # for notes of invocations, and clocks that differ
_SUMMED: Final = ("invocations", "attempts", "queue_s", "run_s", "cpu_s", "gpu_s", "store_reads", "store_writes")  # fmt: skip


class CostRow(Total, frozen=True):
    """Sum of the receipts of one function, day (UTC), caller and model. model: argument of that name; empty without one."""

    model: str = ""


class _Kept(BaseModel, frozen=True):
    """Sums of what one day's invocations used. upto: of what was submitted before it; rows: what has succeeded; others: ids of the rest."""

    upto: datetime
    rows: list[CostRow] = []
    others: list[str] = []


def costs_since(ledger: Ledger, first: date) -> list[CostRow]:
    """Sum the receipts of the invocations that were submitted since the beginning of a day (UTC)."""
    now = ledger.clock()
    days = [first + number * _DAY for number in range((now.astimezone(UTC).date() - first).days + 1)]
    return summed(row for day in days for row in _of_day(ledger, day, now))


def costs_of(records: Iterable[Record]) -> list[CostRow]:
    """Sum the receipts of invocations, of those that have one."""
    return summed(_row(each) for each in records if each.receipt)


def summed(rows: Iterable[CostRow]) -> list[CostRow]:
    """Add rows up that have the same function, day, caller and model, sorted in that order."""
    groups: dict[tuple[str, str, str, str], list[CostRow]] = {}
    for each in rows:
        groups.setdefault((each.function, each.day, each.caller, each.model), []).append(each)
    return [
        group[0].model_copy(update={name: _sum(group, name) for name in _SUMMED})
        for _, group in sorted(groups.items())
    ]


def _of_day(ledger: Ledger, day: date, now: datetime) -> list[CostRow]:
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    kept = _find(ledger.store, day) or _Kept(upto=start)
    end, settled = start + _DAY, min(start + _DAY, now - _SETTLED)
    records = list(ledger.find_all(kept.others))
    if kept.upto < end:
        records += ledger.submitted(kept.upto, end)
    final: list[Record] = []
    rest: list[Record] = []
    for each in records:
        is_final = each.status == "succeeded" and each.submitted_at < settled
        (final if is_final else rest).append(each)
    rows = summed([*kept.rows, *costs_of(final)])
    if final or settled > kept.upto:
        others = [each.id for each in rest if each.submitted_at < settled]
        new = _Kept(upto=max(settled, kept.upto), rows=rows, others=others)
        ledger.store.put(_key(day), new.model_dump_json().encode())
    return [*rows, *costs_of(rest)]


def _find(store: ObjectStore, day: date) -> _Kept | None:
    data = store.find(_key(day))
    return None if data is None else _Kept.model_validate_json(data)


def _key(day: date) -> str:
    return f"costs/{day.isoformat()}.json"


def _row(record: Record) -> CostRow:
    receipt = record.receipt
    if receipt is None:
        raise ValueError(f"invocation {record.id} has no receipt; it is {record.status}")
    return CostRow(
        function=receipt.function,
        day=receipt.finished_at.date().isoformat(),
        caller=receipt.caller,
        invocations=1,
        model=_model(record.arguments),
        **receipt.model_dump(include=set(_SUMMED)),
    )


def _model(arguments: Mapping[str, Any]) -> str:
    """Find the model that an invocation was about; arguments so large that they lie elsewhere are not read for it."""
    given = arguments.get("json")
    found = given.get("model") if isinstance(given, dict) else None
    return found if isinstance(found, str) else ""


def _sum(rows: list[CostRow], name: str) -> float | int:
    values = [getattr(each, name) for each in rows]
    return sum(values) if isinstance(values[0], int) else math.fsum(values)
