"""Project of a user: a module that declares `FEATURES` and `MODELS`, all that the platform needs to know of it.

A model's definition says, in one value, what the model learns from, what it has to prove, how it is watched, and how its
successors are rolled out. Definitions are values only: other data needs other definitions, and no change of the platform.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, model_validator

from toque.functions.alerting import AlertPolicy
from toque.functions.evaluation.gate import Gate
from toque.functions.evaluation.meanings import MEANINGS, Loss, Outcome
from toque.functions.monitoring import (
    AnswerMonitor,
    DriftMonitor,
    EstimateMonitor,
    OperationsMonitor,
    PerformanceMonitor,
    QualityMonitor,
    SkewMonitor,
    VectorMonitor,
)
from toque.functions.placement import Placement
from toque.functions.retraining.policy import RetrainingPolicy
from toque.functions.rollout import RolloutPolicy
from toque.functions.runtime.definitions import ProjectError, declarations, pick
from toque.functions.training import TabularParams
from toque.functions.training.trainer import Trainer, as_trainer
from toque.registry import ModelPolicy

_Kind = TypeVar("_Kind")

Monitor = Annotated[
    PerformanceMonitor
    | DriftMonitor
    | QualityMonitor
    | EstimateMonitor
    | OperationsMonitor
    | SkewMonitor
    | VectorMonitor
    | AnswerMonitor,
    Field(discriminator="kind"),
]


class ModelDefinition(BaseModel):
    """Definition of one model of a project.

    service: the feature service it reads; None: all features are columns of the entities. entities: the table of entities that
    predictions are about (join keys, `event_timestamp`, the label, `label_known_at`). label: a column of that table.
    numeric, categorical: the features, in the order of its tensors; tensors: columns of lists of numbers, such as the pixels of an
    image, each an input of its own. outcome: what the label is: 0 or 1 (binary), one of several classes, or another (docs/outcomes.md).
    group: of a ranking, the column that names the request in which a row is an item.
    trainer: how versions are made: a `Trainer`, such as `XGBoost(max_depth=4)`, or a function of a `TrainingRequest`; None: the
    tabular network with the parameters `training`. gate: what a version must prove before users meet it.
    monitors: at most one of each kind; empty: not watched. alerts: where alarms are sent; None: nowhere.
    rollout, retraining: the rules for challengers.
    governance: what the registry demands of a version that goes live.
    inspect: cron expression of the daily (or other) inspection, on the platform's clock.
    placement: in how many replicas it is served, or in the pool.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    service: str | None = None
    entities: str
    label: str
    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    outcome: Outcome = "binary"
    group: str = ""
    training: TabularParams = TabularParams()
    trainer: Annotated[SerializeAsAny[Trainer], BeforeValidator(as_trainer)] | None = None
    gate: Gate = Gate()
    monitors: tuple[Monitor, ...] = (PerformanceMonitor(), DriftMonitor(), QualityMonitor())
    alerts: AlertPolicy | None = None
    rollout: RolloutPolicy = RolloutPolicy()
    retraining: RetrainingPolicy | None = RetrainingPolicy()
    governance: ModelPolicy = ModelPolicy(guarded=frozenset({"champion"}), gates=("offline",))
    inspect: str = "0 6 * * *"
    placement: Placement = Placement()
    tags: dict[str, str] = {}

    @model_validator(mode="before")
    @classmethod
    def _outcome_of_the_task(cls, given: Any) -> Any:
        """Take the outcome from the task of the tabular network where it is not named, as definitions of before do."""
        if not isinstance(given, dict) or "outcome" in given:
            return given
        made_by = given.get("trainer") or given.get("training")
        return {**given, "outcome": made_by.outcome} if isinstance(made_by, TabularParams) else given

    @model_validator(mode="after")
    def _trusting_its_trainer(self) -> Self:
        """Let the policy trust the types that the declared trainer writes, since the project's code is trusted."""
        types = self.governance.trusted_types | (self.trainer.trusted_types if self.trainer else frozenset())
        if types != self.governance.trusted_types:
            # pydantic offers no other way to complete a frozen value
            object.__setattr__(
                self, "governance", self.governance.model_copy(update={"trusted_types": types})
            )
        return self

    @model_validator(mode="after")
    def _of_its_outcome(self) -> Self:
        """Take the losses of the outcome where none are named, and refuse what has no meaning for it."""
        for name, value in with_loss_of(self.outcome, self.rollout, self.monitors).items():
            object.__setattr__(self, name, value)  # as above
        wrong = meaningless(self.outcome, self.gate, self.rollout, self.monitors)
        if wrong:
            raise ValueError(
                f"model {self.name!r}: its outcome is {self.outcome!r}, for which these have no meaning: {'; '.join(wrong)}"
            )
        return self

    @model_validator(mode="after")
    def _judged_by_request(self) -> Self:
        """Check that a ranking names its column of requests, and that nothing else does."""
        if (self.outcome == "ranking") != bool(self.group):
            remedy = "leave group out" if self.group else "name the column of requests, group=…"
            raise ValueError(
                f"model {self.name!r}: outcome={self.outcome!r} and group={self.group!r}; {remedy}"
            )
        return self

    @model_validator(mode="after")
    def _trained_by_one(self) -> Self:
        """Check that one trainer is declared, and that it can learn the outcome from the features."""
        if self.trainer is not None and "training" in self.model_fields_set:
            raise ValueError(
                f"model {self.name!r} declares training, which is of the tabular network, and the trainer {self.trainer.kind!r}; "
                "leave one out"
            )
        made_by = self.trainer or self.training
        if (
            isinstance(made_by, TabularParams)
            and "task" in made_by.model_fields_set
            and made_by.outcome != self.outcome
        ):
            raise ValueError(
                f"model {self.name!r}: outcome={self.outcome!r} but task={made_by.task!r}; leave the task out"
            )
        try:
            made_by.check(
                self.outcome,
                {"numeric": self.numeric, "categorical": self.categorical, "tensors": self.tensors},
            )
        except ValueError as error:
            raise ValueError(f"model {self.name!r}: {error}") from error
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        features = [*self.numeric, *self.categorical, *self.tensors]
        if not features:
            raise ValueError(
                f"model {self.name!r} has no features; name some in numeric, categorical or tensors"
            )
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
    def learner(self) -> Trainer:
        """Trainer of the model: the declared one, or the tabular network for its outcome."""
        return (self.trainer or self.training).for_outcome(self.outcome)

    @property
    def performance(self) -> PerformanceMonitor | None:
        """The monitor of realised loss, if declared."""
        return self._monitor(PerformanceMonitor)

    @property
    def drift(self) -> DriftMonitor | None:
        """The monitor of feature drift, if declared."""
        return self._monitor(DriftMonitor)

    @property
    def quality(self) -> QualityMonitor | None:
        """The monitor of data quality, if declared."""
        return self._monitor(QualityMonitor)

    @property
    def estimate(self) -> EstimateMonitor | None:
        """The monitor that estimates performance before labels arrive, if declared."""
        return self._monitor(EstimateMonitor)

    @property
    def skew(self) -> SkewMonitor | None:
        """The monitor of training–serving skew, if declared."""
        return self._monitor(SkewMonitor)

    @property
    def vectors(self) -> VectorMonitor | None:
        """The monitor of embeddings and texts, if declared."""
        return self._monitor(VectorMonitor)

    @property
    def answers(self) -> AnswerMonitor | None:
        """The monitor of drift of answers, if declared."""
        return self._monitor(AnswerMonitor)

    @property
    def operations(self) -> OperationsMonitor | None:
        """The monitor of latency, errors, saturation and cost, if declared."""
        return self._monitor(OperationsMonitor)

    def _monitor(self, kind: type[_Kind]) -> _Kind | None:
        return next((monitor for monitor in self.monitors if isinstance(monitor, kind)), None)


