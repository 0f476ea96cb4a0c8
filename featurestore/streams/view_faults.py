"""Faults of single views and keys: what cannot be computed of one is left out, and the others of the stream go on.

A view whose declaration or values cannot work would else end the consumer of all views of its source, again and again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import polars as pl
import pyarrow as pa

from toque.featurestore.definitions.views import FeatureView
from toque.featurestore.errors import FeatureStoreError, OnlineStoreUnavailable, StreamRewritten
from toque.featurestore.streams.held_events import Key

RETRY_S, LONGEST_RETRY_S = 60.0, 3600.0
MOST_TRIES = 256
"""Computations of a view that may fail in a row before it is left out: it takes some twenty to find one key of a million."""
COMPUTED_WRONG = (
    FeatureStoreError,
    pa.ArrowException,
    pl.exceptions.PolarsError,
    ArithmeticError,
    LookupError,
    TypeError,
    ValueError,
)
"""Errors of a computation over a view's events, as its columns and values cause them."""
_logger = logging.getLogger(__name__)


class ViewFaults:
    """Views over a source that cannot be computed now. Each is tried anew after a minute, and then ever less often."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._left_out: set[str] = set()
        self._pause_s: dict[str, float] = {}
        self._failures: dict[str, int] = {}  # in a row
        self._retry_at = float("inf")
        self._count = 0

    def left_out(self, view: FeatureView) -> bool:
        """Whether a view is left out until the next retry."""
        return view.name in self._left_out

    def begin(self) -> None:
        """Try all views anew, as the consumer begins from the table."""
        self._left_out, self._retry_at, self._failures = set(), float("inf"), {}

    def take_count(self) -> int:
        """Number of faults since it was taken last."""
        count, self._count = self._count, 0
        return count

    @property
    def retry_due(self) -> bool:
        """Whether a view that was left out is to be tried again."""
        return time.monotonic() >= self._retry_at

    @contextmanager
    def of(self, view: FeatureView) -> Iterator[None]:
        """Leave a view out if the block fails by it; errors of the stores and the log are raised."""
        try:
            yield
        except (OnlineStoreUnavailable, StreamRewritten):
            raise
        except COMPUTED_WRONG:
            pause_s = self._pause_s.get(view.name, RETRY_S)
            self._pause_s[view.name] = min(LONGEST_RETRY_S, 2 * pause_s)
            self._left_out.add(view.name)
            self._retry_at = min(self._retry_at, time.monotonic() + pause_s)
            self._count += 1
            _logger.exception(
                "stream source %r: feature view %r cannot be computed and is left out, the others go on; it is tried again in "
                "%.0f s, and at once when its definition changes",
                self._source,
                view.name,
                pause_s,
            )

    def rows_of(
        self, view: FeatureView, keys: set[Key], compute: Callable[[set[Key]], pa.Table]
    ) -> list[pa.Table]:
        """Compute rows of some keys, leaving out those by which the computation fails, unless nothing else is left.

        Raises: what the computation raises, once it has failed `MOST_TRIES` times in a row.
        """
        parts, tables = [list(keys)], list[pa.Table]()
        while parts:
            part = parts.pop()
            try:
                tables.append(compute(set(part)))
            except COMPUTED_WRONG as error:
                self._failures[view.name] = self._failures.get(view.name, 0) + 1
                if self._failures[view.name] >= MOST_TRIES:
                    raise
                middle = len(part) // 2
                if middle:
                    parts += [part[:middle], part[middle:]]
                else:
                    self._leave_out_key(view, part[0], error)
            else:
                self._failures[view.name] = 0
        return tables

    def _leave_out_key(self, view: FeatureView, key: Key, error: Exception) -> None:
        self._count += 1
        _logger.warning(
            "stream source %r: feature view %r: the row of key %s cannot be computed and stays as it was: %s: %s",
            self._source,
            view.name,
            key,
            type(error).__name__,
            error,
        )
