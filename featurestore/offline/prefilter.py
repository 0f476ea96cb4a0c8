"""Prefilter of feature rows: drops those that cannot be the answer of any entity row, before a shuffle or step by step.

For each entity row the answer is the greatest feature row that exists at its time, and the greatest of a whole is
among the greatest of its parts. So of any part of a table only rows that are the greatest of the part for some entity
row count, and candidates of candidates are enough. For a dropped row, no entity row has its key at a time between its
own and that of the next row of the key, or its expiry.

A join in steps cuts down the rows read so far whenever they have doubled, so memory follows the entity rows, whatever
the table's size. Entity rows are kept as 8 bytes each, sorted: the upper bits of the key's hash, then the time in
2^28 steps from the first to the last. Steps and bits that two keys share keep a few more rows, and never fewer.
"""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from toque.featurestore.definitions.encoding import microseconds
from toque.featurestore.definitions.fields import CREATED_TIMESTAMP, EVENT_TIMESTAMP
from toque.featurestore.definitions.views import FeatureView, Projection
from toque.featurestore.offline.partitioning import Hashes, Ints, key_hashes
from toque.featurestore.offline.point_in_time import known_us
from toque.featurestore.offline.retrieval import (
    PinnedRetrieval,
    attach,
    finish,
    stored_view,
    typed_keys,
)
from toque.featurestore.rows import offline_schema
from toque.registry.times import MICROSECOND

Bools = np.ndarray[Any, np.dtype[np.bool_]]

_STEP_BITS = 28  # of a moment, for the time; the rest is for the key
_STEPS = np.uint64((1 << _STEP_BITS) - 1)
_KEY_SHIFT = np.uint64(_STEP_BITS)
_LONGEST_US = 2**61  # a ttl beyond it outlives every row

ROWS_PER_STEP = 100_000
_ENTITY_ROWS_PER_STEP = 250_000


