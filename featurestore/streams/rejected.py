"""Messages of a stream that were kept aside, each with its reason: they stand among the events, so one commit carries both.

Up to version 0.1 they had a table of their own, in a commit before that of the events. It is still read.
"""

from __future__ import annotations

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from toque.featurestore.definitions.stream_source import ASIDE_REASON, ASIDE_ROW, PARTITION, POSITION
from toque.featurestore.sources.rows import REASON, ROW
from toque.featurestore.streams.decode import rejected_schema
from toque.registry.store import Table

STORED_NAMES = {REASON: ASIDE_REASON, ROW: ASIDE_ROW}
"""Names in the table of events, where a source may have columns `reason` and `row` of its own."""
_WHERE = [PARTITION, POSITION]


def kept_aside() -> pc.Expression:
    """Make the condition of the rows of a stream's table that were kept aside, if it has the column.

    Not `is_valid`: delta-rs says of some files without the column that all of its values are. Made where it is used, as the first
    scalar of a process imports pandas.
    """
    return pc.coalesce(pc.field(ASIDE_REASON), pc.scalar("")) != ""


def stored_rows(rejected: pa.Table) -> pa.Table:
    """Give messages that were kept aside the names under which they stand among the events."""
    return rejected.rename_columns([STORED_NAMES.get(name, name) for name in rejected.column_names])


class RejectedMessages:
    """Messages of one stream that were kept aside. table: of its events; before: of messages alone, as version 0.1 had it."""

    def __init__(self, table: Table, before: Table) -> None:
        self._table, self.before = table, before

    def exists(self) -> bool:
        """Whether any were kept aside."""
        return bool(self.read().num_rows)

    def read(self) -> pa.Table:
        """Read all, in order of partition and position; columns are those of `rejected_schema`."""
        found = [self._among_events(), self._apart()]
        return pa.concat_tables(found).sort_by([(name, "ascending") for name in _WHERE])

    def _among_events(self) -> pa.Table:
        schema = rejected_schema()
        if not self._table.exists() or ASIDE_REASON not in self._table.schema().names:
            return schema.empty_table()
        names = [STORED_NAMES.get(name, name) for name in schema.names]
        rows = self._table.read(columns=names, where=kept_aside())
        return rows.rename_columns(schema.names).cast(schema)

    def _apart(self) -> pa.Table:
        """Read the messages of the table before, without those that were stored again since."""
        schema = rejected_schema()
        if not self.before.exists():
            return schema.empty_table()
        before = self.before.read(columns=schema.names).cast(schema)
        if not self._table.exists() or not before.num_rows:
            return before
        stored = pl.DataFrame(self._table.read(columns=_WHERE))
        return pl.DataFrame(before).join(stored, on=_WHERE, how="anti").to_arrow().cast(schema)
