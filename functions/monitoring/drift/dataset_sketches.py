"""Sketches of tables larger than memory, made where their rows lie.

Sketches of parts add up to the sketch of the whole, so nobody holds more than some batches of rows: where Ray runs, Ray Data
goes through the files of a table or the blocks of a dataset, a task each; elsewhere this process goes through its batches.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from toque.functions.stats.sketch import TableSketch
from toque.registry import Table

if TYPE_CHECKING:
    import ray.data

Prepare = Callable[[pa.Table], pa.Table]
"""Turns rows as they lie in a table into the columns that are sketched."""

LARGE_ROWS = 2_000_000
"""Rows from which a window is sketched in parts; fewer are read at once, which is quicker."""

_BATCH_ROWS = 131_072
_MAX_PARTS = 64  # partial sketches that are added up together


@dataclass(frozen=True, slots=True)
class DatasetRows:
    """Selected rows of a version of a table.

    columns: that are read; where: an expression of `pyarrow.compute`, None for all.
    """

    table: Table
    version: int
    columns: tuple[str, ...]
    where: Any = None

    def count(self) -> int:
        """Count the rows, reading only what the filter needs."""
        return int(self._dataset().count_rows(filter=self.where))

    def files(self) -> int:
        """Count the files that hold the rows."""
        return len(self._fragments())

    def batches(self, file: int | None = None) -> Iterator[pa.Table]:
        """Iterate over the rows in batches: all in the table's order, or those of one file."""
        found = self._dataset() if file is None else self._fragments()[file]
        for batch in found.to_batches(
            columns=list(self.columns), filter=self.where, batch_size=_BATCH_ROWS, **_SMALL_READAHEAD
        ):
            if batch.num_rows:
                yield pa.Table.from_batches([batch])

    def sample(self, most: int) -> pa.Table:
        """Take at most `most` of the rows, always the same ones, in their order, with one more batch in memory."""
        rows = self.count()
        chosen = np.sort(np.random.default_rng(0).choice(rows, most, replace=False)) if rows > most else None
        kept, begin = [self._empty()], 0
        for part in self.batches():
            if chosen is None:
                kept.append(part)
                continue
            first, last = np.searchsorted(chosen, [begin, begin + part.num_rows])
            kept.append(part.take(pa.array(chosen[first:last] - begin)))
            begin += part.num_rows
        return pa.concat_tables(kept)

    def _empty(self) -> pa.Table:
        schema = self._dataset().schema
        return pa.schema([schema.field(name) for name in self.columns]).empty_table()

    def _dataset(self) -> ds.Dataset:
        return self.table.dataset(self.version)

    def _fragments(self) -> list[Any]:
        return list(self._dataset().get_fragments(filter=self.where))


# By default pyarrow would hold 16 batches of 4 files.
_SMALL_READAHEAD: dict[str, Any] = {"batch_readahead": 2, "fragment_readahead": 1}


def sketch_rows(rows: DatasetRows, like: TableSketch, *, prepare: Prepare | None = None) -> TableSketch:
    """Count rows of a table in the bins of `like`: over Ray Data, a file a task, where Ray runs; else here, batch by batch.

    prepare: makes the sketched columns of the rows as they lie there; picklable.
    """
    files = rows.files() if _ray_runs() else 0
    if files <= 1:
        parts = (_sketch(part, like, prepare) for part in rows.batches())
        return _total(parts, like)
    import ray.data  # late: a monitor of a small table needs no Ray

    numbers = ray.data.from_items(list(range(files)), override_num_blocks=files)

    def sketch_files(batch: dict[str, Any]) -> dict[str, list[bytes]]:
        parts = (
            _sketch(part, like, prepare) for file in batch["item"].tolist() for part in rows.batches(file)
        )
        return {_PART: [pickle.dumps(_total(parts, like))]}

    return _gathered(numbers.map_batches(sketch_files, batch_format="numpy", batch_size=None), like)


def sketch_dataset(rows: ray.data.Dataset, like: TableSketch) -> TableSketch:
    """Count the rows of a Ray dataset in the bins of `like`, each block in the task that made it where that can be."""

    def sketch_block(block: pa.Table) -> pa.Table:
        return pa.table({_PART: [pickle.dumps(like.window(block))]})

    return _gathered(rows.map_batches(sketch_block, batch_format="pyarrow", batch_size=None), like)


def reference_of_dataset(
    rows: ray.data.Dataset,
    *,
    numeric: Sequence[str] | None = None,
    categorical: Sequence[str] | None = None,
    bins: int = 20,
    sample_rows: int = 200_000,
) -> TableSketch:
    """Make a reference sketch of a Ray dataset: bins and categories come from a sample, and all rows are counted in them.

    The dataset is gone through three times if it does not know its own length, else twice.
    Raises: ValueError if it has no row.
    """
    count = rows.count()
    if not count:
        raise ValueError("the dataset has no row; a reference needs some")
    chosen = rows if count <= sample_rows else rows.random_sample(sample_rows / count, seed=0)
    sample = pa.concat_tables(
        list(chosen.iter_batches(batch_format="pyarrow", batch_size=None)), promote_options="default"
    )
    like = TableSketch.reference(sample, numeric=numeric, categorical=categorical, bins=bins)
    return sketch_dataset(rows, like)


_PART = "sketch"


def _sketch(part: pa.Table, like: TableSketch, prepare: Prepare | None) -> TableSketch:
    return like.window(part if prepare is None else prepare(part))


def _gathered(parts: ray.data.Dataset, like: TableSketch) -> TableSketch:
    """Add up the partial sketches that a dataset holds."""
    found = (pickle.loads(row[_PART]) for row in parts.iter_rows())  # noqa: S301 - our own tasks' bytes
    return _total(found, like)


def _total(parts: Iterator[TableSketch], like: TableSketch) -> TableSketch:
    """Add up any number of sketches in little memory; without any, the sketch has no row."""
    nothing = like.window(pa.table({}))
    kept = [nothing]
    for part in parts:
        kept.append(part)
        if len(kept) > _MAX_PARTS:
            kept = [TableSketch.total(kept)]
    return TableSketch.total(kept)


def _ray_runs() -> bool:
    import ray  # late: a monitor of a small table needs no Ray

    return bool(ray.is_initialized())
