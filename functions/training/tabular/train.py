"""The function that trains the tabular network: from a training set to a registered version, without model code.

Processes that never train know the function too; torch is imported when it is called.
"""

from __future__ import annotations

from typing import Any

from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Demand, Resources
from toque.functions.runtime.function import function
from toque.functions.training.frame import TrainingJob, run_training
from toque.functions.training.params import Columns, TabularParams
from toque.functions.training.request import Workers
from toque.functions.training.trainer import Trained
from toque.registry import TableSnapshot


def _demand(num_workers: int, worker_cpus: float, priority: int, limit_s: float | None, **_: Any) -> Demand:
    cpus = max(1.0, num_workers * worker_cpus)
    return Demand(cpus=cpus, priority=priority, limit_s=limit_s, preemptible=True)


@function(http=True, resources=Resources(num_cpus=1), timeout_s=None, demand=_demand)
def train_tabular(
    model: str,
    training_set: TableSnapshot,
    label: str,
    numeric: list[str],
    categorical: list[str],
    params: TabularParams = TabularParams(),  # noqa: B008 - frozen
    *,
    num_workers: int = 1,
    worker_cpus: float = 1.0,
    experiment: str | None = None,
    register: bool = True,
    features: dict[str, str] | None = None,
    datasets: list[TableSnapshot] | None = None,
    feature_service: str | None = None,
    parent: int | None = None,
    tags: dict[str, str] | None = None,
    start_from: int | None = None,
    priority: int = 0,  # noqa: ARG001 - its demand reads it
    limit_s: float | None = None,  # noqa: ARG001 - its demand reads it
) -> Trained:
    """Train the tabular network on a training set and register it as the next version of `model`.

    label: a column of 0 and 1, of classes or of numbers, as `params.task` says; numeric, categorical: the feature columns;
    num_workers: 1 trains here, more train on the Ray cluster with `worker_cpus` each; experiment: where the run is tracked
    (default: the model's name); features, datasets, parent: lineage beside the training set: digests of feature views,
    other tables, and the version this one challenges; feature_service: what serves its features by key, kept as a tag.
    start_from: a version of `model` whose weights, preprocessing and target training begins with (a warm start; a lower
    params.lr suits it); the new version names it as its parent.
    priority: of a submitted call in the queue of experiments, the higher first; limit_s: its longest run time, None for as
    long as it takes.
    An interrupted training resumes at its last checkpoint when it is called again with the same arguments.
    Raises: TrainingDataError, TrainingDiverged, ArtifactRefused; the run is then FAILED and nothing is registered.
    """
    Columns.of(numeric, categorical, label)
    job = TrainingJob(
        model=model,
        trainer=TabularParams.model_validate(params),  # by its name, so that our digest follows its code
        code=train_tabular.digest,
        label=label,
        numeric=tuple(numeric),
        categorical=tuple(categorical),
        outcome=params.outcome,
        training_set=training_set,
        workers=Workers(num_workers, worker_cpus),
        features=features or {},
        datasets=tuple(datasets or ()),
        parent=parent,
        start_from=start_from,
        experiment=experiment,
        params={"num_workers": num_workers, "label": label, "start_from": start_from},
        tags=(tags or {}) | ({"feature_service": feature_service} if feature_service else {}),
        register=register,
    )
    return run_training(context().registry(), job, context().prices)