class Prefilter:
    """Keys and times of entity rows, in a compact sorted form.

    moments: (entity rows,) uint64, sorted, a key's upper bits and a time's step in one number;
    origin_us, shift: a time t in microseconds is in step (t - origin_us) >> shift.
    """

    def __init__(self, moments: Hashes, *, origin_us: int, shift: int) -> None:
        self.moments = moments
        self.origin_us = origin_us
        self.shift = shift

    @classmethod
    def of(
        cls, pieces: Iterable[tuple[Hashes, Ints]], *, rows: int, first_us: int, last_us: int
    ) -> "Prefilter":
        """Build the prefilter from key hashes and times of entity rows.

        rows: how many entity rows there are; first_us, last_us: bounds of their times.
        """
        shift = max((last_us - first_us).bit_length() - _STEP_BITS, 0)
        prefilter = cls(np.empty(rows, dtype=np.uint64), origin_us=first_us, shift=shift)
        at = 0
        for hashes, times in pieces:
            prefilter.moments[at : at + len(hashes)] = prefilter._moment(hashes, times)
            at += len(hashes)
        prefilter.moments.sort()
        return prefilter

    def _moment(self, hashes: Hashes, times: Ints) -> Hashes:
        steps = np.clip((times - self.origin_us) >> self.shift, 0, int(_STEPS)).astype(np.uint64)
        moments: Hashes = (hashes >> _KEY_SHIFT << _KEY_SHIFT) | steps
        return moments

    def candidates(
        self,
        rows: pa.Table,
        hashes: Hashes,
        *,
        keys: Sequence[str],
        ttl: timedelta | None = None,
        as_known: bool = False,
    ) -> Ints:
        """Indices, ascending, of the rows that can be an entity row's answer.

        rows: any part of a view's stored rows; hashes: of their `keys`; ttl, as_known: as for the join.
        """
        events = microseconds(rows.column(EVENT_TIMESTAMP))
        created = microseconds(rows.column(CREATED_TIMESTAMP))
        since = self._moment(hashes, np.maximum(events, known_us(rows)) if as_known else events)
        order = np.argsort(since)
        needed, first = self._first(since[order])
        if ttl is not None:
            lasting = events[order] + min(ttl // MICROSECOND, _LONGEST_US)
            needed &= first <= self._moment(hashes[order], lasting)
        kept, first = order[needed], first[needed]
        within = np.lexsort((created[kept], events[kept], hashes[kept]))
        kept, first = kept[within], first[within]
        same_key = _same_key(rows.select(list(keys)).take(pa.array(kept)), hashes[kept])
        same_row = same_key & (np.diff(events[kept]) == 0) & (np.diff(created[kept]) == 0)
        replaced = _replaced(since[kept] & _STEPS, same_key, same_row)
        candidates: Ints = np.sort(kept[(first & _STEPS) <= replaced])
        return candidates

    def _first(self, since: Hashes) -> tuple[Bools, Hashes]:
        """For each sorted moment, whether an entity row has its key then or later, and the first such moment."""
        if not len(self.moments):
            return np.zeros(len(since), dtype=np.bool_), since
        first = self.moments[
            np.minimum(np.searchsorted(self.moments, since, side="left"), len(self.moments) - 1)
        ]
        return (first >= since) & (first >> _KEY_SHIFT == since >> _KEY_SHIFT), first


def _same_key(keys: pa.Table, hashes: Hashes) -> Bools:
    """Whether each row but the first has the key of the row before, for rows sorted by hash."""
    same: Bools = np.diff(hashes) == 0
    for column in keys.columns:
        codes = column.combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
        same &= np.diff(codes) == 0
    return same


def _replaced(steps: Hashes, same_key: Bools, same_row: Bools) -> Hashes:
    """For each row the step at which a later row of its key replaces it, or beyond the last step if none does.

    Rows are sorted by key, event and created time; rows with both times equal do not replace each other.
    steps: from which each row exists; same_key, same_row: whether key, or key and times, are those of the row before.
    """
    count = len(steps)
    if not count:
        return steps
    keys = np.concatenate([[0], np.cumsum(~same_key)]).astype(np.uint64)
    # The earliest from each row on: a later key counts more than any step, so that it is one of the row's own key.
    earliest = np.minimum.accumulate((keys << _KEY_SHIFT | steps)[::-1])[::-1]
    starts = np.concatenate([[0], np.flatnonzero(~same_row) + 1])
    following = np.append(starts[1:], count)[np.concatenate([[0], np.cumsum(~same_row)])]
    later = np.minimum(following, count - 1)
    exists = (following < count) & (keys[later] == keys)
    replaced: Hashes = np.where(exists, earliest[later] & _STEPS, _STEPS + np.uint64(1))
    return replaced


def join_in_steps(job: PinnedRetrieval, *, step_rows: int = ROWS_PER_STEP) -> pa.Table:
    """Compute the rows of `RetrievalJob.to_arrow`, reading the stored rows in steps.

    step_rows: stored rows that are read at once.
    """
    table = job.entities
    for lookup in job.retrieval.lookups:
        rows = answers_of(job, lookup, step_rows=step_rows)
        table, _ = attach(table, rows, lookup, as_known=job.reads_as_known(lookup))
    return finish(table, job.entities.column_names, job.retrieval)


def answers_of(job: PinnedRetrieval, lookup: Projection, *, step_rows: int = ROWS_PER_STEP) -> pa.Table:
    """Read the stored rows of a lookup that can be the answer of some entity row."""
    view, prefilter = stored_view(lookup), prefilter_of(job, lookup)
    snapshot = job.versions[view.name]
    version = None if snapshot is None else job.offline.version(view, snapshot.version)
    if version is None or prefilter is None:
        return offline_schema(view).empty_table()
    start, end = job.bounds(lookup)
    files = [file for file in version.files if file.may_hold(start, end)]
    known_else = job.known_else(lookup)
    read = job.offline.batches(
        view, version, files, start=start, end=end, rows=step_rows, known_else=known_else
    )
    return candidates_of((rows for rows, _ in read), prefilter, view, as_known=job.reads_as_known(lookup))


def candidates_of(
    parts: Iterable[pa.Table], prefilter: Prefilter, view: FeatureView, *, as_known: bool
) -> pa.Table:
    """Select from parts of a view's rows those that can be an answer, in the order of the parts."""
    keys = [key.name for key in view.join_keys]

    def chosen(rows: pa.Table) -> pa.Table:
        hashes = key_hashes(rows, keys)
        found = prefilter.candidates(rows, hashes, keys=keys, ttl=view.ttl, as_known=as_known)
        return rows.take(pa.array(found))

    kept, waiting = list[pa.Table](), list[pa.Table]()
    for rows in parts:
        waiting.append(chosen(rows))
        before = sum(part.num_rows for part in kept)
        if sum(part.num_rows for part in waiting) > max(before, len(prefilter.moments)):
            kept, waiting = [chosen(pa.concat_tables([*kept, *waiting]))], []
    return pa.concat_tables([*kept, *waiting] or [offline_schema(view).empty_table()])


def prefilter_of(job: PinnedRetrieval, lookup: Projection) -> Prefilter | None:
    """Build the prefilter of a job's entity rows; None if it has none."""
    count = job.entities.num_rows
    if not count:
        return None
    slices = (job.entities.slice(at, _ENTITY_ROWS_PER_STEP) for at in range(0, count, _ENTITY_ROWS_PER_STEP))
    pieces = ((entity_hashes(rows, lookup), microseconds(rows.column(EVENT_TIMESTAMP))) for rows in slices)
    times = pc.min_max(job.entities.column(EVENT_TIMESTAMP).cast(pa.int64())).as_py()
    return Prefilter.of(pieces, rows=count, first_us=times["min"], last_us=times["max"])


def entity_hashes(entities: pa.Table, lookup: Projection) -> Hashes:
    """Hash the keys of entity rows in the view's types, so that they hash as in the view's rows."""
    return key_hashes(typed_keys(entities, lookup), lookup.key_columns)
