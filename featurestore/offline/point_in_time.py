"""Point-in-time join of each entity row with the newest feature row that existed at its time.

Of the feature rows of the same key with `t - ttl <= event <= t` (both inclusive, to the microsecond) the one with
the greatest (event, created) is taken; `as_known` further asks for `known <= t`, where `known` is created unless the rows
say it of themselves. Rows out are rows in, in order.

Rows are sorted once by a single integer made of key and event time; each entity row is then one binary search.
With `as_known` the rows it lands on may not have been known yet: the nearest earlier one that was is found by
descending a tree of minima of `known`, so a backfilled history costs log n and not n a row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from toque.featurestore.definitions.encoding import HEADER_BYTES, RowLayout, microseconds
from toque.featurestore.definitions.fields import CREATED_TIMESTAMP, EVENT_TIMESTAMP, KNOWN_TIMESTAMP
from toque.registry.times import MICROSECOND

Ints = np.ndarray[Any, np.dtype[np.int64]]

_COMPOSITE_LIMIT = 2**62


@dataclass(frozen=True, slots=True)
class Match:
    """Matched feature row of each entity row.

    index: (entity rows,) int64, row of the feature table or -1.
    ties: pairs of candidate feature rows that share key, event and created time, so that their content decided.
    """

    index: Ints
    ties: int


def join(
    entities: pa.Table,
    rows: pa.Table,
    *,
    keys: Sequence[tuple[str, str]],
    features: Mapping[str, str],
    layout: RowLayout,
    ttl: timedelta | None = None,
    as_known: bool = False,
) -> pa.Table:
    """Append features as they were at each entity row's `event_timestamp`, null where no row matches.

    keys: (column of entities, column of rows) for each join key.
    features: output column to column of `rows`.
    layout: the fields whose bytes decide between rows that share key, event and created time.
    """
    match = search(entities, rows, keys=keys, layout=layout, ttl=ttl, as_known=as_known)
    return take(entities, rows, match, features=features)


def take(entities: pa.Table, rows: pa.Table, match: Match, *, features: Mapping[str, str]) -> pa.Table:
    """Append the matched rows' columns to `entities`.

    features: output column to column of `rows`.
    """
    at = pa.array(match.index, mask=match.index < 0)
    for output, column in features.items():
        entities = entities.append_column(output, rows.column(column).combine_chunks().take(at))
    return entities


def search(
    entities: pa.Table,
    rows: pa.Table,
    *,
    keys: Sequence[tuple[str, str]],
    layout: RowLayout,
    ttl: timedelta | None = None,
    as_known: bool = False,
) -> Match:
    """Find each entity row's feature row; arguments as for `join`."""
    entity_codes, codes = _codes(entities, rows, keys)
    times = microseconds(entities.column(EVENT_TIMESTAMP))
    kept = np.flatnonzero(codes >= 0)
    unmatched = np.full(len(times), -1, dtype=np.int64)
    if not len(kept) or not len(times):
        return Match(unmatched, 0)
    events = microseconds(rows.column(EVENT_TIMESTAMP))[kept]
    ranks, entity_ranks = _ranks(events, times, keys=int(entity_codes.max()) + 1)
    span = int(ranks.max()) + 1
    composite = codes[kept] * span + ranks
    order = np.argsort(composite)
    composite = composite[order]
    ties = _order_ties(order, composite, rows, kept, layout)
    last = np.searchsorted(composite, entity_codes * span + entity_ranks, side="right") - 1
    found = (last >= 0) & (entity_codes >= 0) & (entity_ranks >= 0)
    found &= composite[last] >= entity_codes * span  # otherwise it is the last row of the previous key
    if as_known:
        known = known_us(rows)[kept[order]]
        first = np.searchsorted(composite, entity_codes * span, side="left")
        last = _last_known(known, np.where(found, last, -1), first, times)
        found = last >= 0
    at = order[np.where(found, last, 0)]
    if ttl is not None:
        found &= times - events[at] <= ttl // MICROSECOND
    return Match(np.where(found, kept[at], -1), ties)


def known_us(rows: pa.Table) -> Ints:
    """Time in microseconds since which each stored row is known: what it says itself, else its created time."""
    name = KNOWN_TIMESTAMP if KNOWN_TIMESTAMP in rows.column_names else CREATED_TIMESTAMP
    return microseconds(rows.column(name))


