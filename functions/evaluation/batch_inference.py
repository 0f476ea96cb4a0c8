"""Batch inference of any registered version over a table snapshot, each row scored exactly once.

The snapshot's rows are numbered and cut into shards. A shard's predictions are appended under a Delta transaction that
names version, snapshot and shard, so a killed run resumes where it stopped, and a second run adds nothing. Ray Data scores
the shards in a pool of actors; without a Ray cluster they are scored in this process, one by one.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray
import ray.data
from pydantic import BaseModel, ConfigDict

from functions.model_formats.errors import TrainingDataError
from functions.model_formats.load import ScoringModel, load
from functions.model_formats.table_inputs import input_columns, table_inputs
from functions.model_formats.torch_threads import torch_threads
from functions.runtime.context import context
from functions.runtime.declaration import Demand, Resources
from functions.runtime.function import function
from functions.runtime.run.cluster import AWAY_FROM_SERVING
from functions.runtime.run.niceness import lower_priority
from registry import ModelVersion, Registry, Table, TableSnapshot
from registry.store import check_table_name

_SHARD = "__shard"
_ROW = "row"
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
    table of the platform's own.
    """
    began = time.perf_counter()
    registry = context().registry()
    found = registry.get_version(model, version)
    job = BatchJob(found, dataset, tuple(keep or ()), shard_rows)
    target = Table(registry.store, check_table_name(output or f"batch/{model}", what="output"))
    table, todo = _pending(registry, job, target)
    where: Literal["ray", "here"] = "ray" if ray.is_initialized() else "here"
    scored = 0
    for shard, predictions in _scored(registry, job, table, todo, max_actors):
        target.append(predictions, transactions={job.app_id(shard): 0})
        scored += predictions.num_rows
    seconds = time.perf_counter() - began
    return BatchPredictions(
        table=target.snapshot(),
        model=model,
        version=found.version,
        rows=table.num_rows,
        rows_scored=scored,
        seconds=seconds,
        rows_per_s=scored / seconds,
        where=where,
    )


class ShardScorer:
    """Scores shards with one loaded version."""

    def __init__(self, registry: Registry, version: ModelVersion) -> None:
        with tempfile.TemporaryDirectory(prefix="toque-model-") as folder:
            registry.download(version.model, version.version, to=folder)
            self._model = load(folder, signature=version.signature)

    @property
    def model(self) -> ScoringModel:
        """Model of the loaded version."""
        return self._model

    def __call__(self, shard: pa.Table) -> pa.Table:
        """Score a shard: returns it with the model's outputs in place of its inputs."""
        with torch_threads(1):
            outputs = self._model.predict(table_inputs(shard, self._model.signature))
        inputs = set(input_columns(self._model.signature))
        kept = [name for name in shard.column_names if name.startswith("keep:") or name not in inputs]
        result = shard.select(kept)
        for name, values in outputs.items():
            result = result.append_column(name, _column(values))
        return result


class PoolScorer(ShardScorer):
    """Scorer that is an actor of Ray Data's pool."""

    def __init__(self, registry: Registry, version: ModelVersion) -> None:
        lower_priority()
        super().__init__(registry, version)


def _pending(registry: Registry, job: BatchJob, target: Table) -> tuple[pa.Table, list[int]]:
    """Read the input, with kept columns renamed apart from the model's, and find the shards not yet written."""
    signature = job.version.signature
    if signature is None:
        raise TrainingDataError(
            f"{job.version.model}@{job.version.version} has no signature to read a table by"
        )
    table = Table(registry.store, job.dataset.name).read(version=job.dataset.version)
    wanted = [*input_columns(signature), *job.keep]
    absent = sorted(set(wanted) - set(table.column_names))
    clash = sorted({_ROW, *_ADDED, *(spec.name for spec in signature.outputs)} & set(job.keep))
    if absent or clash or job.shard_rows < 1:
        raise TrainingDataError(
            f"cannot score {job.dataset}: it lacks columns {absent}, keep={clash} would meet a column of the output, "
            f"shard_rows={job.shard_rows} must be positive"
        )
    inputs = table.select(input_columns(signature))
    for name in job.keep:
        inputs = inputs.append_column(f"keep:{name}", table.column(name))
    count = -(-table.num_rows // job.shard_rows)
    return inputs, [shard for shard in range(count) if target.transaction(job.app_id(shard)) is None]


def _scored(
    registry: Registry, job: BatchJob, table: pa.Table, todo: Sequence[int], max_actors: int
) -> Iterator[tuple[int, pa.Table]]:
    """Yield the predictions of each shard of `todo`, in the order in which they are scored."""
    shards = [_shard(table, number, job.shard_rows) for number in todo]
    if not shards:
        return
    sizes = {number: shard.num_rows for number, shard in zip(todo, shards, strict=True)}
    for scored in (
        _on_ray(registry, job, shards, max_actors) if ray.is_initialized() else _here(registry, job, shards)
    ):
        number = int(scored.column(_SHARD)[0].as_py())
        if scored.num_rows != sizes[number]:
            raise TrainingDataError(
                f"shard {number} came back with {scored.num_rows} of {sizes[number]} rows: lower shard_rows"
            )
        yield number, _finished(scored, job)


def _here(registry: Registry, job: BatchJob, shards: Sequence[pa.Table]) -> Iterator[pa.Table]:
    scorer = ShardScorer(registry, job.version)
    yield from map(scorer, shards)


def _on_ray(
    registry: Registry, job: BatchJob, shards: Sequence[pa.Table], max_actors: int
) -> Iterator[pa.Table]:
    dataset = ray.data.from_arrow(list(shards)).map_batches(
        PoolScorer,
        fn_constructor_args=(registry, job.version),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max_actors),
        num_cpus=1,
        label_selector=AWAY_FROM_SERVING,
    )
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")


def _shard(table: pa.Table, number: int, rows: int) -> pa.Table:
    part = table.slice(number * rows, rows)
    numbers = np.arange(number * rows, number * rows + part.num_rows, dtype=np.int64)
    return part.append_column(_ROW, pa.array(numbers)).append_column(
        _SHARD, pa.array(np.full(part.num_rows, number, dtype=np.int64))
    )


def _finished(scored: pa.Table, job: BatchJob) -> pa.Table:
    result = scored.drop_columns([_SHARD])
    result = result.rename_columns([name.removeprefix("keep:") for name in result.column_names])
    rows = result.num_rows
    return result.append_column("source", pa.array([str(job.dataset)] * rows, pa.string())).append_column(
        "model_version", pa.array(np.full(rows, job.version.version, dtype=np.int64))
    )


def _column(values: Any) -> pa.Array:
    """Convert one number a row to a plain column, several to a list column."""
    if values.size == values.shape[0]:
        return pa.array(values.reshape(-1))
    return pa.array(list(values.reshape(values.shape[0], -1)))
