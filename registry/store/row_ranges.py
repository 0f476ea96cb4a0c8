"""Rows of one version of a table by their numbers, read range by range, so that nobody holds the whole.

A row's number is its place in the order of `Table.read`. Workers on many nodes each read ranges of their own: of a range only
the Parquet row groups that overlap it are fetched, and memory holds a slice and a row group, whatever the table's size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from registry.store.tables import Table, dataset_of

if TYPE_CHECKING:
    import pyarrow.dataset as ds

_FEWEST_BATCH_ROWS, _BATCH_ROWS = 4_096, 65_536
"""Rows that are decoded at a time: a file is passed through in such pieces, however small the slices are that are asked for."""


class PinnedRows:
    """Numbered rows of a table's version; opening it reads the log and no rows.

    schema, count, size_bytes: of the rows, and of their files.
    Raises: NotFound if there is no such table or version.
    """

    def __init__(self, table: Table, version: int) -> None:
        delta = table.open(version)
        self._dataset = dataset_of(delta, table)
        self.schema: pa.Schema = self._dataset.schema
        actions = pa.table(delta.get_add_actions(flatten=True))
        counts = dict(
            zip(actions.column("path").to_pylist(), actions.column("num_records").to_pylist(), strict=True)
        )
        self.size_bytes: int = sum(actions.column("size_bytes").to_pylist())
        self._files: list[tuple[ds.Fragment, range]] = []
        first = 0
        for fragment in self._dataset.get_fragments():
            count = counts.get(fragment.path)
            count = fragment.count_rows() if count is None else count  # a writer that kept no statistics
            self._files.append((fragment, range(first, first + count)))
            first += count
        self.count = first

    def slices(
        self, start: int, stop: int, *, rows: int, columns: Sequence[str] | None = None
    ) -> Iterator[pa.Table]:
        """Iterate over the rows numbered `start` to `stop` (exclusive) in tables of `rows`, the last perhaps shorter."""
        waiting: list[pa.Table] = []
        have = 0
        for batch in self._batches(start, stop, columns, min(max(rows, _FEWEST_BATCH_ROWS), _BATCH_ROWS)):
            waiting.append(batch)
            have += batch.num_rows
            while have >= rows:
                whole = pa.concat_tables(waiting)
                yield whole.slice(0, rows)
                have -= rows
                waiting = [whole.slice(rows)] if have else []
        if have:
            yield pa.concat_tables(waiting)

    def _batches(self, start: int, stop: int, columns: Sequence[str] | None, rows: int) -> Iterator[pa.Table]:
        names = None if columns is None else list(columns)
        for fragment, numbers in self._files:
            if numbers.stop <= start or numbers.start >= stop:
                continue
            wanted = range(max(start, numbers.start) - numbers.start, min(stop, numbers.stop) - numbers.start)
            part, at = _overlapping(fragment, wanted, count=len(numbers))
            for batch in self._of(part).to_batches(
                columns=names, batch_size=rows, batch_readahead=1, fragment_readahead=1
            ):
                skipped = max(wanted.start - at, 0)
                kept = batch.slice(skipped, max(min(wanted.stop - at, batch.num_rows) - skipped, 0))
                if kept.num_rows:
                    yield pa.Table.from_batches([kept])
                at += batch.num_rows

    def _of(self, fragment: ds.Fragment) -> ds.FileSystemDataset:
        dataset = self._dataset
        return type(dataset)([fragment], self.schema, dataset.format, dataset.filesystem)


def _overlapping(fragment: ds.Fragment, wanted: range, *, count: int) -> tuple[ds.Fragment, int]:
    """Cut a file down to the row groups that hold some of its rows; also returns the number of the first row left."""
    if len(wanted) == count:
        return fragment, 0
    groups: list[int] = []
    first = begin = 0
    for group in fragment.row_groups:
        if first < wanted.stop and first + group.num_rows > wanted.start:
            begin = begin if groups else first
            groups.append(group.id)
        first += group.num_rows
    return fragment.subset(row_group_ids=groups), begin