def _codes(entities: pa.Table, rows: pa.Table, keys: Sequence[tuple[str, str]]) -> tuple[Ints, Ints]:
    """Encode keys of entity rows and feature rows as small integers; -1 where null or in no entity row."""
    entity_codes = np.zeros(entities.num_rows, dtype=np.int64)
    row_codes = np.zeros(rows.num_rows, dtype=np.int64)
    for number, (entity_column, row_column) in enumerate(keys):
        keys_given = entities.column(entity_column).cast(rows.schema.field(row_column).type)
        distinct = pc.unique(keys_given.combine_chunks()).drop_null()
        a, b = _positions(keys_given, distinct), _positions(rows.column(row_column), distinct)
        if not number:
            entity_codes, row_codes = a, b
            continue
        entity_codes = np.where((entity_codes < 0) | (a < 0), -1, entity_codes * len(distinct) + a)
        row_codes = np.where((row_codes < 0) | (b < 0), -1, row_codes * len(distinct) + b)
        entity_codes, row_codes = _dense(entity_codes, row_codes)
    return entity_codes, row_codes


def _positions(column: pa.ChunkedArray, distinct: pa.Array) -> Ints:
    found = pc.index_in(column, value_set=distinct, skip_nulls=True).combine_chunks()
    positions: Ints = found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return positions


def _dense(entity_codes: Ints, row_codes: Ints) -> tuple[Ints, Ints]:
    """Renumber codes to stay below the number of distinct entity keys."""
    distinct = np.unique(entity_codes[entity_codes >= 0])
    if not len(distinct):
        return np.full_like(entity_codes, -1), np.full_like(row_codes, -1)
    at = np.minimum(np.searchsorted(distinct, row_codes), len(distinct) - 1)
    return (
        np.where(entity_codes < 0, -1, np.searchsorted(distinct, entity_codes)),
        np.where(distinct[at] == row_codes, at, -1),
    )


def _ranks(events: Ints, times: Ints, *, keys: int) -> tuple[Ints, Ints]:
    """Rank event times as non-negative integers; for each entity time, the greatest rank not after it (or -1).

    Offsets from the first event where they leave room for the key codes in 62 bits, else dense ranks.
    """
    first, last = int(events.min()), int(events.max())
    if (last - first + 1) * (keys + 1) < _COMPOSITE_LIMIT:
        return events - first, np.where(times < first, -1, np.minimum(times, last) - first)
    distinct = np.unique(events)
    return np.searchsorted(distinct, events), np.searchsorted(distinct, times, side="right") - 1


def _order_ties(order: Ints, composite: Ints, rows: pa.Table, kept: Ints, layout: RowLayout) -> int:
    """Order rows of one key and event time by created, then content; returns how many pairs needed content."""
    same = composite[1:] == composite[:-1]
    if not same.any():
        return 0
    tied = np.zeros(len(composite), dtype=bool)
    tied[1:] |= same
    tied[:-1] |= same
    at = np.flatnonzero(tied)
    members = order[at]
    created = microseconds(rows.column(CREATED_TIMESTAMP))[kept[members]]
    runs = composite[at]
    within = np.lexsort((created, runs))
    members, created, runs = members[within], created[within], runs[within]
    exact = (runs[1:] == runs[:-1]) & (created[1:] == created[:-1])
    if exact.any():
        content = [value[HEADER_BYTES:] for value in layout.encode(rows.take(kept[members]))]
        by_content = sorted(range(len(members)), key=lambda i: (runs[i], created[i], content[i]))
        members = members[np.array(by_content)]
    order[at] = members
    return int(exact.sum())


def _last_known(known: Ints, last: Ints, first: Ints, times: Ints) -> Ints:
    """For each query the last position in [first, last] whose `known` is not after its time, or -1."""
    result = last.copy()
    late = np.flatnonzero((last >= 0) & (last >= first) & (known[np.maximum(last, 0)] > times))
    if len(late):
        found = _last_not_above(known, last[late], times[late])
        result[late] = np.where(found >= first[late], found, -1)
    return result


def _last_not_above(values: Ints, start: Ints, bound: Ints) -> Ints:
    """For each query the greatest position <= start with values[position] <= bound, or -1.

    A tree of minima: level k holds the minimum of each block of 2^k. Climb while blocks to the left are all above
    the bound, then descend into the first that is not.
    """
    levels = _minima(values)
    node, depth = start.copy(), np.full(len(start), -1)
    for k, minima in enumerate(levels):
        climbing = (depth < 0) & (node >= 0)
        hit = climbing & (minima[np.where(climbing, node, 0)] <= bound)
        depth[hit] = k
        missed = climbing & ~hit
        node[missed] = (node[missed] - 1) >> 1  # the sibling on the right, if any, has just failed too
    node[depth < 0] = -1
    for k in range(len(levels) - 1, 0, -1):
        down = depth >= k
        below = levels[k - 1]
        right = np.where(down, node * 2 + 1, 0)
        fits = (right < len(below)) & (below[np.minimum(right, len(below) - 1)] <= bound)
        node[down] = np.where(fits, right, right - 1)[down]
    return node


def _minima(values: Ints) -> list[Ints]:
    levels = [values]
    while len(levels[-1]) > 1:
        below = levels[-1]
        if len(below) % 2:
            below = np.append(below, np.iinfo(np.int64).max)
        levels.append(np.minimum(below[0::2], below[1::2]))
    return levels
