"""Prefilter of feature rows before a shuffle: drops rows that cannot be the answer of any entity row.

For each entity row the answer is the greatest feature row that exists at its time, and the greatest of a whole is among
the greatest of its parts. So of any part of a table only rows that are the greatest of the part for some entity row have
to be shuffled; the join of the rest gives the same result. For a dropped row, no entity row has its key at a time between
its own and that of the next row of the key, or its expiry.

Entity rows are kept as 8 bytes each, sorted: the upper bits of the key's hash, then the time in 2^28 steps from the first to
the last. Steps and bits that two keys share keep a few more rows, and never fewer.
"""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from toque.featurestore.definitions.encoding import microseconds
from toque.featurestore.definitions.fields import CREATED_TIMESTAMP, EVENT_TIMESTAMP
from toque.featurestore.offline.partitioning import Hashes, Ints
from toque.featurestore.offline.point_in_time import known_us

Bools = np.ndarray[Any, np.dtype[np.bool_]]

_STEP_BITS = 28  # of a moment, for the time; the rest is for the key
_STEPS = np.uint64((1 << _STEP_BITS) - 1)
_KEY = np.uint64(_STEP_BITS)
_LONGEST_US = 2**61  # a ttl beyond it outlives every row


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
        moments: Hashes = (hashes >> _KEY << _KEY) | steps
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
            lasting = events[order] + min(ttl // timedelta(microseconds=1), _LONGEST_US)
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
        return (first >= since) & (first >> _KEY == since >> _KEY), first


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
    earliest = np.minimum.accumulate((keys << _KEY | steps)[::-1])[::-1]
    starts = np.concatenate([[0], np.flatnonzero(~same_row) + 1])
    following = np.append(starts[1:], count)[np.concatenate([[0], np.cumsum(~same_row)])]
    later = np.minimum(following, count - 1)
    exists = (following < count) & (keys[later] == keys)
    replaced: Hashes = np.where(exists, earliest[later] & _STEPS, _STEPS + np.uint64(1))
    return replaced
