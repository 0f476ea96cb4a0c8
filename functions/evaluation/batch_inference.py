"""Batch inference of any registered version over a table snapshot, each row scored exactly once.

The snapshot's rows are numbered and cut into shards. A shard's predictions are appended under a Delta transaction that
names version, snapshot and shard, so a killed run resumes where it stopped, and a second run adds nothing. On a cluster a
pool of actors on all nodes reads, scores and writes runs of shards: the caller handles their numbers and no rows. Without a
cluster, or for a single shard, this process does the same. Whoever scores holds a piece of a shard, bounded in bytes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray
from pydantic import BaseModel, ConfigDict

from featurestore.offline.pinned_retrieval import row_bytes
from functions.model_formats.errors import TrainingDataError
from functions.model_formats.load import ScoringModel
from functions.model_formats.table_inputs import input_columns
from functions.model_formats.torch_threads import torch_threads
from functions.model_formats.versions import load_version
from functions.runtime.context import context
from functions.runtime.declaration import Demand, Resources
from functions.runtime.function import function
from functions.runtime.run.capture import report_progress
from functions.runtime.run.cluster import AWAY_FROM_SERVING
from functions.runtime.run.niceness import lower_priority
from functions.runtime.run.room import wait_for_room
from registry import ModelVersion, Registry, Table, TableSnapshot
from registry.store import PinnedRows, check_table_name

_ROW = "row"
_FIRST, _STOP, _ROWS = "first", "stop", "rows"  # of a run of shards
_ROWS_PER_RUN = (
    1_000_000  # of one call of an actor: as many as a Parquet row group usually has, which is read as a whole
)
_RUNS_PER_WORKER = 4  # at least, so that all have work until the end
_PIECE_BYTES = 64 << 20  # of a shard's rows that are scored at once
_ADDED = ("source", "model_version")


class BatchPredictions(BaseModel):
    """Result of a batch inference: the table of predictions, and how many rows were scored how fast.

    rows: of the input; rows_scored: by this run, the others had been scored before; where: whether Ray Data scored the
    shards or this process did.
    """

    model_config = ConfigDict(frozen=True)

    table: TableSnapshot
    model: str
    version: int
    rows: int
    rows_scored: int
    seconds: float
    rows_per_s: float
    where: Literal["ray", "here"]


@dataclass(frozen=True, slots=True)
class BatchJob:
    """Specification of a batch inference. keep: input columns that are carried over to the output."""

    version: ModelVersion
    dataset: TableSnapshot
    keep: tuple[str, ...]
    shard_rows: int

    def app_id(self, shard: int) -> str:
        """Delta application id under which a shard is written once."""
        return f"batch:{self.version.model}@{self.version.version}:{self.dataset}:{self.shard_rows}:{shard}"


def _demand(max_actors: int, priority: int, **_: Any) -> Demand:
    return Demand(cpus=max(1.0, float(max_actors)), priority=priority)


@function(http=True, resources=Resources(num_cpus=1), timeout_s=3600, demand=_demand)
def predict_batch(
    model: str,
    dataset: TableSnapshot,
    version: int | str = "champion",
    output: str | None = None,
    keep: list[str] | None = None,
    shard_rows: int = 50_000,
    max_actors: int = 2,
    priority: int = 0,  # noqa: ARG001 - its demand reads it
) -> BatchPredictions:
    """Score every row of `dataset` with a version and append the predictions to a table, each row exactly once.

    version: a number or an alias; output: the table's name (default: "batch/{model}"); keep: input columns to carry
    over (default: none); shard_rows: rows written by one commit; max_actors: the pool grows up to it;
    priority: of a submitted call in the queue of experiments, the higher first.
    The output has `row` (the row's number in the snapshot), the kept columns, the model's outputs, `source` (the
    snapshot) and `model_version`.
    Raises: NotFound; TrainingDataError if the dataset does not fit the version's signature; InvalidInput for the name of a
    table of the platform's own; NoRoom if the cluster has no node for a scorer, and never could.
    """
    began = time.perf_counter()
    registry = context().registry()
    found = registry.get_version(model, version)
    job = BatchJob(found, dataset, tuple(keep or ()), shard_rows)
    target = Table(registry.store, check_table_name(output or f"batch/{model}", what="output"))
    rows = PinnedRows(Table(registry.store, dataset.name), dataset.version)
    _check(job, rows.schema)
    work = ShardWork(registry, job, target, rows.count)
    where: Literal["ray", "here"] = "ray" if ray.is_initialized() and rows.count > shard_rows else "here"
    scored = 0
    for more in _on_ray(work, max_actors) if where == "ray" else _here(work, rows):
        scored += more
        report_progress(scored, rows.count, "rows scored")
    seconds = time.perf_counter() - began
    return BatchPredictions(
        table=target.snapshot(),
        model=model,
        version=found.version,
        rows=rows.count,
        rows_scored=scored,
        seconds=seconds,
        rows_per_s=scored / seconds,
        where=where,
    )


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

    def score(self, scorer: ShardScorer, rows: PinnedRows, run: range) -> Iterator[int]:
        """Score a run of shards and append each; yields the number of its rows once they are in the table."""
        each, inputs = self.job.shard_rows, input_columns(scorer.model.signature)
        columns = list(dict.fromkeys([*inputs, *self.job.keep]))
        first, stop = run.start * each, min(run.stop * each, self.count)
        pieces = rows.slices(first, stop, rows=_piece_rows(rows, columns, most=each), columns=columns)
        scored: list[pa.Table] = []
        for begin, piece in _within_shards(pieces, first, each):
            scored.append(scorer(_shard(piece, inputs, self.job.keep, first=begin)))
            end = begin + piece.num_rows
            if end % each == 0 or end == stop:
                shard, scored = pa.concat_tables(scored), []
                app_id = self.job.app_id((end - 1) // each)
                self.target.append(_finished(shard, self.job), transactions={app_id: 0})
                yield shard.num_rows


def _piece_rows(rows: PinnedRows, columns: Sequence[str], *, most: int) -> int:
    """Number of rows of so many bytes as are scored at once, by the types of the columns, or by the files if they say more."""
    typed = row_bytes(pa.schema([rows.schema.field(name) for name in columns]))
    stored = rows.size_bytes // max(rows.count, 1)
    return max(1, min(most, _PIECE_BYTES // max(typed, stored, 1)))


def _within_shards(pieces: Iterator[pa.Table], first: int, each: int) -> Iterator[tuple[int, pa.Table]]:
    """Cut pieces of rows where shards of `each` rows end; yields the number of the first row with each cut."""
    for piece in pieces:
        while piece.num_rows:
            part = piece.slice(0, each - first % each)
            yield first, part
            first, piece = first + part.num_rows, piece.slice(part.num_rows)  # noqa: PLW2901 - what is left of it


class ShardScorer:
    """Scores shards with one loaded version."""

    def __init__(self, registry: Registry, version: ModelVersion) -> None:
        self._model = load_version(registry, version)

    @property
    def model(self) -> ScoringModel:
        """Model of the loaded version."""
        return self._model

    def __call__(self, shard: pa.Table) -> pa.Table:
        """Score a shard: returns it with the model's outputs in place of its inputs."""
        with torch_threads(1):
            outputs = self._model.predict_table(shard)
        inputs = set(input_columns(self._model.signature))
        kept = [name for name in shard.column_names if name.startswith("keep:") or name not in inputs]
        result = shard.select(kept)
        for name, values in outputs.items():
            result = result.append_column(name, _column(values))
        return result


class PoolScorer:
    """Actor of Ray Data's pool that reads, scores and writes runs of shards."""

    def __init__(self, work: ShardWork) -> None:
        lower_priority()
        self._work = work
        self._rows = PinnedRows(Table(work.registry.store, work.job.dataset.name), work.job.dataset.version)
        self._scorer = ShardScorer(work.registry, work.job.version)

    def __call__(self, run: pa.Table) -> pa.Table:
        """Score a run, given by the numbers of its first shard and of the one behind it; returns how many rows it had."""
        numbers = range(run.column(_FIRST)[0].as_py(), run.column(_STOP)[0].as_py())
        return pa.table({_ROWS: [sum(self._work.score(self._scorer, self._rows, numbers))]})


def _check(job: BatchJob, schema: pa.Schema) -> None:
    """Check that a snapshot has the columns that a version reads and those to keep. Raises: TrainingDataError."""
    signature = job.version.signature
    if signature is None:
        raise TrainingDataError(
            f"{job.version.model}@{job.version.version} has no signature to read a table by"
        )
    absent = sorted({*input_columns(signature), *job.keep} - set(schema.names))
    clash = sorted({_ROW, *_ADDED, *(spec.name for spec in signature.outputs)} & set(job.keep))
    if absent or clash or job.shard_rows < 1:
        raise TrainingDataError(
            f"cannot score {job.dataset}: it lacks columns {absent}, keep={clash} would meet a column of the output, "
            f"shard_rows={job.shard_rows} must be positive"
        )


def _here(work: ShardWork, rows: PinnedRows) -> Iterator[int]:
    """Score what is pending in this process; yields the rows of each shard."""
    runs = work.pending(workers=1)
    if runs:
        scorer = ShardScorer(work.registry, work.job.version)
        for run in runs:
            yield from work.score(scorer, rows, run)


def _on_ray(work: ShardWork, max_actors: int) -> Iterator[int]:
    """Score what is pending in a pool of actors; yields the rows of each run. An actor that is lost repeats its run."""
    from ray import data  # late: pandas comes with it, into every process that knows this function

    runs = work.pending(workers=max_actors)
    if not runs:
        return
    wait_for_room(
        1, {"CPU": 1.0}, what="a scorer of predict_batch", remedy="start a node that does not serve"
    )
    items = [{_FIRST: run.start, _STOP: run.stop} for run in runs]
    scored = data.from_items(items, override_num_blocks=len(items)).map_batches(
        PoolScorer,
        fn_constructor_args=(work,),
        batch_size=1,
        batch_format="pyarrow",
        compute=data.ActorPoolStrategy(min_size=1, max_size=max_actors),
        num_cpus=1,
        label_selector=AWAY_FROM_SERVING,
    )
    for row in scored.iter_rows():
        yield int(row[_ROWS])


def _shard(table: pa.Table, inputs: Sequence[str], keep: Sequence[str], *, first: int) -> pa.Table:
    """Add the rows' numbers to a shard, and rename kept columns apart from the model's."""
    shard = table.select(list(inputs))
    for name in keep:
        shard = shard.append_column(f"keep:{name}", table.column(name))
    return shard.append_column(_ROW, pa.array(np.arange(first, first + table.num_rows, dtype=np.int64)))


def _finished(scored: pa.Table, job: BatchJob) -> pa.Table:
    result = scored.rename_columns([name.removeprefix("keep:") for name in scored.column_names])
    rows = result.num_rows
    return result.append_column("source", pa.array([str(job.dataset)] * rows, pa.string())).append_column(
        "model_version", pa.array(np.full(rows, job.version.version, dtype=np.int64))
    )


def _column(values: Any) -> pa.Array:
    """Convert one number a row to a plain column, several to a list column."""
    if values.size == values.shape[0]:
        return pa.array(values.reshape(-1))
    return pa.array(list(values.reshape(values.shape[0], -1)))
