"""The function that trains a model of the project by its declared trainer, whatever kind that is."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated, Any, Protocol

from pydantic import Field

from toque.functions.arguments import (
    BroughtEnvironment,
    Card,
    Experiment,
    LimitSeconds,
    NumWorkers,
    Priority,
    Register,
    Tags,
    TrainingSet,
    WorkerCpus,
    WorkerGpus,
)
from toque.functions.evaluation.meanings import Outcome
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Demand, Resources
from toque.functions.runtime.definitions import model_definition
from toque.functions.runtime.function import function
from toque.functions.training.frame import TrainingJob, run_training
from toque.functions.training.request import (
    FeatureDigests,
    HowSharded,
    MinWorkers,
    MoreDatasets,
    Parent,
    SlowWorkers,
    Workers,
    WorkersPerLayer,
    workers_demand,
)
from toque.functions.training.trainer import Trained, Trainer
from toque.registry import ModelPolicy, TableSnapshot

PARAMETERS_TAG = "parameters"
"""Tag of a version with the parameters that it was trained with beside those of the definition, as JSON."""


# ruff: noqa: D102 — the attributes are those of ModelDefinition, which explains them
class TrainableModel(Protocol):
    """Definition of a model as a training reads it; `toque.functions.project.ModelDefinition` has all of it."""

    @property
    def name(self) -> str: ...
    @property
    def service(self) -> str | None: ...
    @property
    def label(self) -> str: ...
    @property
    def numeric(self) -> tuple[str, ...]: ...
    @property
    def categorical(self) -> tuple[str, ...]: ...
    @property
    def tensors(self) -> tuple[str, ...]: ...
    @property
    def outcome(self) -> Outcome: ...
    @property
    def group(self) -> str: ...
    @property
    def learner(self) -> Trainer: ...
    @property
    def tags(self) -> dict[str, str]: ...
    @property
    def governance(self) -> ModelPolicy: ...


def _demand(**arguments: Any) -> Demand:
    """Demand of a training by any trainer, of which not all save their state when they are asked to yield."""
    return replace(workers_demand(**arguments), preemptible=False)


@function(http=True, resources=Resources(num_cpus=1), timeout_s=None, demand=_demand)
def train_model(
    model: Annotated[
        str, Field(description="Name of a model that the project defines, whose next version is trained.")
    ],
    training_set: TrainingSet,
    *,
    parameters: Annotated[
        dict[str, Any] | None,
        Field(
            description=(
                "Changes to the trainer's parameters, kept with the version, so that retraining uses them "
                "again."
            )
        ),
    ] = None,
    num_workers: NumWorkers = 1,
    min_workers: MinWorkers = None,
    slow_workers: SlowWorkers = "name",
    worker_cpus: WorkerCpus = 1.0,
    worker_gpus: WorkerGpus = 0.0,
    sharding: HowSharded = "replicate",
    tensor: WorkersPerLayer = 1,
    experiment: Experiment = None,
    register: Register = True,
    features: FeatureDigests = None,
    datasets: MoreDatasets = None,
    parent: Parent = None,
    tags: Tags = None,
    start_from: Annotated[
        int | None,
        Field(
            ge=1,
            le=1_000_000_000,
            description="Version of the model that the trainer begins with, refused if it cannot; none unless given.",
        ),
    ] = None,
    priority: Priority = 0,  # noqa: ARG001 - its demand reads it
    card: Card = None,
    limit_s: LimitSeconds = None,  # noqa: ARG001 - its demand reads it
    environment: BroughtEnvironment = None,
) -> Trained:
    """Train a model of the project on a training set by its declared trainer, and register it as the next version.

    Several workers train the tabular network, a recipe or a fine-tune; other trainers have one.
    Raises: ProjectError if the project does not define the model; TrainingError; the run is then FAILED, nothing is registered.
    """
    definition: TrainableModel = model_definition(context().project, model)
    job = job_of(
        definition,
        training_set,
        parameters or {},
        workers=Workers(
            num_workers, worker_cpus, worker_gpus, sharding, card, min_workers, tensor, slow_workers
        ),
        experiment=experiment,
        register=register,
        features=features or {},
        datasets=tuple(datasets or ()),
        parent=parent,
        start_from=start_from,
        tags=tags or {},
        environment=environment,
    )
    return run_training(context().registry(), job, context().prices)


@function(resources=Resources(num_cpus=1), timeout_s=None)
def train_declared(
    definition: Annotated[Any, Field(description="Definition of the model, a `TrainableModel`.")],
    training_set: TrainingSet,
    *,
    parameters: Annotated[
        dict[str, Any],
        Field(description="Changes to the trainer's parameters, kept with the version; may be empty."),
    ],
    features: Annotated[
        dict[str, str],
        Field(
            description=(
                "Digests of the definitions of the feature views that were used, by view, for the lineage."
            )
        ),
    ],
    datasets: Annotated[
        list[TableSnapshot], Field(description="Tables used beside the training set, for the lineage.")
    ],
    parent: Annotated[
        int | None,
        Field(
            ge=1,
            le=1_000_000_000,
            description="Version that the new one challenges, for the lineage; null for none.",
        ),
    ],
    tags: Annotated[dict[str, str], Field(description="Tags of the run and of the version, by key.")],
) -> Trained:
    """Train a version by a definition that is at hand, as `train_model` does by its name."""
    job = job_of(
        definition,
        training_set,
        parameters,
        features=features,
        datasets=tuple(datasets),
        parent=parent,
        tags=tags,
    )
    return run_training(context().registry(), job, context().prices)


def job_of(
    definition: TrainableModel,
    training_set: TableSnapshot,
    parameters: dict[str, Any],
    *,
    tags: dict[str, str],
    **others: Any,
) -> TrainingJob:
    """Make the job of training a defined model with changed parameters. Raises: TrainingDataError for unknown ones."""
    trainer = definition.learner.with_parameters(parameters) if parameters else definition.learner
    changed = {PARAMETERS_TAG: json.dumps(parameters, sort_keys=True)} if parameters else {}
    served = {"feature_service": definition.service} if definition.service else {}
    return TrainingJob(
        model=definition.name,
        trainer=trainer,
        code=trainer.code,
        label=definition.label,
        numeric=definition.numeric,
        categorical=definition.categorical,
        tensors=definition.tensors,
        outcome=definition.outcome,
        group=definition.group,
        training_set=training_set,
        policy=definition.governance,
        params={"label": definition.label},
        tags={**definition.tags, **served, **changed, **tags},
        **others,
    )
