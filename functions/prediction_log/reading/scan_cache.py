"""Cache of log scans: within `shared_scans` the log is read once for any number of models and monitors.

All models' labels lie in one table. So the labels that the first monitor
reads are kept, indexed by the hash of their prediction's id, until the block ends. What is kept is the tables as of their
first read in the block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from toque.functions.prediction_log.records import CONTENT_LABELS
from toque.kernels import hash_strings

__all__ = ["shared_labels", "shared_rows", "shared_scans"]

MAX_LABELS = 20_000_000  # that are cached, about 100 bytes each; beyond, every reader keeps only its own
Batches = Iterator[pa.RecordBatch]


class _LabelIndex:
    """Labels received from `since` on, indexed by the hash of their prediction's id."""

    def __init__(self, store: str, since: datetime, rows: pa.Table) -> None:
        self.store, self.since = store, since
        hashes = hash_strings(rows["prediction_id"])
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._rows = hashes[order], rows.take(pa.array(order))

    def of(self, ids: pa.ChunkedArray) -> pa.Table:
        """Return all labels of these predictions, and by a hash collision rarely one of another."""
        wanted = np.unique(hash_strings(ids))
        first, last = (np.searchsorted(self._hashes, wanted, side=side) for side in ("left", "right"))
        counts = last - first
        begins = np.cumsum(counts) - counts
        places = np.arange(counts.sum()) + np.repeat(first - begins, counts)
        return self._rows.take(pa.array(places))


class _ScanCache:
    """Cache of one block: the labels, and the rows read last."""

    def __init__(self) -> None:
        self.labels: _LabelIndex | None = None
        self.too_many_since: datetime | None = None
        self.rows: tuple[Any, pa.Table] | None = None


_open: ContextVar[_ScanCache | None] = ContextVar("toque_shared_scans", default=None)


@contextmanager
def shared_scans() -> Iterator[None]:
    """Share one read of the log among all readers within the block; an inner block joins the outer one."""
    if _open.get() is not None:
        yield
        return
    token = _open.set(_ScanCache())
    try:
        yield
    finally:
        _open.reset(token)


def shared_labels(
    store: str, ids: pa.ChunkedArray, since: datetime, read: Callable[[datetime], Batches]
) -> pa.Table | None:
    """Return all labels of predictions received from `since` on; None outside a block, or if they are too many.

    read: the labels received from a time on, in batches. Rarely a label of another prediction is among the result.
    """
    scans = _open.get()
    if scans is None or (scans.too_many_since is not None and since <= scans.too_many_since):
        return None
    if scans.labels is None or scans.labels.store != store or scans.labels.since > since:
        rows = _bounded(read(since))
        if rows is None:
            scans.too_many_since = since
            return None
        scans.labels = _LabelIndex(store, since, rows)
    return scans.labels.of(ids)


def shared_rows(key: object, read: Callable[[], pa.Table]) -> pa.Table:
    """Return what `read` returns, cached within a block for repeated reads of one key."""
    scans = _open.get()
    if scans is None:
        return read()
    if scans.rows is None or scans.rows[0] != key:
        scans.rows = (key, read())
    return scans.rows[1]


def _bounded(batches: Batches) -> pa.Table | None:
    """Collect all batches into a table; None if they are too many to keep."""
    kept, count = [], 0
    for batch in batches:
        kept.append(batch)
        count += batch.num_rows
        if count > MAX_LABELS:
            return None
    return pa.Table.from_batches(kept, CONTENT_LABELS)
