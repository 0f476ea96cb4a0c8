"""One scan for all who ask: within `shared_scans` the log is read once, however many models and monitors look at it.

All models' labels lie in one table. A thousand monitors that each read it would read a thousand times what one read brings:
the first one's labels are kept, found by the hash of their prediction's id, until the block ends. What is kept is the tables
as they were when they were first read there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from functions.prediction_log.records import LABELS
from kernels import hash_strings

__all__ = ["kept_labels", "kept_rows", "shared_scans"]

MOST_LABELS = 20_000_000  # that are kept, about 100 bytes each; of more every reader keeps its own alone
Batches = Iterator[pa.RecordBatch]


class _Labels:
    """Labels received from `since` on, found by the hash of their prediction's id."""

    def __init__(self, store: str, since: datetime, rows: pa.Table) -> None:
        self.store, self.since = store, since
        hashes = hash_strings(rows["prediction_id"])
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._rows = hashes[order], rows.take(pa.array(order))

    def of(self, ids: pa.ChunkedArray) -> pa.Table:
        """All labels of these predictions, and now and then one of another."""
        wanted = np.unique(hash_strings(ids))
        first, last = (np.searchsorted(self._hashes, wanted, side=side) for side in ("left", "right"))
        counts = last - first
        begins = np.cumsum(counts) - counts
        places = np.arange(counts.sum()) + np.repeat(first - begins, counts)
        return self._rows.take(pa.array(places))


class _Scans:
    """What was read in one block: the labels, and the rows read last."""

    def __init__(self) -> None:
        self.labels: _Labels | None = None
        self.too_many_since: datetime | None = None
        self.rows: tuple[Any, pa.Table] | None = None


_open: ContextVar[_Scans | None] = ContextVar("toque_shared_scans", default=None)


@contextmanager
def shared_scans() -> Iterator[None]:
    """Read the log once for all that is asked within the block; a block within a block is one with it."""
    if _open.get() is not None:
        yield
        return
    token = _open.set(_Scans())
    try:
        yield
    finally:
        _open.reset(token)


def kept_labels(
    store: str, ids: pa.ChunkedArray, since: datetime, read: Callable[[datetime], Batches]
) -> pa.Table | None:
    """All labels of predictions that were received from `since` on; None outside a block, or where they are too many.

    read: the labels received from a time on, in batches. Now and then a label of another prediction is among them.
    """
    scans = _open.get()
    if scans is None or (scans.too_many_since is not None and since <= scans.too_many_since):
        return None
    if scans.labels is None or scans.labels.store != store or scans.labels.since > since:
        rows = _bounded(read(since))
        if rows is None:
            scans.too_many_since = since
            return None
        scans.labels = _Labels(store, since, rows)
    return scans.labels.of(ids)


def kept_rows(key: object, read: Callable[[], pa.Table]) -> pa.Table:
    """What `read` brings; within a block not read again if the last one asked for the same."""
    scans = _open.get()
    if scans is None:
        return read()
    if scans.rows is None or scans.rows[0] != key:
        scans.rows = (key, read())
    return scans.rows[1]


def _bounded(batches: Batches) -> pa.Table | None:
    """All batches as a table; None if they are more than may be kept."""
    kept, count = [], 0
    for batch in batches:
        kept.append(batch)
        count += batch.num_rows
        if count > MOST_LABELS:
            return None
    return pa.Table.from_batches(kept, LABELS)
