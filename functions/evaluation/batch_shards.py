"""Shards of a batch inference: which are still to do, and how each is appended once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Final, Protocol

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable

from toque.registry import InvalidInput, ModelVersion, NotFound, Registry, Table, TableSnapshot
from toque.registry.store import PinnedRows

__all__ = ["ADDED", "ROW", "BatchJob", "Scorer", "ShardWork", "number_of", "numbered", "planned"]

ROW: Final = "row"
ADDED: Final = ("source", "model_version")
_KEPT: Final = "keep:"
_ROWS_PER_RUN: Final = (
    1_000_000  # of one call of an actor: as many as a Parquet row group usually has, which is read as a whole
)
_RUNS_PER_WORKER: Final = 4  # at least, so that all have work until the end


@dataclass(frozen=True, slots=True)
class BatchJob:
    """Specification of a batch inference. keep: input columns that are carried over to the output. threads: of each scorer.

    snapshot: number of the files of `dataset` (`number_of`), another one once an erasure has taken rows from it.
    """

    version: ModelVersion
    dataset: TableSnapshot
    keep: tuple[str, ...]
    shard_rows: int
    threads: int = 1
    snapshot: int = 0

    def app_id(self, shard: int) -> str:
        """Delta application id under which a shard is written once."""
        return f"{self.base}:{self.snapshot}:{self.shard_rows}:{shard}"

    def plan(self, count: int) -> dict[str, int]:
        """Delta transactions that the output has with the first shard, so that all its shards are of one plan. count: of rows."""
        numbers = {
            "snapshot": self.snapshot,
            "shard_rows": self.shard_rows,
            "keep": number_of(json.dumps(self.keep)),
            "rows": count,
        }
        return {f"{self.base}:{name}": number for name, number in numbers.items()}

    @property
    def base(self) -> str:
        """Beginning of the application ids of the job."""
        return f"batch:{self.version.model}@{self.version.version}:{self.dataset}"


def number_of(text: str) -> int:
    """Digest of a text as a transaction's version, an integer of 64 bits."""
    return int(sha256(text.encode()).hexdigest()[:15], 16)


@dataclass(frozen=True, slots=True)
class ShardWork:
    """All that an actor needs to score shards of a job and append them to `target`.

    count: rows of the input; before: the plan in the output when this run began, see `planned`.
    """

    registry: Registry
    job: BatchJob
    target: Table
    count: int
    before: Mapping[str, int | None] = field(default_factory=dict)

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
        """Append a scored shard, unless another run of the job has. Raises: InvalidInput if another plan was begun meanwhile."""
        names = [name.removeprefix(_KEPT) for name in scored.column_names]
        result, rows = scored.rename_columns(names), scored.num_rows
        result = result.append_column("source", pa.array([str(self.job.dataset)] * rows, pa.string()))
        numbers = np.full(rows, self.job.version.version, dtype=np.int64)
        result = result.append_column("model_version", pa.array(numbers))
        written, plan = {self.job.app_id(shard): 0}, self.job.plan(self.count)
        self.target.append(result, transactions=written, expected=plan)
        if not self.target.transactions(written):
            self.target.append(result, transactions=written | plan, expected=self.before)
        if not self.target.transactions(written):
            raise InvalidInput(
                f"dataset={self.job.dataset}: another run of predict_batch began to score it into "
                f"output={self.target.name!r} by another plan; wait for its end, or name another output"
            )


def planned(work: ShardWork) -> ShardWork:
    """Go on with the plan that the output has of this job, or begin anew without its rows if an erasure changed the dataset.

    Raises: InvalidInput if the output was begun with other columns to keep.
    """
    job, target, plan = work.job, work.target, work.job.plan(work.count)
    if not target.exists():
        return replace(work, before=dict.fromkeys(plan))
    before = {app_id: target.transaction(app_id) for app_id in plan}
    snapshot, shard_rows, keep, rows = before.values()
    if snapshot is not None and shard_rows is not None and rows is not None:
        begun = replace(
            work, job=replace(job, snapshot=snapshot, shard_rows=shard_rows), count=rows, before=before
        )
        if keep != plan[f"{job.base}:keep"]:
            raise InvalidInput(
                f"keep={list(job.keep)}: output={target.name!r} was begun with other columns of {job.dataset}; "
                "give the same, or name another output"
            )
        if snapshot == job.snapshot or not begun.pending(workers=1):
            return begun
    _remove_rows(job, target)
    return replace(work, before=before)


def _remove_rows(job: BatchJob, target: Table) -> None:
    """Remove what was scored of a snapshot by a plan that no longer holds, or by a release that kept no plan."""
    if not {*ADDED} <= set(target.schema().names):
        return
    rows = f"source = '{job.dataset}' AND model_version = {job.version.version}"

    def remove(table: DeltaTable | None) -> DeltaTable:
        if table is None:
            raise NotFound(f"output={target.name!r} was deleted meanwhile; call predict_batch again")
        table.delete(rows)
        return table

    target.commit(remove)


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
