"""Preparation of a training set of any size: read in batches, encoded once into sharded sets of samples in the store.

No process holds a row longer than a batch: what is held out, the target and the preprocessing follow from a few passes over the
table, and the training reads the shards through its machine's cache in the order of their shuffle. The sets are named by all that
they depend on, so a training that was interrupted finds them, and so does the next one with other weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from toque.functions.model_formats.matrices import (
    binary_labels,
    class_labels,
    named_column,
    number_labels,
)
from toque.functions.training.errors import TrainingDataError
from toque.functions.training.loop.task import Batch, Order, SampleReader
from toque.functions.training.splits import HeldOut, streamed_split
from toque.functions.training.tabular.fitting import Prepared, WarmStart, target_and_preprocessing
from toque.functions.training.tabular.preprocessing import (
    EncodedRows,
    Preprocessing,
    StoredRows,
    TabularData,
)
from toque.functions.training.tabular.settings import Columns, TabularSettings, Task
from toque.functions.training.tabular.target import Regression, Target, target_of
from toque.functions.training_data import OpenSet, SetRef, ShardCache, Shuffle, versions, write_samples
from toque.functions.training_data.formats import Values
from toque.registry import ObjectStore, Table, TableSnapshot

_FEW_VALUES = 1_001  # of which more are no classes
SAMPLE_ROWS = 200_000  # from which medians, bins and vocabularies are learnt
VALID_ROWS = 250_000  # of those held out, at most, by which training stops, is calibrated and measured
_EXAMPLE_ROWS = 64
_SHARD_BYTES = 16 << 20
_LAYOUT = "1"  # of the samples; another number makes other sets


@dataclass(frozen=True, slots=True)
class ShardedSets:
    """Encoded rows of a training set in two sample sets of `store`, with what was learnt from them before the first epoch."""

    store: ObjectStore
    train: SetRef
    valid: SetRef
    preprocessing: Preprocessing
    target: Target
    sample: TabularData

    def opened(self, *, seed: int, warm_start: WarmStart | None, cache: ShardCache) -> Prepared:
        """Open the sets for training. seed: of the order."""
        train = OpenSet.of(self.store, self.train, shuffle=Shuffle(seed))
        valid = OpenSet.of(self.store, self.valid, shuffle=None)
        held_out = ShardedExamples(valid, self.target, cache)
        return Prepared(
            self.preprocessing,
            self.target,
            ShardedExamples(train, self.target, cache),
            held_out,
            held_out.raw_label,
            self.sample,
            warm_start,
        )


class ShardedExamples:
    """Encoded rows with their labels, read from a set of samples; its labels are read whole, so only those of a small set."""

    def __init__(self, opened: OpenSet, target: Target, cache: ShardCache) -> None:
        self._target = target
        self._reader = SampleReader(opened, self._tensors, cache=cache)

    def __len__(self) -> int:
        return len(self._reader)

    @property
    def rows(self) -> ShardedExamples:
        """Encoded rows without their labels."""
        return self

    @property
    def raw_label(self) -> Tensor:
        """Labels (rows,) of all rows, as in the table."""
        every = (torch.arange(at, min(at + VALID_ROWS, len(self))) for at in range(0, len(self), VALID_ROWS))
        return torch.cat([self._reader.batch(rows)[3] for rows in every])

    @property
    def label(self) -> Tensor:
        """Labels (rows,) of all rows, coded by the target."""
        return self._target.code(self.raw_label)

    def take(self, rows: Tensor) -> EncodedRows:
        """Read the given rows, in the given order."""
        return self.batch(rows)[0]

    def batch(self, rows: Tensor) -> tuple[EncodedRows, Tensor]:
        """Read the given rows and their labels, coded by the target."""
        numeric, missing, category, label = self._reader.batch(rows)
        return EncodedRows(numeric, missing, category), self._target.code(label)

    def prefetch(self, rows: Tensor) -> None:
        """Begin to read the given rows, which will be asked for soon."""
        self._reader.prefetch(rows)

    def order(self, seed: int, epoch: int) -> Order:
        """Order in which the rows are learnt from in an epoch: the set's shuffle."""
        return self._reader.order(seed, epoch)

    @staticmethod
    def _tensors(columns: dict[str, Values]) -> Batch:
        numeric, missing, category, label = (
            torch.from_numpy(np.ascontiguousarray(columns[name]))
            for name in ("numeric", "missing", "category", "label")
        )
        return numeric, missing.float(), category.long(), label


