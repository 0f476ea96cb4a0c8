"""Rows of an entity table that a training set is made of: within its times, and with a label that was known by then."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from toque.featurestore import InvalidRows
from toque.registry import Table, TableSnapshot
from toque.registry.store import PinnedRows

EVENT_TIMESTAMP = "event_timestamp"
LABEL_KNOWN_AT = "label_known_at"
_UTC = pa.timestamp("us", "UTC")


@dataclass(frozen=True, slots=True)
class EntityRows:
    """Choice of rows of a snapshot: `start <= event_timestamp < end`, and a label that was known by `known_by`.

    digest: of the snapshot's files as the build's plan has them, or None if the rows are read once.
    """

    table: Table
    snapshot: TableSnapshot
    label: str
    start: datetime
    end: datetime
    known_by: datetime
    digest: str | None = None

    @property
    def first(self) -> datetime:
        """First time that a row may have."""
        return self.start

    @property
    def last(self) -> datetime:
        """Last time that a row may have."""
        return self.end - timedelta(microseconds=1)

    def pinned(self) -> PinnedRows:
        """Open all rows of the snapshot, by their numbers. Raises: NotFound; InvalidRows if an erasure has changed the numbers since `digest`."""
        rows = self.table.pinned(self.snapshot.version)
        if self.digest is not None and rows.digest() != self.digest:
            raise InvalidRows(
                f"entities={self.snapshot} lost rows by an erasure while its training set was made, so its rows have other "
                "numbers: make the call again, it begins with the first row"
            )
        return rows

    def read(self) -> pa.Table:
        """Read the chosen rows, all at once. Raises: NotFound; InvalidRows as `choose`."""
        return self.choose(self.table.read(version=self.snapshot.version, where=self._within()))

    def choose(self, rows: pa.Table) -> pa.Table:
        """Select the chosen ones of some rows. Raises: InvalidRows if the label's column is missing."""
        if self.label not in rows.column_names:
            msg = f"entity table: label column {self.label!r} is missing; got {rows.column_names}"
            raise InvalidRows(msg)
        chosen = self._within() & pc.is_valid(pc.field(self.label))
        if LABEL_KNOWN_AT in rows.column_names:
            chosen &= pc.field(LABEL_KNOWN_AT) <= pa.scalar(self.known_by, _UTC)  # null: not known yet
        return rows.filter(chosen)

    def none_left(self) -> str:
        """Say that no row was chosen."""
        return (
            f"{self.snapshot} has no rows with {self.label!r} known by {self.known_by} and "
            f"{self.start} <= {EVENT_TIMESTAMP} < {self.end}"
        )

    def _within(self) -> pc.Expression:
        time = pc.field(EVENT_TIMESTAMP)
        return (time >= pa.scalar(self.first, _UTC)) & (time <= pa.scalar(self.last, _UTC))
