"""Rows that a commit at a source removed, so that those which it only wrote anew are told from new ones.

A table elsewhere is changed file by file: a DELETE, UPDATE or MERGE writes the rows that stay into new files, beside the changed ones.
"""

from __future__ import annotations

from collections import Counter

import polars as pl
import pyarrow as pa


class RemovedRows:
    """Multiset of the rows that a commit removed, by a hash of 64 bits each."""

    def __init__(self) -> None:
        self._counts = Counter[int]()

    @property
    def count(self) -> int:
        """Number of rows that were not written anew, as far as those were taken out."""
        return self._counts.total()

    def add(self, rows: pa.Table) -> None:
        """Add rows that the commit removed."""
        self._counts.update(_hashes(rows))

    def without(self, rows: pa.Table) -> pa.Table:
        """Take out of added rows those that were removed as they are, each as often as it was."""
        if not self.count:
            return rows
        new = []
        for value in _hashes(rows):
            again = self._counts[value] > 0
            self._counts[value] -= again
            new.append(not again)
        return rows.filter(pa.array(new, pa.bool_()))


def _hashes(rows: pa.Table) -> list[int]:
    frame = pl.DataFrame(rows)
    nested = [name for name, dtype in frame.schema.items() if dtype.is_nested()]
    texts = [
        pl.Series(name, [repr(value) for value in frame[name].to_list()], dtype=pl.String) for name in nested
    ]
    return frame.with_columns(texts).hash_rows().to_list()
