"""A training set that does not fit memory, prepared: read from the store in batches, encoded once, kept in a file.

In memory stay, of each row, its time and its label; and a sample, from which medians, bins and vocabularies are learnt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from functions.model_formats.matrices import category_matrix, numeric_matrix
from functions.training.errors import TrainingDataError
from functions.training.loop.mmap_rows import Arrays, Spool
from functions.training.params import TabularParams
from functions.training.tabular.dataset import TIME_COLUMN, TabularData, labels_of, split_rows
from functions.training.tabular.fitting import Columns, Prepared
from functions.training.tabular.preprocessing import Encoded, Preprocessing, fit_preprocessing
from functions.training.tabular.target import target_of
from functions.training.tabular.task import Examples
from functions.training.tabular.warm_start import Start
from registry import Table, TableSnapshot

SAMPLE_ROWS = 1_000_000  # enough for every quantile, and for a category of one row in 100,000
_FIRST = 64


@dataclass(frozen=True, slots=True)
class DiskRows:
    """Some rows of a spool, numbered from 0: `chosen` (rows,) are their numbers in it."""

    spool: Spool
    chosen: Tensor

    def __len__(self) -> int:
        return len(self.chosen)

    def take(self, rows: Tensor) -> Encoded:
        """The given rows, in the given order."""
        found = self.spool.take(self.chosen[rows])
        return Encoded(found["numeric"], found["missing"].float(), found["category"].long())

    def soon(self, rows: Tensor) -> None:
        """The given rows will be taken soon."""
        self.spool.soon(self.chosen[rows])


def prepare_on_disk(
    table: Table,
    snapshot: TableSnapshot,
    columns: Columns,
    params: TabularParams,
    start: Start | None = None,
    *,
    sample_rows: int = SAMPLE_ROWS,
) -> Prepared:
    """As `fitting.prepare`, and the same of a training part of at most `sample_rows` rows, in little memory.

    Raises: TrainingDataError if the table cannot be learnt from; OSError if the disk is full.
    """
    if not columns.numeric and not columns.categorical:
        raise TrainingDataError("no feature columns were named: name some as numeric or categorical")
    raw = _Raw(table, snapshot, columns)
    known = raw.told()
    classes, label = labels_of(known, columns.label, params.task)
    rows_train, rows_valid = split_rows(
        known, valid_fraction=params.valid_fraction, by=params.split, seed=params.seed
    )
    train, valid = (_labels_only(label[rows], classes) for rows in (rows_train, rows_valid))
    target = target_of(params.task, train, valid)
    if start is not None:
        target, preprocessing = start.kept(target), start.preprocessing()
    else:
        every = -(-len(rows_train) // sample_rows)
        preprocessing = fit_preprocessing(
            raw.some(rows_train[::every]),
            bins=params.bins,
            min_category_rows=params.min_category_rows,
            max_categories=params.max_categories,
        )
    spool = Spool.of(_name(raw, preprocessing), lambda: raw.encoded(preprocessing))
    return Prepared(
        preprocessing,
        target,
        Examples(DiskRows(spool, rows_train), target.code(train.label)),
        Examples(DiskRows(spool, rows_valid), target.code(valid.label)),
        valid.label,
        raw.some(torch.arange(min(_FIRST, len(label)))),
        start,
    )


@dataclass(frozen=True, slots=True)
class _Raw:
    """The rows of a snapshot, as they are stored."""

    table: Table
    snapshot: TableSnapshot
    columns: Columns

    def told(self) -> pa.Table:
        """Time and label of all rows."""
        wanted = [self.columns.label, TIME_COLUMN]
        parts = list(self.table.batches(version=self.snapshot.version, columns=wanted))
        if not parts:
            raise TrainingDataError("the table has no rows: there is nothing to learn from")
        return pa.concat_tables(parts)

    def some(self, rows: Tensor) -> TabularData:
        """The rows with the ascending numbers `rows`, without labels; reads on until it has them."""
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
        """All rows as the network takes them, in few bytes."""
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


def _name(raw: _Raw, preprocessing: Preprocessing) -> str:
    """What the encoded rows depend on."""
    learnt = [value.numpy().tobytes().hex() for value in preprocessing.state_dict().values()]
    columns = [*raw.columns.numeric, "|", *raw.columns.categorical]
    return "\n".join([raw.table.store.url, str(raw.snapshot), *columns, *learnt])
