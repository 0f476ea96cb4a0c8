"""An order for a trained model, and how it is carried out: fit here or on the cluster, then register."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from functions.runtime.receipt import Prices
from functions.training.checkpoints import Checkpoints, keep_of
from functions.training.errors import TrainingDataError
from functions.training.loop.cost import billed
from functions.training.loop.distributed import Workers, carry_through
from functions.training.loop.parallel import World
from functions.training.loop.training_loop import OnEpoch
from functions.training.params import TabularParams, weights_depend_on
from functions.training.tabular.artifact import EXAMPLE_ROWS, tabular_signature, write_artifact
from functions.training.tabular.fitting import Columns, Fitted, fit, prepare
from functions.training.tabular.out_of_core import prepare_on_disk
from functions.training.tabular.warm_start import Start, start_from
from functions.training.trained import Trained
from registry import Lineage, ModelVersion, Registry, Run, Table, TableSnapshot

__all__ = ["Order", "TabularJob", "Workers", "carry_out", "columns"]


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
    start: int | None = None

    def determined_by(self) -> dict[str, Any]:
        """What the weights depend on."""
        return {
            "training_set": self.training_set.model_dump(),
            "columns": [list(self.columns.numeric), list(self.columns.categorical), self.columns.label],
            "params": weights_depend_on(self.params),
            "code": self.code,
            "start": self.start,
        }

    def lineage(self, run: Run) -> Lineage:
        """The origin of the version that `run` makes."""
        return Lineage(
            run=run.id,
            datasets=[self.training_set, *self.datasets],
            features=self.features,
            code=self.code,
            parent=self.parent if self.start is None else self.start,
        )


@dataclass(frozen=True, slots=True)
class TabularJob:
    """The order as every worker is told it."""

    run: Run
    order: Order
    table: Table
    checkpoints: Checkpoints
    start: Start | None = None

    def work(self, world: World, on_epoch: OnEpoch | None) -> Fitted:
        """Fit, as one of `world`. Raises: TrainingError as `prepare` and `fit` do."""
        order = self.order
        if order.params.rows_in == "disk":
            prepared = prepare_on_disk(
                self.table, order.training_set, order.columns, order.params, self.start
            )
        else:
            rows = order.columns.read(self.table, order.training_set)
            prepared = prepare(rows, order.columns, order.params, self.start)
        return fit(prepared, order.params, world=world, on_epoch=on_epoch, checkpoints=self.checkpoints)


def columns(numeric: list[str], categorical: list[str], label: str) -> Columns:
    """What is what among the columns. Raises: TrainingDataError if one is named twice."""
    names = [*numeric, *categorical, label]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TrainingDataError(f"columns {twice} are named twice among numeric, categorical and label")
    return Columns(tuple(numeric), tuple(categorical), label)


def carry_out(
    registry: Registry,
    run: Run,
    order: Order,
    workers: Workers,
    *,
    register: bool,
    prices: Prices | None = None,
) -> Trained:
    """Fit, and register the next version if asked. Raises: TrainingError."""
    began = time.perf_counter()
    table = Table(registry.store, order.training_set.name)
    checkpoints = Checkpoints.of(registry.store, order.determined_by(), keep_of(order.params))
    with billed(run, prices) as bill:
        done = carry_through(TabularJob(run, order, table, checkpoints, _start(registry, order)), workers)
        fitted, bill.others = done.made, done.spent
        run.log_metrics(fitted.metrics, step=fitted.best_epoch)
        run.log_metrics({"best_epoch": fitted.best_epoch, "rows": fitted.rows_train + fitted.rows_valid})
        version = _register(registry, run, order, table, fitted) if register else None
        checkpoints.drop()
        return Trained(
            run_id=run.id,
            model=order.model,
            version=None if version is None else version.version,
            metrics=fitted.metrics,
            best_epoch=fitted.best_epoch,
            rows=fitted.rows_train + fitted.rows_valid,
            seconds=time.perf_counter() - began,
            cost=bill.cost(),
        )


def _start(registry: Registry, order: Order) -> Start | None:
    if order.start is None:
        return None
    if order.parent not in {None, order.start}:
        raise TrainingDataError(
            f"parent={order.parent} and start_from={order.start}: what a training starts from is its parent; leave parent out"
        )
    numeric, categorical = order.columns.numeric, order.columns.categorical
    return start_from(
        registry, order.model, order.start, numeric=numeric, categorical=categorical, params=order.params
    )


def _register(registry: Registry, run: Run, order: Order, table: Table, fitted: Fitted) -> ModelVersion:
    rows = table.head(EXAMPLE_ROWS, version=order.training_set.version)
    signature = tabular_signature(order.columns, rows, fitted.scorer.target)
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
