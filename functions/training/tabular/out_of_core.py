"""Preparation of a training set that does not fit memory: read in batches, encoded once, kept in a local file.

In memory stay the time and label of each row, and a sample from which medians, bins and vocabularies are learnt.
The store is read once, not once an epoch; the system's page cache keeps as much of the file as fits.
Any row can be read at any time, so every worker draws the same permutation as from memory and takes the same steps:
the weights, whatever the number of workers and interruptions, equal to the last bit those of a training from memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from toque.clusters import file_lock
from toque.functions.training.errors import TrainingDataError
from toque.functions.training.tabular.fitting import Prepared, WarmStart, target_and_preprocessing
from toque.functions.training.tabular.network import LabelledRows
from toque.functions.training.tabular.preprocessing import (
    EncodedRows,
    Preprocessing,
    StoredRows,
    TabularData,
    labels_of,
    split_rows,
)
from toque.functions.training.tabular.settings import Columns, TabularSettings
from toque.functions.training.tabular.target import target_of
from toque.registry import Table, TableSnapshot
from toque.registry.store import private_folder, temporary_folder

_FILE, _LOCK, _DONE = "rows", "lock", "done.json"  # in the folder of the rows
_MEMORY_PART = 0.5  # a file below this part of memory is kept by the page cache, and needs no read-ahead
Arrays = Mapping[str, npt.NDArray[Any]]
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
    params: TabularSettings,
    warm_start: WarmStart | None = None,
    *,
    sample_rows: int = SAMPLE_ROWS,
) -> Prepared:
    """Prepare a training set in little memory; up to `sample_rows` training rows exactly as `fitting.prepare` does.

    Raises: TrainingDataError if the table cannot be learnt from; OSError if the disk is full.
    """
    raw = StoredRows(table, snapshot, columns)
    parts = list(raw.labels())
    if not parts:
        raise TrainingDataError("the table has no rows: there is nothing to learn from")
    known = pa.concat_tables(parts)
    classes, label = labels_of(known, columns.label, params.task)
    rows_train, rows_valid = split_rows(
        known, valid_fraction=params.valid_fraction, by=params.split, seed=params.seed
    )
    train, valid = (_labels_only(label[rows], classes) for rows in (rows_train, rows_valid))
    every = -(-len(rows_train) // sample_rows)
    target, preprocessing = target_and_preprocessing(
        target_of(params.task, train, valid), params, warm_start, lambda: _some(raw, rows_train[::every])
    )
    file = MmapRows.of(_name(raw, preprocessing), lambda: _encoded(raw, preprocessing))
    return Prepared(
        preprocessing,
        target,
        LabelledRows(DiskRows(file, rows_train), target.code(train.label)),
        LabelledRows(DiskRows(file, rows_valid), target.code(valid.label)),
        valid.label,
        raw.first(_EXAMPLE_ROWS),
        warm_start,
    )


@dataclass(frozen=True, slots=True, weakref_slot=True)
class MmapRows:
    """Rows of named arrays in a memory-mapped file. rows: the map, a field for each array; file: its open descriptor."""

    rows: npt.NDArray[Any]
    file: int

    @classmethod
    def of(cls, name: str, parts: Callable[[], Iterable[Arrays]], *, within: Path | None = None) -> Self:
        """Open the rows of `parts`, written in order by the first process of this machine that opens them.

        name: what distinguishes these rows: table, version, columns and encoding; parts: arrays by name, of equally many
        rows, and in all parts of one type and shape; within: where the folder is made (default: this user's temporary one).
        The folder is removed when its last reader ends; that of a killed reader stays until the rows are opened again.
        Raises: OSError if the disk is full; ValueError if there are no rows; Forbidden if the folder is not this user's.
        """
        digest = hashlib.sha256(name.encode()).hexdigest()[:24]
        folder = (within or temporary_folder("rows")) / f"toque-rows-{os.getuid()}-{digest}"
        lock = _locked(folder, parts)
        layout = json.loads((folder / _DONE).read_text())
        kind = np.dtype([(field, form, tuple(shape)) for field, form, shape in layout["kind"]])
        rows = np.memmap(folder / _FILE, dtype=kind, mode="r", shape=(layout["rows"],))
        file = os.open(folder / _FILE, os.O_RDONLY)
        mapped = cls(rows, file)
        weakref.finalize(mapped, _release, folder, lock, file)
        return mapped

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        """Read the rows with these numbers, in this order, as tensors by name."""
        order = rows.numpy()
        ascending = np.argsort(order, kind="stable")  # the disk is read forwards
        found = np.empty(len(order), dtype=self.rows.dtype)
        found[ascending] = self.rows[order[ascending]]
        return {name: torch.from_numpy(np.ascontiguousarray(found[name])) for name in found.dtype.names or ()}

    def prefetch(self, rows: Tensor) -> None:
        """Ask the system to read these rows ahead, unless the whole file fits memory; does not wait."""
        if self.rows.nbytes < _MEMORY_PART * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
            return
        size = self.rows.dtype.itemsize
        for row in np.sort(rows.numpy()).tolist():
            os.posix_fadvise(self.file, row * size, size, os.POSIX_FADV_WILLNEED)


def _locked(folder: Path, parts: Callable[[], Iterable[Arrays]]) -> int:
    """Take the folder's lock, shared with its other readers; if rows are missing, write them under the exclusive lock."""
    while True:
        with suppress(FileNotFoundError):  # the last reader has just removed the folder
            private_folder(folder)
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                file_lock.lock(lock, shared=True)
                if _is_current(folder, lock) and (folder / _DONE).exists():
                    return lock
                file_lock.lock(lock)
                if _is_current(folder, lock) and not (folder / _DONE).exists():
                    _write(folder, parts())
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)


