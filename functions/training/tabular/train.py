"""The function that trains the tabular network: from a training set to a registered version, without model code.

Processes that never train know the function too; torch is imported when it is called.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from toque.functions.arguments import (
    Categorical,
    Experiment,
    LimitSeconds,
    Numeric,
    NumWorkers,
    Priority,
    Register,
    Tags,
    TrainingSet,
    WorkerCpus,
)
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Demand, Resources
from toque.functions.runtime.function import function
from toque.functions.training.frame import TrainingJob, run_training
from toque.functions.training.request import FeatureDigests, MoreDatasets, Parent, TrainedModel, Workers
from toque.functions.training.tabular.params import TabularParams
from toque.functions.training.tabular.settings import Columns
from toque.functions.training.trainer import Trained


def _demand(num_workers: int, worker_cpus: float, priority: int, limit_s: float | None, **_: Any) -> Demand:
    cpus = max(1.0, num_workers * worker_cpus)
    return Demand(cpus=cpus, priority=priority, limit_s=limit_s, preemptible=True)


@function(http=True, resources=Resources(num_cpus=1), timeout_s=None, demand=_demand)
def train_tabular(
    model: TrainedModel,
    training_set: TrainingSet,
    label: Annotated[
        str,
        Field(description="Column that is predicted: 0 and 1, classes or numbers, as `params.task` says."),
    ],
    numeric: Numeric,
    categorical: Categorical,
    params: Annotated[
        TabularParams, Field(description="How the network is built and trained.")
    ] = TabularParams(),  # noqa: B008 - frozen
    *,
    num_workers: NumWorkers = 1,
    worker_cpus: WorkerCpus = 1.0,
    experiment: Experiment = None,
    register: Register = True,
    features: FeatureDigests = None,
    datasets: MoreDatasets = None,
    feature_service: Annotated[
        str | None,
        Field(
            description="Feature service that serves the features by key, kept as a tag; none unless given."
        ),
    ] = None,
    parent: Parent = None,
    tags: Tags = None,
    start_from: Annotated[
        int | None,
        Field(
            ge=1,
            le=1_000_000_000,
            description=(
                "Version of the model with whose weights, preprocessing and target it begins; a lower lr "
                "suits it."
            ),
        ),
    ] = None,
    priority: Priority = 0,  # noqa: ARG001 - its demand reads it
    limit_s: LimitSeconds = None,  # noqa: ARG001 - its demand reads it
) -> Trained:
    """Train the tabular network on a training set and register it as the next version of `model`.

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