@dataclass(frozen=True, slots=True)
class Project:
    """Everything a project's module declares.

    features: entities, views and services, in the order in which to apply them.
    """

    module: str
    features: tuple[Any, ...]
    models: dict[str, ModelDefinition]

    def model(self, name: str) -> ModelDefinition:
        """Find the definition of one model. Raises: ProjectError, naming the models there are."""
        return pick(self.models, name, self.module)


def load_project(module: str | None) -> Project:
    """Import a project by the name of its module; one that declares neither FEATURES nor MODELS has functions only.

    Raises: ProjectError if none is set, it cannot be imported, declares one of them and not the other, or holds a model that
    is no ModelDefinition.
    """
    declared = declarations(module)
    for definition in declared.models.values():
        if not isinstance(definition, ModelDefinition):
            raise ProjectError(f"{module}.MODELS holds {definition!r}, which is no ModelDefinition")
    return Project(declared.module, declared.features, declared.models)


def with_loss_of(outcome: Outcome, rollout: RolloutPolicy, monitors: Sequence[Any]) -> dict[str, Any]:
    """Set the loss of an outcome wherever none was named; returns the fields of a definition that change."""
    loss = MEANINGS[outcome].losses[0]
    changed = tuple(_with_loss(each, loss) for each in monitors)
    return {"rollout": _with_loss(rollout, loss), "monitors": changed}


_NEEDS: dict[Loss, str] = {
    "log_loss": "probabilities",
    "squared_error": "one number a row",
    "poisson_deviance": "a rate of counts",
    "ndcg_loss": "a score for each item of a request",
    "cosine_distance": "a vector for each row",
    "euclidean_distance": "a vector for each row",
    "edit_distance": "a text for each row",
    "token_distance": "a text for each row",
    "mismatch": "a text for each row",
}


def meaningless(outcome: Outcome, gate: Gate, rollout: RolloutPolicy, monitors: Sequence[Any]) -> list[str]:
    """Name the settings that have no meaning for an outcome, each with what to do about it."""
    meaning = MEANINGS[outcome]
    found = [f"gate.{name}: {remedy}" for name, remedy in gate.unmeasurable(outcome).items()]
    for where, each in [("rollout", rollout), *((f"monitor {each.kind!r}", each) for each in monitors)]:
        loss = getattr(each, "loss", meaning.losses[0])
        if loss not in meaning.losses:
            found.append(f"{where}: loss={loss!r}, which needs {_NEEDS[loss]}: use {meaning.losses[0]!r}")
    refused = {aspect.removeprefix("monitor."): text for aspect, text in meaning.refused.items()}
    found += [f"monitor {each.kind!r}: {refused[each.kind]}" for each in monitors if each.kind in refused]
    return found


def _with_loss(settings: Any, loss: Loss) -> Any:
    if (
        "loss" not in type(settings).model_fields
        or "loss" in settings.model_fields_set
        or settings.loss == loss
    ):
        return settings
    return settings.model_copy(update={"loss": loss})


__all__ = ["ModelDefinition", "Monitor", "Project", "ProjectError", "load_project"]
