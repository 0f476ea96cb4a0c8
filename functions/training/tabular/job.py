"""Training of the tabular network as a trainer: fitted here or on the cluster, and written as a program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from toque.functions.runtime.context import context
from toque.functions.training.checkpoints.saved import Checkpoints, retention_of
from toque.functions.training.errors import TrainingDataError
from toque.functions.training.loop.distributed import run_workers
from toque.functions.training.loop.epoch import OnEpoch
from toque.functions.training.loop.keeping import Keeper
from toque.functions.training.loop.process_groups.process_group import ProcessGroup
from toque.functions.training.loop.pulse import Notice, cadence_of
from toque.functions.training.params import TabularParams, weights_depend_on
from toque.functions.training.request import TrainingRequest, Watch
from toque.functions.training.tabular.artifact import EXAMPLE_ROWS, tabular_signature, write_artifact
from toque.functions.training.tabular.columns import Columns
from toque.functions.training.tabular.fitting import Fitted, fit, prepare
from toque.functions.training.tabular.out_of_core import prepare_on_disk
from toque.functions.training.tabular.sharded import ShardedSets, prepare_in_shards
from toque.functions.training.tabular.warm_start import WarmStart, load_warm_start
from toque.functions.training.trained import Trained
from toque.functions.training_data import ShardCache
from toque.registry import Registry, Run, Table, TableSnapshot


@dataclass(frozen=True, slots=True)
class TabularJob:
    """Specification of a tabular training: model, training set, columns, settings, and the version to begin with."""

    model: str
    training_set: TableSnapshot
    columns: Columns
    params: TabularParams
    start_from: int | None = None

    def checkpoint_key(self) -> dict[str, Any]:
        """Everything that the weights depend on, as JSON."""
        return {
            "training_set": self.training_set.model_dump(),
            "columns": [list(self.columns.numeric), list(self.columns.categorical), self.columns.label],
            "params": weights_depend_on(self.params),
            "code": self.params.code,
            "start": self.start_from,
        }


@dataclass(frozen=True, slots=True)
class TabularWorkerLoop:
    """Training of a job as every worker runs it."""

    run: Run
    job: TabularJob
    table: Table
    checkpoints: Checkpoints
    warm_start: WarmStart | None = None
    watch: Watch | None = None
    sets: ShardedSets | None = None

    def train(self, group: ProcessGroup, on_epoch: OnEpoch | None, notice: Notice) -> Fitted:
        """Prepare and fit as one worker of `group`. Raises: TrainingError as `prepare` and `fit` do."""
        job = self.job
        if self.sets is not None:
            prepared = self.sets.opened(
                seed=job.params.seed,
                warm_start=self.warm_start,
                cache=ShardCache(most_bytes=context().shard_cache_bytes),
            )
        elif job.params.rows_in == "disk":
            prepared = prepare_on_disk(self.table, job.training_set, job.columns, job.params, self.warm_start)
        else:
            rows = job.columns.read(self.table, job.training_set)
            prepared = prepare(rows, job.columns, job.params, self.warm_start)
        keeper = Keeper(group, self.checkpoints, cadence_of(job.params), notice=notice)
        return fit(prepared, job.params, group=group, on_epoch=on_epoch, keeper=keeper)


def train_network(params: TabularParams, request: TrainingRequest) -> Trained:
    """Train the network that a request asks for, and write its files. Raises: TrainingError."""
    if request.tensors:
        raise TrainingDataError(
            f"the tabular network takes no tensors such as {request.tensors[0]!r}: use a recipe or a trainer of your own"
        )
    if request.training_set is None:
        raise TrainingDataError(f"model {request.model!r} needs a training set")
    columns = Columns.of(request.numeric, request.categorical, request.label)
    job = TabularJob(request.model, request.training_set, columns, params, request.start_from)
    store = request.registry.store
    checkpoints = Checkpoints.of(store, job.checkpoint_key(), retention_of(params))
    start, sets = _warm_start(request.registry, job), None
    if params.rows_in == "shards":
        sets = prepare_in_shards(request.table, job.training_set, columns, params, start)
    loop = TabularWorkerLoop(request.run, job, request.table, checkpoints, start, request.watch, sets)
    request.when_registered(checkpoints.drop)
    done = run_workers(loop, request.workers)
    fitted = done.result
    request.count_use(done.other_processes)
    rows = request.table.head(EXAMPLE_ROWS, version=job.training_set.version)
    signature = tabular_signature(columns, rows, fitted.scorer.target)
    write_artifact(request.folder, fitted, signature=signature, columns=columns, params=params)
    return Trained(
        metrics=fitted.metrics,
        best_epoch=fitted.best_epoch,
        rows=fitted.rows_train + fitted.rows_valid,
        signature=signature,
    )


def _warm_start(registry: Registry, job: TabularJob) -> WarmStart | None:
    if job.start_from is None:
        return None
    return load_warm_start(registry, job.model, job.start_from, columns=job.columns, params=job.params)
