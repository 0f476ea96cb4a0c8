"""The tabular default: from a training set to a registered version, with no model code at all."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from functions.runtime.context import context
from functions.runtime.declaration import Resources
from functions.runtime.function import function
from functions.training.artifact import tabular_signature, write_artifact
from functions.training.distributed import Job, Workers, fit_on_workers, log_epoch
from functions.training.errors import TrainingDataError
from functions.training.fitting import Columns, Fitted, fit, prepare
from functions.training.loop import threads
from functions.training.params import TabularParams, run_params
from registry import Lineage, ModelVersion, Registry, Run, Table, TableSnapshot


class Trained(BaseModel):
    """What a training made.

    version: None if it was not to be registered; metrics: on the rows held out; seconds: from start to registered.
    """

    model_config = ConfigDict(frozen=True)

    run_id: str
    model: str
    version: int | None
    metrics: dict[str, float]
    best_epoch: int
    rows: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be trained, under which name, and what is known of where it comes from."""

    model: str
    training_set: TableSnapshot
    columns: Columns
    params: TabularParams
    features: dict[str, str] = field(default_factory=dict)
    datasets: tuple[TableSnapshot, ...] = ()
    parent: int | None = None
    tags: dict[str, str] = field(default_factory=dict)
    code: str = ""

    def lineage(self, run: Run) -> Lineage:
        """The origin of the version that `run` makes."""
        return Lineage(
            run=run.id,
            datasets=[self.training_set, *self.datasets],
            features=self.features,
            code=self.code,
            parent=self.parent,
        )


@function(resources=Resources(num_cpus=1), timeout_s=3600)
def train_tabular(
    model: str,
    training_set: TableSnapshot,
    label: str,
    numeric: list[str],
    categorical: list[str],
    params: TabularParams = TabularParams(),  # noqa: B008 - frozen
    num_workers: int = 1,
    worker_cpus: float = 1.0,
    experiment: str | None = None,
    register: bool = True,  # noqa: FBT001, FBT002 - by HTTP every argument has its name
    features: dict[str, str] | None = None,
    datasets: list[TableSnapshot] | None = None,
    feature_service: str | None = None,
    parent: int | None = None,
    tags: dict[str, str] | None = None,
) -> Trained:
    """Train the tabular network on a training set and register it as the next version of `model`.

    label: a column of 0 and 1; numeric, categorical: the feature columns; num_workers: 1 trains here, more train on
    the Ray cluster with `worker_cpus` each; experiment: where the run is tracked (default: the model's name);
    features, datasets, parent: lineage beside the training set: digests of feature views, other tables, and the
    version this one challenges; feature_service: what serves its features by key, kept as a tag.
    Raises: TrainingDataError, TrainingDiverged, ArtifactRefused; the run is then FAILED and nothing is registered.
    """
    order = Order(
        model=model,
        training_set=training_set,
        columns=_columns(numeric, categorical, label),
        params=params,
        features=features or {},
        datasets=tuple(datasets or ()),
        parent=parent,
        tags=(tags or {}) | ({"feature_service": feature_service} if feature_service else {}),
        code=train_tabular.digest,
    )
    workers = Workers(num_workers, worker_cpus)
    registry = context().registry()
    with registry.start_run(
        experiment or model,
        name=f"train {model}",
        params=run_params(params, num_workers=num_workers, label=label),
        tags={"kind": "training", "model": model, **order.tags},
        datasets=[training_set, *order.datasets],
        code=order.code,
    ) as run:
        return _train(registry, run, order, workers, register=register)


def fit_order(order: Order, table: Table, run: Run, workers: Workers) -> Fitted:
    """Fit here or on the cluster, logging each epoch to `run`. Raises: TrainingError."""
    cpus = max(1, int(workers.cpus_each))
    if workers.count > 1:
        job = Job(table, order.training_set, order.columns, order.params, cpus, run)
        return fit_on_workers(job, workers)
    rows = order.columns.read(table, order.training_set)
    with threads(cpus):
        return fit(prepare(rows, order.columns, order.params), order.params, on_epoch=log_epoch(run))


def _columns(numeric: list[str], categorical: list[str], label: str) -> Columns:
    names = [*numeric, *categorical, label]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TrainingDataError(f"columns {twice} are named twice among numeric, categorical and label")
    return Columns(tuple(numeric), tuple(categorical), label)


def _train(registry: Registry, run: Run, order: Order, workers: Workers, *, register: bool) -> Trained:
    began = time.perf_counter()
    table = Table(registry.store, order.training_set.name)
    fitted = fit_order(order, table, run, workers)
    run.log_metrics(fitted.metrics, step=fitted.best_epoch)
    run.log_metrics({"best_epoch": fitted.best_epoch, "rows": fitted.rows_train + fitted.rows_valid})
    version = _register(registry, run, order, table, fitted) if register else None
    return Trained(
        run_id=run.id,
        model=order.model,
        version=None if version is None else version.version,
        metrics=fitted.metrics,
        best_epoch=fitted.best_epoch,
        rows=fitted.rows_train + fitted.rows_valid,
        seconds=time.perf_counter() - began,
    )


def _register(registry: Registry, run: Run, order: Order, table: Table, fitted: Fitted) -> ModelVersion:
    rows = order.columns.read(table, order.training_set)
    signature = tabular_signature(order.columns, rows)
    with tempfile.TemporaryDirectory(prefix="toque-model-") as folder:
        write_artifact(Path(folder), fitted, signature=signature, columns=order.columns, params=order.params)
        registry.create_model(order.model, exist_ok=True)
        version = registry.create_version(
            order.model,
            folder,
            signature=signature,
            metrics=fitted.metrics,
            tags={"kind": "tabular", "label": order.columns.label, **order.tags},
            lineage=order.lineage(run),
            key=run.id,
        )
    run.set_tags({"version": str(version.version)})
    return version
