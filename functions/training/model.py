"""The function that trains a model of the project by its declared trainer, whatever kind that is."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Protocol

from toque.functions.evaluation.meanings import Outcome
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Demand, Resources
from toque.functions.runtime.definitions import model_definition
from toque.functions.runtime.environments import Environment
from toque.functions.runtime.function import function
from toque.functions.training.frame import TrainingJob, run_training
from toque.functions.training.request import Sharding, SlowPolicy, Workers, workers_demand
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
    model: str,
    training_set: TableSnapshot,
    *,
    parameters: dict[str, Any] | None = None,
    num_workers: int = 1,
    min_workers: int | None = None,
    slow_workers: SlowPolicy = "name",
    worker_cpus: float = 1.0,
    worker_gpus: float = 0.0,
    sharding: Sharding = "replicate",
    tensor: int = 1,
    experiment: str | None = None,
    register: bool = True,
    features: dict[str, str] | None = None,
    datasets: list[TableSnapshot] | None = None,
    parent: int | None = None,
    tags: dict[str, str] | None = None,
    start_from: int | None = None,
    priority: int = 0,  # noqa: ARG001 - its demand reads it
    card: str | None = None,
    limit_s: float | None = None,  # noqa: ARG001 - its demand reads it
    environment: Environment | None = None,
) -> Trained:
    """Train a model of the project on a training set by its declared trainer, and register it as the next version.

    parameters: changes to those of the trainer, kept with the version so that retraining uses them again; num_workers: 1 trains
    here, more (of the tabular network, a recipe or a fine-tune) train on the Ray cluster with `worker_cpus` and `worker_gpus` each;
    min_workers, slow_workers, sharding, tensor, card: as in `train_recipe`; experiment:
    where the run is tracked (default: the model's name); features, datasets, parent: lineage beside the training set;
    start_from: a version that the trainer begins with, if it can. priority: of a submitted call in the queue of experiments; limit_s: its
    longest run time, None for as long as it takes; environment: packages and variables that its processes have, if the profile
    allows them.
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
    definition: Any,
    training_set: TableSnapshot,
    *,
    parameters: dict[str, Any],
    features: dict[str, str],
    datasets: list[TableSnapshot],
    parent: int | None,
    tags: dict[str, str],
) -> Trained:
    """Train a version by a definition that is at hand, a `TrainableModel`, as `train_model` does by its name."""
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
