"""Shards of a batch inference: which are still to do, and how each is appended once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import pyarrow as pa

from toque.registry import ModelVersion, Registry, Table, TableSnapshot
from toque.registry.store import PinnedRows

__all__ = ["ADDED", "ROW", "BatchJob", "Scorer", "ShardWork", "numbered"]

ROW: Final = "row"
ADDED: Final = ("source", "model_version")
_KEPT: Final = "keep:"
_ROWS_PER_RUN: Final = (
    1_000_000  # of one call of an actor: as many as a Parquet row group usually has, which is read as a whole
)
_RUNS_PER_WORKER: Final = 4  # at least, so that all have work until the end


@dataclass(frozen=True, slots=True)
class BatchJob:
    """Specification of a batch inference. keep: input columns that are carried over to the output. threads: of each scorer."""

    version: ModelVersion
    dataset: TableSnapshot
    keep: tuple[str, ...]
    shard_rows: int
    threads: int = 1

    def app_id(self, shard: int) -> str:
        """Delta application id under which a shard is written once."""
        return f"batch:{self.version.model}@{self.version.version}:{self.dataset}:{self.shard_rows}:{shard}"


@dataclass(frozen=True, slots=True)
class ShardWork:
    """All that an actor needs to score shards of a job and append them to `target`. count: rows of the input."""

    registry: Registry
    job: BatchJob
    target: Table
    count: int

    def pending(self, *, workers: int) -> list[range]:
        """List the shards not yet written, as runs of neighbours: several for each worker, none of too many rows."""
        each, shards = self.job.shard_rows, range(-(-self.count // self.job.shard_rows))
        ids = {self.job.app_id(shard): shard for shard in shards}
        written = {ids[app_id] for app_id in self.target.transactions(ids)}
        unwritten = [shard for shard in shards if shard not in written]
        most = max(1, min(_ROWS_PER_RUN // each, len(unwritten) // (workers * _RUNS_PER_WORKER)))
        runs: list[range] = []
        for shard in unwritten:
            if runs and runs[-1].stop == shard and len(runs[-1]) < most:
                runs[-1] = range(runs[-1].start, shard + 1)
            else:
                runs.append(range(shard, shard + 1))
        return runs

    def rows_of(self, run: range) -> tuple[int, int]:
        """First row of a run of shards, and the one behind its last."""
        return run.start * self.job.shard_rows, min(run.stop * self.job.shard_rows, self.count)

    def append(self, shard: int, scored: pa.Table) -> None:
        """Append a scored shard, unless another run of the job has."""
        names = [name.removeprefix(_KEPT) for name in scored.column_names]
        result, rows = scored.rename_columns(names), scored.num_rows
        result = result.append_column("source", pa.array([str(self.job.dataset)] * rows, pa.string()))
        numbers = np.full(rows, self.job.version.version, dtype=np.int64)
        result = result.append_column("model_version", pa.array(numbers))
        self.target.append(result, transactions={self.job.app_id(shard): 0})


class Scorer(Protocol):
    """Scores shards by one version that it holds until it is closed."""

    def score(self, work: ShardWork, rows: PinnedRows, runs: Sequence[range]) -> Iterator[int]:
        """Score runs of shards and append each shard; yields the number of its rows once they are in the table."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


def numbered(table: pa.Table, inputs: Sequence[str], keep: Sequence[str], *, first: int) -> pa.Table:
    """Add the rows' numbers to rows of the input, and rename kept columns apart from those of the model."""
    shard = table.select(list(inputs))
    for name in keep:
        shard = shard.append_column(f"{_KEPT}{name}", table.column(name))
    return shard.append_column(ROW, pa.array(np.arange(first, first + table.num_rows, dtype=np.int64)))
