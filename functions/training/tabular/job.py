"""Training jobs of the tabular network: fit here or on the cluster, then register the version."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from functions.runtime.receipt import Prices
from functions.training.checkpoints import Checkpoints, retention_of
from functions.training.errors import TrainingDataError
from functions.training.loop.cost import metered
from functions.training.loop.distributed import Workers, run_workers
from functions.training.loop.process_group import ProcessGroup
from functions.training.loop.training_loop import OnEpoch
from functions.training.params import TabularParams, weights_depend_on
from functions.training.tabular.artifact import EXAMPLE_ROWS, tabular_signature, write_artifact
from functions.training.tabular.columns import Columns
from functions.training.tabular.fitting import Fitted, fit, prepare
from functions.training.tabular.out_of_core import prepare_on_disk
from functions.training.tabular.warm_start import WarmStart, load_warm_start
from functions.training.trained import Trained
from registry import Lineage, ModelVersion, Registry, Run, Table, TableSnapshot

__all__ = ["TabularJob", "TabularWorkerLoop", "Workers", "run_job"]


@dataclass(frozen=True, slots=True)
class TabularJob:
    """Specification of a tabular training: model, training set, columns, settings and lineage."""

    model: str
    training_set: TableSnapshot
    columns: Columns
    params: TabularParams
    features: dict[str, str] = field(default_factory=dict)
    datasets: tuple[TableSnapshot, ...] = ()
    parent: int | None = None
    tags: dict[str, str] = field(default_factory=dict)
    code: str = ""
    start_from: int | None = None

    def checkpoint_key(self) -> dict[str, Any]:
        """Everything that the weights depend on, as JSON."""
        return {
            "training_set": self.training_set.model_dump(),
            "columns": [list(self.columns.numeric), list(self.columns.categorical), self.columns.label],
            "params": weights_depend_on(self.params),
            "code": self.code,
            "start": self.start_from,
        }

    def lineage(self, run: Run) -> Lineage:
        """Lineage of the version that `run` makes."""
        return Lineage(
            run=run.id,
            datasets=[self.training_set, *self.datasets],
            features=self.features,
            code=self.code,
            parent=self.parent if self.start_from is None else self.start_from,
        )


@dataclass(frozen=True, slots=True)
class TabularWorkerLoop:
    """Training of a job as every worker runs it."""

    run: Run
    job: TabularJob
    table: Table
    checkpoints: Checkpoints
    warm_start: WarmStart | None = None

    def train(self, group: ProcessGroup, on_epoch: OnEpoch | None) -> Fitted:
        """Prepare and fit as one worker of `group`. Raises: TrainingError as `prepare` and `fit` do."""
        job = self.job
        if job.params.rows_in == "disk":
            prepared = prepare_on_disk(self.table, job.training_set, job.columns, job.params, self.warm_start)
        else:
            rows = job.columns.read(self.table, job.training_set)
            prepared = prepare(rows, job.columns, job.params, self.warm_start)
        return fit(prepared, job.params, group=group, on_epoch=on_epoch, checkpoints=self.checkpoints)


def run_job(
    registry: Registry,
    run: Run,
    job: TabularJob,
    workers: Workers,
    *,
    register: bool,
    prices: Prices | None = None,
) -> Trained:
    """Train a job, and register the next version if asked. Raises: TrainingError."""
    began = time.perf_counter()
    table = Table(registry.store, job.training_set.name)
    checkpoints = Checkpoints.of(registry.store, job.checkpoint_key(), retention_of(job.params))
    with metered(run, prices) as meter:
        loop = TabularWorkerLoop(run, job, table, checkpoints, _warm_start(registry, job))
        done = run_workers(loop, workers)
        fitted, meter.other_processes = done.result, done.other_processes
        run.log_metrics(fitted.metrics, step=fitted.best_epoch)
        run.log_metrics({"best_epoch": fitted.best_epoch, "rows": fitted.rows_train + fitted.rows_valid})
        version = _register(registry, run, job, table, fitted) if register else None
        checkpoints.drop()
        return Trained(
            run_id=run.id,
            model=job.model,
            version=None if version is None else version.version,
            metrics=fitted.metrics,
            best_epoch=fitted.best_epoch,
            rows=fitted.rows_train + fitted.rows_valid,
            seconds=time.perf_counter() - began,
            cost=meter.cost(),
        )


def _warm_start(registry: Registry, job: TabularJob) -> WarmStart | None:
    if job.start_from is None:
        return None
    if job.parent not in {None, job.start_from}:
        raise TrainingDataError(
            f"parent={job.parent} and start_from={job.start_from}: what a training starts from is its parent; leave parent out"
        )
    return load_warm_start(registry, job.model, job.start_from, columns=job.columns, params=job.params)


def _register(registry: Registry, run: Run, job: TabularJob, table: Table, fitted: Fitted) -> ModelVersion:
    rows = table.head(EXAMPLE_ROWS, version=job.training_set.version)
    signature = tabular_signature(job.columns, rows, fitted.scorer.target)
    with tempfile.TemporaryDirectory(prefix="toque-model-") as folder:
        write_artifact(Path(folder), fitted, signature=signature, columns=job.columns, params=job.params)
        registry.create_model(job.model, exist_ok=True)
        version = registry.create_version(
            job.model,
            folder,
            signature=signature,
            metrics=fitted.metrics,
            tags={"kind": "tabular", "label": job.columns.label, **job.tags},
            lineage=job.lineage(run),
            key=run.id,
        )
    run.set_tags({"version": str(version.version)})
    return version