def prepare_in_shards(
    table: Table,
    snapshot: TableSnapshot,
    columns: Columns,
    params: TabularSettings,
    warm_start: WarmStart | None = None,
) -> ShardedSets:
    """Write a training set's encoded rows as sample sets, unless they are there already.

    Raises: TrainingDataError if the table cannot be learnt from; OSError if the disk is full.
    """
    raw = StoredRows(table, snapshot, columns)
    held_out = streamed_split(
        raw.labels, valid_fraction=params.valid_fraction, by=params.split, seed=params.seed
    )
    labels = LabelSummary.of(raw.labels(), held_out, label=columns.label, task=params.task)
    every = -(-labels.rows_train // SAMPLE_ROWS)
    sample = _chosen(raw.batches(), held_out, valid=False, every=every)
    target, preprocessing = target_and_preprocessing(
        labels.target(), params, warm_start, lambda: TabularData.joined([*map(raw.features, sample)])
    )
    name = f"training/{_digest(raw, preprocessing, params)}"
    encoded = _Encoded(raw, held_out, preprocessing, labels)
    return ShardedSets(
        store=table.store,
        train=encoded.written(f"{name}/train", valid=False, every=1),
        valid=encoded.written(f"{name}/valid", valid=True, every=-(-labels.rows_valid // VALID_ROWS)),
        preprocessing=preprocessing,
        target=target,
        sample=raw.first(_EXAMPLE_ROWS),
    )


@dataclass(slots=True)
class _Part:
    """Labels of the rows to learn from, or of those held out. values: the distinct ones, of numbers the least and greatest."""

    rows: int = 0
    values: pa.Array | None = None
    total: float = 0.0
    squares: float = 0.0

    def add(self, column: pa.ChunkedArray, *, numbers: bool, origin: float) -> None:
        """Count more labels; numbers are summed up as differences from `origin`."""
        if not len(column):
            return
        self.rows += len(column)
        if numbers:
            found = column.cast(pa.float64()).to_numpy()
            self.total += float((found - origin).sum())
            self.squares += float(((found - origin) ** 2).sum())
            new = pa.array([found.min(), found.max()])
        else:
            new = pc.unique(column.combine_chunks())
        self.values = new if self.values is None else pc.unique(pa.concat_arrays([self.values, new]))
        if numbers:
            self.values = pa.array([pc.min(self.values).as_py(), pc.max(self.values).as_py()])


@dataclass(slots=True)
class LabelSummary:
    """Summary of the labels of the rows to learn from and of those held out. classes: names, if there are several."""

    label: str
    task: Task
    classes: tuple[str, ...] = ()
    _parts: dict[bool, _Part] = field(default_factory=lambda: {False: _Part(), True: _Part()})
    _origin: float = 0.0

    @classmethod
    def of(cls, rows: Iterator[pa.Table], held_out: HeldOut, *, label: str, task: Task) -> Self:
        """Sum up the labels of batches of rows.

        Raises: TrainingDataError for a label that does not fit the task, or if nothing is left to learn from or to hold out.
        """
        summary, first = cls(label, task), 0
        for part in rows:
            summary._add(part, held_out(part, first), first=first)
            first += part.num_rows
        if not first:
            raise TrainingDataError("the table has no rows: there is nothing to learn from")
        if not summary.rows_train or not summary.rows_valid:
            raise TrainingDataError(
                f"splitting {first} rows leaves {summary.rows_train} to train and {summary.rows_valid} to validate: give more "
                "rows, another fraction, or split by 'random'"
            )
        if task == "multiclass":
            summary.classes = class_labels(summary._distinct(), label)[0]
        return summary

    @property
    def rows_train(self) -> int:
        """Number of rows to learn from."""
        return self._parts[False].rows

    @property
    def rows_valid(self) -> int:
        """Number of rows held out."""
        return self._parts[True].rows

    def target(self) -> Target:
        """Make the target of the task. Raises: TrainingDataError if a part has too few classes or values."""
        train, valid = (
            TabularData(torch.empty(0), torch.empty(0), torch.tensor(self._coded(part.values)), self.classes)
            for part in self._parts.values()
        )
        target = target_of(self.task, train, valid)
        if not isinstance(target, Regression):
            return target
        part = self._parts[False]
        mean = part.total / part.rows
        return Regression(self._origin + mean, float(np.sqrt(max(part.squares / part.rows - mean**2, 0.0))))

    def values(self, rows: pa.Table) -> pa.Array:
        """Labels of some rows as numbers: 0 and 1; indices into `classes`; or numbers."""
        return pa.array(self._coded(named_column(rows, self.label).combine_chunks()))

    def _coded(self, column: pa.Array) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
        table = pa.table({self.label: column})
        if self.task == "binary":
            return binary_labels(table, self.label)
        if self.task == "regression":
            return number_labels(table, self.label)
        index = pc.index_in(table.column(0).cast(pa.string()).combine_chunks(), pa.array(self.classes))
        return np.asarray(index.to_numpy(zero_copy_only=False), dtype=np.int64)

    def _add(
        self, rows: pa.Table, mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], *, first: int
    ) -> None:
        column = named_column(rows, self.label)
        numbers = self.task == "regression"
        if self.task == "binary":
            binary_labels(rows, self.label)  # checked batch by batch, as all else that can be wrong with one
        elif numbers:
            found = number_labels(rows, self.label)
            self._origin = float(found[0]) if not first else self._origin
        elif column.null_count:
            raise TrainingDataError(
                f"label column {self.label!r} has {column.null_count} nulls: leave those rows out"
            )
        for valid, part in self._parts.items():
            part.add(column.filter(pa.array(mask == valid)), numbers=numbers, origin=self._origin)
            if part.values is not None and len(part.values) > _FEW_VALUES:
                class_labels(pa.table({self.label: part.values}), self.label)  # which says what is wrong

    def _distinct(self) -> pa.Table:
        found = [part.values for part in self._parts.values() if part.values is not None]
        return pa.table({self.label: pc.unique(pa.concat_arrays(found))})


def _chosen(parts: Iterator[pa.Table], held_out: HeldOut, *, valid: bool, every: int) -> Iterator[pa.Table]:
    """Select every `every`-th of the rows that are held out, or of the others."""
    first = count = 0
    for rows in parts:
        mask = held_out(rows, first) == valid
        first += rows.num_rows
        numbers = count + np.cumsum(mask) - 1
        count += int(mask.sum())
        yield rows.filter(pa.array(mask & (numbers % every == 0)))


@dataclass(frozen=True, slots=True)
class _Encoded:
    """Encoding of the rows of a snapshot."""

    raw: StoredRows
    held_out: HeldOut
    preprocessing: Preprocessing
    labels: LabelSummary

    def written(self, name: str, *, valid: bool, every: int) -> SetRef:
        """Find the set of that name, or write it."""
        store = self.raw.table.store
        found = versions(store, name)
        if found:
            return SetRef(name=name, version=found[-1])
        origin = {"table": str(self.raw.snapshot)}
        chosen = _chosen(self.raw.batches(), self.held_out, valid=valid, every=every)
        samples = (self._samples(rows) for rows in chosen)
        return write_samples(store, name, samples, shard_bytes=_SHARD_BYTES, origin=origin)

    def _samples(self, rows: pa.Table) -> pa.Table:
        encoded = self.preprocessing.encode(self.raw.features(rows))
        return pa.table(
            {
                **{name: _matrix(values) for name, values in encoded.narrow().items()},
                "label": self.labels.values(rows),
            }
        )


def _matrix(values: npt.NDArray[np.generic]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), values.shape[1])


def _digest(raw: StoredRows, preprocessing: Preprocessing, params: TabularSettings) -> str:
    """Digest of everything that the encoded rows depend on."""
    learnt = [value.numpy().tobytes().hex() for value in preprocessing.state_dict().values()]
    columns = [*raw.columns.numeric, "|", *raw.columns.categorical, "|", raw.columns.label]
    split = [params.split, str(params.valid_fraction), str(params.seed), params.task]
    texts = [_LAYOUT, str(raw.snapshot), *columns, *split, *learnt]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:32]
