"""A user's project: a module with `FEATURES` and `MODELS`, and nothing else that the platform needs to know.

A model's definition says, in one value, what it learns from, what it has to prove, how it is watched, and how its successors
are rolled out. Values only: whoever has other data changes definitions, not the platform.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from functions.alerting import AlertPolicy
from functions.evaluation import Gate
from functions.monitoring import (
    DriftMonitor,
    EstimateMonitor,
    OperationsMonitor,
    PerformanceMonitor,
    QualityMonitor,
    SkewMonitor,
    VectorMonitor,
)
from functions.placement import Placement
from functions.retraining.policy import RetrainingPolicy
from functions.rollout import RolloutPolicy
from functions.training import TabularParams
from registry import ModelPolicy

Monitor = Annotated[
    PerformanceMonitor
    | DriftMonitor
    | QualityMonitor
    | EstimateMonitor
    | OperationsMonitor
    | SkewMonitor
    | VectorMonitor,
    Field(discriminator="kind"),
]


class ProjectError(ValueError):
    """The project's module does not say what it must; the message says what and where."""


class ModelDefinition(BaseModel):
    """One model of a project.

    service: the feature service it reads. entities: the table of what is asked about (join keys, `event_timestamp`, the label,
    `label_known_at`). label: a column of that table. numeric, categorical: the features, in the order of its tensors.
    training: of the default network. gate: what a version must prove before users meet it.
    monitors: at most one of each kind; none: not watched. alerts: who is told of what they find; None: nobody.
    rollout, retraining: the rules for challengers.
    governance: what the registry demands of a version that goes live.
    inspect: cron expression of the daily (or other) inspection, on the platform's clock.
    placement: in how many replicas it is served, or in the pool.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    service: str
    entities: str
    label: str
    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    training: TabularParams = TabularParams()
    gate: Gate = Gate()
    monitors: tuple[Monitor, ...] = (PerformanceMonitor(), DriftMonitor(), QualityMonitor())
    alerts: AlertPolicy | None = None
    rollout: RolloutPolicy = RolloutPolicy()
    retraining: RetrainingPolicy | None = RetrainingPolicy()
    governance: ModelPolicy = ModelPolicy(guarded=frozenset({"champion"}), gates=("offline",))
    inspect: str = "0 6 * * *"
    placement: Placement = Placement()
    tags: dict[str, str] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        features = [*self.numeric, *self.categorical]
        if not features:
            raise ValueError(f"model {self.name!r} has no features; name some in numeric or categorical")
        twice = sorted({name for name in features if features.count(name) > 1})
        if twice or self.label in features:
            raise ValueError(
                f"model {self.name!r}: {twice or self.label} stands twice among features and label"
            )
        kinds = [monitor.kind for monitor in self.monitors]
        if len(set(kinds)) < len(kinds):
            raise ValueError(
                f"model {self.name!r} has several monitors of one kind: {kinds}; keep one of each"
            )
        return self

    @property
    def performance(self) -> PerformanceMonitor | None:
        """The monitor of realised loss, or None."""
        return next((one for one in self.monitors if isinstance(one, PerformanceMonitor)), None)

    @property
    def drift(self) -> DriftMonitor | None:
        """The monitor of drift, or None."""
        return next((one for one in self.monitors if isinstance(one, DriftMonitor)), None)

    @property
    def quality(self) -> QualityMonitor | None:
        """The monitor of data quality, or None."""
        return next((one for one in self.monitors if isinstance(one, QualityMonitor)), None)

    @property
    def estimate(self) -> EstimateMonitor | None:
        """The monitor that estimates performance before labels are there, or None."""
        return next((one for one in self.monitors if isinstance(one, EstimateMonitor)), None)

    @property
    def skew(self) -> SkewMonitor | None:
        """The monitor of training–serving skew, or None."""
        return next((one for one in self.monitors if isinstance(one, SkewMonitor)), None)

    @property
    def vectors(self) -> VectorMonitor | None:
        """The monitor of embeddings and texts, or None."""
        return next((one for one in self.monitors if isinstance(one, VectorMonitor)), None)

    @property
    def operations(self) -> OperationsMonitor | None:
        """The monitor of latency, errors, saturation and cost, or None."""
        return next((one for one in self.monitors if isinstance(one, OperationsMonitor)), None)


@dataclass(frozen=True, slots=True)
class Project:
    """What a project's module declares. features: entities, views and services, in the order in which to apply them."""

    module: str
    features: tuple[Any, ...]
    models: dict[str, ModelDefinition]

    def model(self, name: str) -> ModelDefinition:
        """The definition of `name`. Raises: ProjectError, naming what there is."""
        if name not in self.models:
            raise ProjectError(
                f"{self.module}.MODELS has no {name!r}; it has {sorted(self.models) or 'none'}"
            )
        return self.models[name]


def load_project(module: str | None) -> Project:
    """Import a project by the name of its module; one that declares neither FEATURES nor MODELS has functions only.

    Raises: ProjectError if there is none, it cannot be imported, or it declares one of them and not the other.
    """
    if not module:
        raise ProjectError("no project is set; set TOQUE_PROJECT to its module, as in 'examples.flights'")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise  # the project itself was found and misses something else: that message says more
        raise ProjectError(f"no module {module!r}; TOQUE_PROJECT names a module on sys.path") from error
    if not (hasattr(found, "FEATURES") or hasattr(found, "MODELS")):
        return Project(module, (), {})
    features, models = getattr(found, "FEATURES", None), getattr(found, "MODELS", None)
    if not isinstance(features, list | tuple) or not isinstance(models, list | tuple):
        raise ProjectError(
            f"{module} must declare FEATURES (a list of definitions) and MODELS (a list of ModelDefinition)"
        )
    return Project(module, tuple(features), _by_name(module, models))


def _by_name(module: str, models: list[Any] | tuple[Any, ...]) -> dict[str, ModelDefinition]:
    named: dict[str, ModelDefinition] = {}
    for one in models:
        if not isinstance(one, ModelDefinition):
            raise ProjectError(f"{module}.MODELS holds {one!r}, which is no ModelDefinition")
        if one.name in named:
            raise ProjectError(f"{module}.MODELS has two models called {one.name!r}; rename one")
        named[one.name] = one
    return named
