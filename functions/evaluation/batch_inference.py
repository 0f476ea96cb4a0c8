"""Batch inference of any registered version over a table snapshot, each row scored exactly once.

The snapshot's rows are numbered and cut into shards. A shard's predictions are appended under a Delta transaction that
names version, snapshot with its files, and shard, so a killed run resumes where it stopped, and a second run adds nothing.
Once an erasure has changed the files, an unfinished output is made anew. On a cluster a
pool of actors on all nodes reads, scores and writes runs of shards: the caller handles their numbers and no rows. Without a
cluster, or for a single shard, this process does the same. Whoever scores holds a piece of a shard, bounded in bytes.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import pyarrow as pa
import ray
from pydantic import BaseModel, ConfigDict, Field

from toque.featurestore.offline.retrieval import row_bytes
from toque.functions.arguments import LimitSeconds, Model, Priority
from toque.functions.evaluation.batch_shards import (
    ADDED,
    ROW,
    BatchJob,
    Scorer,
    ShardWork,
    number_of,
    numbered,
    planned,
)
from toque.functions.evaluation.language.evaluation_set import asked_column
from toque.functions.evaluation.language.prompt_batches import (
    ANSWER_COLUMNS,
    MOST_SHARD_ROWS,
    SHARD_PROMPTS,
    PromptScorer,
)
from toque.functions.generative import is_generative
from toque.functions.model_formats.errors import TrainingDataError
from toque.functions.model_formats.load import ScoringModel, load_version, torch_threads
from toque.functions.model_formats.table_inputs import input_columns
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Demand, Resources
from toque.functions.runtime.function import function
from toque.functions.runtime.process import lower_priority
from toque.functions.runtime.run.cluster import AWAY_FROM_SERVING
from toque.functions.runtime.run.log import report_progress
from toque.functions.runtime.run.room import wait_for_room
from toque.registry import ModelVersion, Registry, Table, TableSnapshot
from toque.registry.store import PinnedRows, check_table_name

_FIRST, _STOP, _ROWS = "first", "stop", "rows"  # of a run of shards
_PIECE_BYTES = 64 << 20  # of a shard's rows that are scored at once
_SHARD_ROWS = 50_000


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


def _demand(max_actors: int, threads: int, priority: int, limit_s: float | None, **_: Any) -> Demand:
    return Demand(cpus=max(1.0, float(max_actors * threads)), priority=priority, limit_s=limit_s)


@function(http=True, resources=Resources(num_cpus=1), timeout_s=None, demand=_demand)
def predict_batch(
    model: Model,
    dataset: Annotated[TableSnapshot, Field(description="Table of the rows to score, at one version of it.")],
    version: Annotated[
        Annotated[int, Field(ge=1, le=1_000_000_000)] | str,
        Field(description="Number or alias of a version of the model."),
    ] = "champion",
    output: Annotated[
        str | None,
        Field(
            description="Name of the table that predictions are appended to; `batch/{model}` unless given."
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        Field(description="Columns of the dataset that the output has too; none unless given."),
    ] = None,
    shard_rows: Annotated[
        int | None,
        Field(
            ge=1,
            le=100_000_000,
            description=(
                "Rows that one commit writes; 50,000 unless given, of a language model 64 and at most 5,000."
            ),
        ),
    ] = None,
    max_actors: Annotated[
        int, Field(ge=1, le=10_000, description="Most actors of the pool that scores on a cluster.")
    ] = 2,
    threads: Annotated[
        int,
        Field(
            le=1_024,
            ge=1,
            description=(
                "CPUs that each actor reserves, and threads of PyTorch or of the engine of a language model; "
                "models of other libraries use one."
            ),
        ),
    ] = 1,
    priority: Priority = 0,  # noqa: ARG001 - its demand reads it
    limit_s: LimitSeconds = None,  # noqa: ARG001 - its demand reads it
) -> BatchPredictions:
    """Score every row of `dataset` with a version and append the predictions to a table, each row exactly once.

    The output has `row` (the row's number in the snapshot), the kept columns, the model's outputs, `source` (the
    snapshot) and `model_version`.
    Raises: NotFound; TrainingDataError if the dataset does not fit the version's signature; InvalidInput for the name of a
    table of the platform's own, or an output that was begun with another `keep`; NoRoom if the cluster has no node for a scorer, and never could.
    """
    began = time.perf_counter()
    registry = context().registry()
    found = registry.get_version(model, version)
    if shard_rows is None:
        shard_rows = SHARD_PROMPTS if is_generative(found) else _SHARD_ROWS
    target = Table(registry.store, check_table_name(output or f"batch/{model}", what="output"))
    rows = Table(registry.store, dataset.name).pinned(dataset.version)
    job = BatchJob(found, dataset, tuple(keep or ()), shard_rows, threads, number_of(rows.digest()))
    _check(job, rows.schema)
    work = planned(ShardWork(registry, job, target, rows.count))
    where: Literal["ray", "here"] = (
        "ray" if ray.is_initialized() and rows.count > work.job.shard_rows else "here"
    )
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
    """Scores shards with one loaded version. threads: of PyTorch."""

    def __init__(self, registry: Registry, version: ModelVersion, *, threads: int) -> None:
        self._model, self._threads = load_version(registry, version), threads

    @property
    def model(self) -> ScoringModel:
        """Model of the loaded version."""
        return self._model

    def score(self, work: ShardWork, rows: PinnedRows, runs: Sequence[range]) -> Iterator[int]:
        """Score runs of shards and append each shard; yields the number of its rows once they are in the table."""
        each, keep, inputs = work.job.shard_rows, work.job.keep, input_columns(self.model.signature)
        columns = list(dict.fromkeys([*inputs, *keep]))
        size = _piece_rows(rows, columns, most=each)
        for run in runs:
            first, stop = work.rows_of(run)
            pieces = rows.slices(first, stop, rows=size, columns=columns)
            scored: list[pa.Table] = []
            for begin, piece in _within_shards(pieces, first, each):
                scored.append(self(numbered(piece, inputs, keep, first=begin)))
                end = begin + piece.num_rows
                if end % each == 0 or end == stop:
                    shard, scored = pa.concat_tables(scored), []
                    work.append((end - 1) // each, shard)
                    yield shard.num_rows

    def close(self) -> None:
        """Do nothing: the model goes with the scorer."""

    def __call__(self, shard: pa.Table) -> pa.Table:
        """Score a shard: returns it with the model's outputs in place of its inputs."""
        with torch_threads(self._threads):
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
        self._rows = Table(work.registry.store, work.job.dataset.name).pinned(work.job.dataset.version)
        if number_of(self._rows.digest()) != work.job.snapshot:
            raise TrainingDataError(
                f"dataset={work.job.dataset} lost rows by an erasure while it was scored, so its rows have other numbers: "
                "call predict_batch again, it begins anew"
            )
        self._scorer = _scorer(work)

    def __call__(self, run: pa.Table) -> pa.Table:
        """Score a run, given by the numbers of its first shard and of the one behind it; returns how many rows it had."""
        numbers = range(run.column(_FIRST)[0].as_py(), run.column(_STOP)[0].as_py())
        return pa.table({_ROWS: [sum(self._scorer.score(self._work, self._rows, [numbers]))]})


def _scorer(work: ShardWork) -> Scorer:
    version = work.job.version
    if is_generative(version):
        return PromptScorer(work.registry, version, threads=work.job.threads)
    return ShardScorer(work.registry, version, threads=work.job.threads)


def _check(job: BatchJob, schema: pa.Schema) -> None:
    """Check that a snapshot has the columns that a version reads and those to keep. Raises: TrainingDataError."""
    signature = job.version.signature
    if signature is None:
        raise TrainingDataError(
            f"{job.version.model}@{job.version.version} has no signature to read a table by"
        )
    if is_generative(job.version):
        needed, outputs, most = [asked_column(schema.names)], list(ANSWER_COLUMNS), MOST_SHARD_ROWS
    else:
        needed = list(input_columns(signature))
        outputs, most = [spec.name for spec in signature.outputs], sys.maxsize
    absent = sorted({*needed, *job.keep} - set(schema.names))
    clash = sorted({ROW, *ADDED, *outputs} & set(job.keep))
    if absent or clash or job.shard_rows > most:
        raise TrainingDataError(
            f"cannot score {job.dataset}: it lacks columns {absent}, keep={clash} would meet a column of the output, "
            f"shard_rows={job.shard_rows} must be from 1 to {most}"
        )


def _here(work: ShardWork, rows: PinnedRows) -> Iterator[int]:
    """Score what is pending in this process; yields the rows of each shard."""
    runs = work.pending(workers=1)
    if runs:
        with contextlib.closing(_scorer(work)) as scorer:
            yield from scorer.score(work, rows, runs)


def _on_ray(work: ShardWork, max_actors: int) -> Iterator[int]:
    """Score what is pending in a pool of actors; yields the rows of each run. An actor that is lost repeats its run."""
    from ray import data  # late: pandas comes with it, into every process that knows this function

    runs = work.pending(workers=max_actors)
    if not runs:
        return
    wait_for_room(
        1,
        {"CPU": float(work.job.threads)},
        what="a scorer of predict_batch",
        remedy="start a node that does not serve",
    )
    items = [{_FIRST: run.start, _STOP: run.stop} for run in runs]
    scored = data.from_items(items, override_num_blocks=len(items)).map_batches(
        PoolScorer,
        fn_constructor_args=(work,),
        batch_size=1,
        batch_format="pyarrow",
        compute=data.ActorPoolStrategy(min_size=1, max_size=max_actors),
        num_cpus=work.job.threads,
        label_selector=AWAY_FROM_SERVING,
    )
    for row in scored.iter_rows():
        yield int(row[_ROWS])


def _column(values: Any) -> pa.Array:
    """Convert one number a row to a plain column, several to a list column."""
    if values.size == values.shape[0]:
        return pa.array(values.reshape(-1))
    return pa.array(list(values.reshape(values.shape[0], -1)))
