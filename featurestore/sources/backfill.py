"""Backfill of a batch source: rows of a range of event times are read again, and what is not stored as it is there is loaded.

The range is loaded in steps of a bounded number of rows, each a load of its own that says until when the range was done, so
that a killed backfill goes on there. How far the source was read for the loads of what is new stays as it is.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import polars as pl
import pyarrow as pa

from toque.featurestore.definitions.batch_source import Secrets, TimeRange
from toque.featurestore.definitions.fields import EVENT_TIMESTAMP
from toque.featurestore.errors import InvalidDefinition, InvalidRows
from toque.featurestore.sources.load_log import BACKFILL, SHOWN, SourceLoad
from toque.featurestore.sources.loading import SourceTable
from toque.featurestore.sources.rows import Checked, check
from toque.registry.times import MICROSECOND, as_utc, from_text, to_text

STEP_ROWS = 4 << 20
"""Rows of a range that are held at once; a range with more of them is halved."""


def load_range(table: SourceTable, secrets: Secrets, *, start: datetime, end: datetime) -> SourceLoad:
    """Load rows with `start` <= event time < `end` that are not stored as they are there, wherever the source was read up to.

    Needs `unique`. Safe to repeat; one that was killed goes on if it is asked for the same range. Returns the sum of its
    loads. Raises: InvalidDefinition without `unique`; UnreadableSource, UnexpectedRows.
    """
    source = table.source
    since, until = as_utc(start, name="start"), as_utc(end, name="end")
    if not source.unique:
        raise InvalidDefinition(
            f"batch source {source.name!r} says of no columns that they name a row, so a row that is read again cannot be told "
            "from a new one; declare `unique`"
        )
    if not source.timestamp or source.row_number:
        raise InvalidDefinition(
            f"batch source {source.name!r} gives its rows {'their numbers' if source.timestamp else 'their times'} when it loads "
            "them, so they cannot be found again by a range; load it anew under another name"
        )
    if since >= until:
        raise InvalidRows(f"start={since.isoformat()} must be before end={until.isoformat()}")
    at, step = _resumed(table, since, until), until - since
    loads: list[SourceLoad] = []
    while at < until:
        within = TimeRange(source.timestamp, at, min(until, at + step))
        load = table.begin(within)
        found = _rows_within(table, secrets, within, loaded_at=load.at, names=load.read)
        if found is None:
            step = max((within.end - at) / 2, MICROSECOND)
            continue
        load.add(_last_of_each(table, found.rows))
        aside = table.not_aside(found.rejected)
        load.rejected = [aside] if aside.num_rows else []
        done = within.end >= until
        asked = {"start": to_text(since), "end": to_text(until), "until": to_text(within.end)}
        load.position = {BACKFILL: None if done else asked}
        table.commit(load)
        recorded = table.state().loads[-1]
        if recorded.at == load.at and recorded.backfill is not None:  # or another load came first
            loads.append(recorded)
            at = within.end
    return _sum(loads, since, until)


def _resumed(table: SourceTable, start: datetime, end: datetime) -> datetime:
    """Find where a backfill of this range goes on: its start, unless one was killed on the way."""
    kept: dict[str, Any] | None = table.state().position.get(BACKFILL)
    if kept is None or (kept["start"], kept["end"]) != (to_text(start), to_text(end)):
        return start
    return from_text(kept["until"])


def _rows_within(
    table: SourceTable, secrets: Secrets, within: TimeRange, *, loaded_at: datetime, names: list[str]
) -> Checked | None:
    """Read the rows of a range; None if they are more than are held at once and the range can be halved.

    names: takes the names of the pieces that were read.
    """
    rows: list[pa.Table] = []
    rejected: list[pa.Table] = []
    for piece in table.source.reads.pieces({}, table.read_names, secrets, within):
        for batch in piece.batches():
            checked = check(table.source, batch, loaded_at=loaded_at, within=within)
            rows.append(checked.rows)
            rejected.append(checked.rejected)
            if sum(each.num_rows for each in rows) > STEP_ROWS and within.end - within.start > MICROSECOND:
                return None
        names.append(piece.name)
    empty = check(table.source, _no_rows(table), loaded_at=loaded_at)
    return Checked(pa.concat_tables([empty.rows, *rows]), pa.concat_tables([empty.rejected, *rejected]))


def _no_rows(table: SourceTable) -> pa.Table:
    return pa.table({name: pa.array([], pa.string()) for name in table.read_names})


def _last_of_each(table: SourceTable, rows: pa.Table) -> pa.Table:
    """Keep of the rows that have one name and time the one that was read last."""
    keys = [*table.source.unique, EVENT_TIMESTAMP]
    frame = pl.DataFrame(rows).unique(keys, keep="last", maintain_order=True)
    return frame.to_arrow().cast(rows.schema)


def _sum(loads: list[SourceLoad], start: datetime, end: datetime) -> SourceLoad:
    last = loads[-1]
    spans = [each.loaded for each in loads]
    total = sum(spans[1:], spans[0])
    reasons: dict[str, int] = {}
    for each in loads:
        for reason, count in each.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
    return last.model_copy(
        update={
            "read": list(dict.fromkeys(name for each in loads for name in each.read))[:SHOWN],
            "rows": total.rows,
            "known": sum(each.known for each in loads),
            "rejected": sum(each.rejected for each in loads),
            "reasons": reasons,
            "first": total.first,
            "last": total.last,
            "backfill": (start, end),
        }
    )
