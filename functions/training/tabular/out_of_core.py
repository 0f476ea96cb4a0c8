"""Preparation of a training set that does not fit memory: read in batches, encoded once, kept in a file.

In memory stay the time and label of each row, and a sample from which medians, bins and vocabularies are learnt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from toque.functions.model_formats.matrices import category_matrix, numeric_matrix
from toque.functions.training.errors import TrainingDataError
from toque.functions.training.loop.rows.mmap_rows import Arrays, MmapRows
from toque.functions.training.params import TabularParams
from toque.functions.training.splits import TIME_COLUMN
from toque.functions.training.tabular.columns import Columns
from toque.functions.training.tabular.dataset import TabularData, labels_of, split_rows
from toque.functions.training.tabular.fitting import Prepared
from toque.functions.training.tabular.preprocessing import EncodedRows, Preprocessing, fit_preprocessing
from toque.functions.training.tabular.target import target_of
from toque.functions.training.tabular.task import LabelledRows
from toque.functions.training.tabular.warm_start import WarmStart
from toque.registry import Table, TableSnapshot

SAMPLE_ROWS = 1_000_000  # enough for every quantile, and for a category of one row in 100,000
_EXAMPLE_ROWS = 64


@dataclass(frozen=True, slots=True)
class DiskRows:
    """Some rows of a memory-mapped file, numbered from 0: `chosen` (rows,) are their numbers in the file."""

    file: MmapRows
    chosen: Tensor

    def __len__(self) -> int:
        return len(self.chosen)

    def take(self, rows: Tensor) -> EncodedRows:
        """Read the given rows, in the given order."""
        found = self.file.take(self.chosen[rows])
        return EncodedRows(found["numeric"], found["missing"].float(), found["category"].long())

    def prefetch(self, rows: Tensor) -> None:
        """Ask the system to read the given rows ahead."""
        self.file.prefetch(self.chosen[rows])


def prepare_on_disk(
    table: Table,
    snapshot: TableSnapshot,
    columns: Columns,
    params: TabularParams,
    warm_start: WarmStart | None = None,
    *,
    sample_rows: int = SAMPLE_ROWS,
) -> Prepared:
    """Prepare a training set in little memory; up to `sample_rows` training rows exactly as `fitting.prepare` does.

    Raises: TrainingDataError if the table cannot be learnt from; OSError if the disk is full.
    """
    if not columns.numeric and not columns.categorical:
        raise TrainingDataError("no feature columns were named: name some as numeric or categorical")
    raw = _RawRows(table, snapshot, columns)
    known = raw.times_and_labels()
    classes, label = labels_of(known, columns.label, params.task)
    rows_train, rows_valid = split_rows(
        known, valid_fraction=params.valid_fraction, by=params.split, seed=params.seed
    )
    train, valid = (_labels_only(label[rows], classes) for rows in (rows_train, rows_valid))
    target = target_of(params.task, train, valid)
    if warm_start is not None:
        target, preprocessing = warm_start.target_for(target), warm_start.preprocessing()
    else:
        every = -(-len(rows_train) // sample_rows)
        preprocessing = fit_preprocessing(
            raw.some(rows_train[::every]),
            bins=params.bins,
            min_category_rows=params.min_category_rows,
            max_categories=params.max_categories,
        )
    file = MmapRows.of(_name(raw, preprocessing), lambda: raw.encoded(preprocessing))
    return Prepared(
        preprocessing,
        target,
        LabelledRows(DiskRows(file, rows_train), target.code(train.label)),
        LabelledRows(DiskRows(file, rows_valid), target.code(valid.label)),
        valid.label,
        raw.some(torch.arange(min(_EXAMPLE_ROWS, len(label)))),
        warm_start,
    )


@dataclass(frozen=True, slots=True)
class _RawRows:
    """Rows of a snapshot as they are stored, read in batches."""

    table: Table
    snapshot: TableSnapshot
    columns: Columns

    def times_and_labels(self) -> pa.Table:
        """Read time and label of all rows."""
        wanted = [self.columns.label, TIME_COLUMN]
        parts = list(self.table.batches(version=self.snapshot.version, columns=wanted))
        if not parts:
            raise TrainingDataError("the table has no rows: there is nothing to learn from")
        return pa.concat_tables(parts)

    def some(self, rows: Tensor) -> TabularData:
        """Read the rows with the ascending numbers `rows`, without labels; stops after the last of them."""
        wanted, found, begin = rows.numpy(), [], 0
        for part in self._parts():
            low, high = np.searchsorted(wanted, [begin, begin + len(part)])
            found.append(part.take(torch.from_numpy(wanted[low:high] - begin)))
            begin += len(part)
            if high == len(wanted):
                break
        return TabularData(
            torch.cat([part.numeric for part in found]),
            torch.cat([part.categorical for part in found]),
            torch.cat([part.label for part in found]),
        )

    def encoded(self, preprocessing: Preprocessing) -> Iterator[Arrays]:
        """Encode all rows, batch by batch, in narrow types."""
        for part in self._parts():
            rows = preprocessing.encode(part)
            yield {
                "numeric": rows.numeric.numpy(),
                "missing": rows.missing.to(torch.uint8).numpy(),
                "category": rows.category.to(torch.int32).numpy(),
            }

    def _parts(self) -> Iterator[TabularData]:
        numeric, categorical = self.columns.numeric, self.columns.categorical
        for rows in self.table.batches(version=self.snapshot.version, columns=[*numeric, *categorical]):
            yield TabularData(
                torch.from_numpy(numeric_matrix(rows, numeric)),
                torch.from_numpy(category_matrix(rows, categorical)),
                torch.zeros(rows.num_rows),
            )


def _labels_only(label: Tensor, classes: tuple[str, ...]) -> TabularData:
    nothing = torch.empty(len(label), 0)
    return TabularData(nothing, nothing.long(), label, classes)


def _name(raw: _RawRows, preprocessing: Preprocessing) -> str:
    """Text of everything that the encoded rows depend on."""
    learnt = [value.numpy().tobytes().hex() for value in preprocessing.state_dict().values()]
    columns = [*raw.columns.numeric, "|", *raw.columns.categorical]
    return "\n".join([raw.table.store.url, str(raw.snapshot), *columns, *learnt])