def _is_current(folder: Path, lock: int) -> bool:
    """Whether the lock belongs to the folder as it is now: it may have been removed and made again."""
    return (folder / _LOCK).stat().st_ino == os.fstat(lock).st_ino


def _write(folder: Path, parts: Iterable[Arrays]) -> None:
    """Write all rows, and the marker that they are complete only after them."""
    kind: np.dtype[Any] | None = None
    count = 0
    with (folder / _FILE).open("wb") as file:
        for part in parts:
            if kind is None:
                kind = np.dtype([(name, array.dtype, array.shape[1:]) for name, array in part.items()])
            rows = np.empty(len(next(iter(part.values()))), dtype=kind)
            for name, array in part.items():
                rows[name] = array
            file.write(rows.tobytes())
            count += len(rows)
        file.flush()
        os.fsync(file.fileno())
    if kind is None or count == 0:
        raise ValueError(f"{folder}: there are no rows to write")
    fields = [[name, kind[name].base.str, list(kind[name].shape)] for name in kind.names or ()]
    done = folder / f"{_DONE}.new"
    done.write_text(json.dumps({"rows": count, "kind": fields}))
    done.rename(folder / _DONE)


def _release(folder: Path, lock: int, file: int) -> None:
    os.close(file)
    if file_lock.lock(lock, wait=False):  # else another process still reads the file
        shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def _some(raw: StoredRows, rows: Tensor) -> TabularData:
    """Read the rows with the ascending numbers `rows`, without labels; stops after the last of them."""
    wanted, found, begin = rows.numpy(), [], 0
    for batch in raw.batches(times_and_label=False):
        part = raw.features(batch)
        low, high = np.searchsorted(wanted, [begin, begin + len(part)])
        found.append(part.take(torch.from_numpy(wanted[low:high] - begin)))
        begin += len(part)
        if high == len(wanted):
            break
    return TabularData.joined(found)


def _encoded(raw: StoredRows, preprocessing: Preprocessing) -> Iterator[Arrays]:
    """Encode all rows, batch by batch, in narrow types."""
    for batch in raw.batches(times_and_label=False):
        yield preprocessing.encode(raw.features(batch)).narrow()


def _labels_only(label: Tensor, classes: tuple[str, ...]) -> TabularData:
    nothing = torch.empty(len(label), 0)
    return TabularData(nothing, nothing.long(), label, classes)


def _name(raw: StoredRows, preprocessing: Preprocessing) -> str:
    """Text of everything that the encoded rows depend on."""
    learnt = [value.numpy().tobytes().hex() for value in preprocessing.state_dict().values()]
    columns = [*raw.columns.numeric, "|", *raw.columns.categorical]
    return "\n".join([raw.table.store.url, str(raw.snapshot), *columns, *learnt])
