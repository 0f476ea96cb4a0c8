"""Visibility of stored rows: the span of time in which each is the row of its key, as a read at that time would find it.

A row exists from the later of its event and created time. It is visible until a row of its key that takes precedence (later
by event, then created, then content) exists, and at most until its ttl has passed.
"""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from toque.featurestore.definitions.encoding import HEADER_BYTES, RowLayout, microseconds
from toque.featurestore.definitions.fields import CREATED_TIMESTAMP, EVENT_TIMESTAMP
from toque.featurestore.definitions.views import FeatureView
from toque.featurestore.offline.partitioning import key_hashes

Ints = np.ndarray[Any, np.dtype[np.int64]]
Hashes = np.ndarray[Any, np.dtype[np.uint64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]

NEVER = np.iinfo(np.int64).max
"""End of a span that has none."""
_MICROSECOND = timedelta(microseconds=1)


def group_codes(rows: pa.Table, keys: Sequence[str]) -> Ints:
    """Number the distinct keys of rows: equal numbers for equal keys."""
    codes = np.zeros(rows.num_rows, dtype=np.int64)
    for key in keys:
        column = rows.column(key).combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            return codes  # no rows
        encoded = column.dictionary_encode()
        part = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        _, codes = np.unique(codes * (len(encoded.dictionary) + 1) + part, return_inverse=True)
    return codes


def precedence_order(view: FeatureView, rows: pa.Table, whole: Callable[[Ints], pa.Table]) -> Ints:
    """Order rows by the hash of their key, then key, then precedence, the row that wins last; returns their positions.

    rows: keys and times at the least. whole: takes rows at some positions with all their columns.
    """
    keys = [key.name for key in view.join_keys]
    hashes, codes = key_hashes(rows, keys), group_codes(rows, keys)
    event = microseconds(rows.column(EVENT_TIMESTAMP))
    created = microseconds(rows.column(CREATED_TIMESTAMP))
    order = np.lexsort((created, event, codes, hashes)).astype(np.int64)
    same = np.zeros(len(order), dtype=np.bool_)
    same[1:] = (np.diff(codes[order]) == 0) & (np.diff(event[order]) == 0) & (np.diff(created[order]) == 0)
    if same.any():
        order = _by_content(view, whole, order, same)
    return order


def _by_content(view: FeatureView, whole: Callable[[Ints], pa.Table], order: Ints, same: Bools) -> Ints:
    """Order runs of rows that share key and times by their packed bytes. same: whether a row is in the run of the one before."""
    tied = same.copy()
    tied[:-1] |= same[1:]
    at = np.flatnonzero(tied)
    run = np.cumsum(~same)[at]
    packed = RowLayout(view.schema).encode(whole(order[at]))
    content = [value[HEADER_BYTES:] for value in packed]
    within = sorted(range(len(at)), key=lambda i: (run[i], content[i]))
    order[at] = order[at][np.array(within)]
    return order


def spans(codes: Ints, event: Ints, created: Ints, *, ttl: timedelta | None) -> tuple[Ints, Ints]:
    """First microsecond in which each row is visible, and the first in which it no longer is; none if they are equal or crossed.

    codes, event, created: of rows in the order of `precedence_order`.
    """
    since = np.maximum(event, created)
    until = np.full(len(since), NEVER, dtype=np.int64)
    if len(since) > 1:
        moments, rank = np.unique(since, return_inverse=True)
        group = np.concatenate([[0], np.cumsum(np.diff(codes) != 0)]).astype(np.int64)
        # The earliest from each row on: a later key counts more than any moment, so that it is one of the row's own key.
        earliest = np.minimum.accumulate((group * len(moments) + rank)[::-1])[::-1]
        followed = group[1:] == group[:-1]
        until[:-1] = np.where(followed, moments[earliest[1:] % len(moments)], NEVER)
    if ttl is not None:
        until = np.minimum(until, event + (ttl // _MICROSECOND + 1))
    return since, until
