"""Rows of one version of a table by their numbers, read range by range, so that nobody holds the whole.

A row's number is its place in the order of `Table.read`. Workers on many nodes each read ranges of their own: of a range only
the Parquet row groups that overlap it are fetched, and memory holds a slice and two row groups, whatever the table's size. Arrow's own
batches run ahead of a slow reader by as many row groups as it pleases.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    import pyarrow.dataset as ds
    from deltalake import DeltaTable

BATCH_ROWS = 16_384


class PinnedRows:
    """Numbered rows of a table's version, see `Table.pinned`; opening it reads the log and no rows.

    schema, count, size_bytes: of the rows, and of their files.
    """

    def __init__(self, opened: DeltaTable, dataset: ds.FileSystemDataset) -> None:
        self._dataset = dataset
        self.schema: pa.Schema = dataset.schema
        actions = pa.table(opened.get_add_actions(flatten=True))
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

    def digest(self) -> str:
        """Digest of which files have which numbers: another one once an erasure has rewritten the version."""
        files = [f"{file.path}:{numbers.start}:{numbers.stop}" for file, numbers in self._files]
        return sha256("\n".join(files).encode()).hexdigest()

    def slices(
        self, start: int, stop: int, *, rows: int, columns: Sequence[str] | None = None
    ) -> Iterator[pa.Table]:
        """Iterate over the rows numbered `start` to `stop` (exclusive) in tables of `rows`, the last perhaps shorter."""
        waiting: list[pa.Table] = []
        have = 0
        for part in self._parts(start, stop, columns):
            waiting.append(part)
            have += part.num_rows
            while have >= rows:
                whole = pa.concat_tables(waiting)
                yield whole.slice(0, rows)
                have -= rows
                waiting = [whole.slice(rows)] if have else []
        if have:
            yield pa.concat_tables(waiting)

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Iterate over all rows in tables of `BATCH_ROWS` at most; each is of one row group, so that nothing is copied."""
        for part in self._parts(0, self.count, columns):
            for at in range(0, part.num_rows, BATCH_ROWS):
                yield part.slice(at, BATCH_ROWS)

    def _parts(self, start: int, stop: int, columns: Sequence[str] | None) -> Iterator[pa.Table]:
        """Read the rows a row group at a time, each while the caller has the one before."""
        names = None if columns is None else list(columns)
        with ThreadPoolExecutor(1, thread_name_prefix="toque-rows") as reader:
            ahead: deque[tuple[int, Future[pa.Table]]] = deque()
            for group, at in self._groups(start, stop):
                ahead.append((at, reader.submit(self._read, group, names)))
                if len(ahead) > 1:
                    yield _cut(*ahead.popleft(), start, stop)
            while ahead:
                yield _cut(*ahead.popleft(), start, stop)

    def _groups(self, start: int, stop: int) -> Iterator[tuple[ds.Fragment, int]]:
        """Find the row groups that hold some of these rows, and the number of each one's first row."""
        for file, numbers in self._files:
            if numbers.stop <= start or numbers.start >= stop:
                continue
            at = numbers.start
            # Of a copy: what is read of a file's footer stays with it, and a table may have many files.
            copy = file.format.make_fragment(file.path, file.filesystem, file.partition_expression)
            for group in copy.split_by_row_group():
                count = group.row_groups[0].num_rows
                if at < stop and at + count > start:
                    yield group, at
                at += count

    def _read(self, group: ds.Fragment, names: list[str] | None) -> pa.Table:
        dataset = self._dataset
        alone = type(dataset)([group], self.schema, dataset.format, dataset.filesystem)
        return alone.to_table(columns=names)


def _cut(at: int, read: Future[pa.Table], start: int, stop: int) -> pa.Table:
    """Cut a row group, whose first row has the number `at`, down to the rows from `start` to `stop`."""
    rows = read.result()
    first = max(start - at, 0)
    return rows.slice(first, max(stop - at, 0) - first)
