"""Trainers: one function shape, `train(request: TrainingRequest) -> Trained`, for every kind of model.

A trainer reads rows, fits, and writes the model's files into the request's folder. Runs, lineage, registration, cost and
quotas are the platform's, in `toque.functions.training.frame`. A project declares a function of this shape, or a `Trainer`: a value
whose fields are the parameters that sweeps may vary. What it reports, with cost and epochs, is known without torch.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer

from toque.functions.evaluation.meanings import Outcome
from toque.functions.training.cost import Cost
from toque.functions.training.errors import TrainingDataError
from toque.functions.training.splits import Split
from toque.registry.code_digest import digest_of, reference
from toque.registry.models import Signature

if TYPE_CHECKING:
    from toque.functions.training.request import TrainingRequest


class Trained(BaseModel):
    """Result of a training: what the trainer found, completed with run, version and cost by whoever called it.

    A trainer may return `Trained()`: what it leaves out is measured on the rows held out, from the files that it wrote.
    metrics: on the rows held out; best_epoch: the epoch or round that was kept, from 0; rows: learnt from and held out;
    signature: of the files (None: the columns in, and the outcome's answer out). run_id, model, version (None if it was not to
    be registered), seconds from start to registered, cost of this process and all workers: set by the platform.
    stopped: why a sweep ended this trial early, else empty.
    """

    model_config = ConfigDict(frozen=True)

    run_id: str = ""
    model: str = ""
    version: int | None = None
    metrics: dict[str, float] = {}
    best_epoch: int = 0
    rows: int = 0
    seconds: float = 0.0
    cost: Cost | None = None
    signature: Signature | None = None
    stopped: str = ""


@dataclass(frozen=True, slots=True)
class Epoch:
    """Losses and speed of one pass over the training rows; losses a row, of a weighted task a token: nats, or squared deviations for a number.

    units_per_s: speed in the units of a row, such as tokens; busy: share of the time in which no step waited for rows; skipped: steps
    whose gradients were no finite numbers, which changed nothing and whose losses are left out; workers: size of the group at its end.
    """

    number: int
    train_loss: float
    valid_loss: float
    seconds: float
    rows_per_s: float
    units_per_s: dict[str, float] = field(default_factory=dict)
    busy: float = 1.0
    skipped: int = 0
    workers: int = 1


SplitBy = Annotated[
    Split,
    Field(
        description=(
            'Which rows are held out: whole "days" (UTC), drawn over the whole time, its last part ("time"), '
            'or "random" rows.'
        )
    ),
]
Seed = Annotated[
    int, Field(ge=0, le=4_294_967_295, description="Seed of all that is random in the training.")
]
Train = Callable[["TrainingRequest"], Trained]
OnEpoch = Callable[[Epoch], None]


class Trainer(BaseModel, ABC):
    """Trainer that a project declares as a value. The fields of a subclass are its parameters, which runs record and sweeps vary.

    Rows are held out to stop, to calibrate and to measure. Whole days are drawn over the whole time range, so that the
    newest rows are learnt from too. kind: name that stands in the version's tags; data_settings: fields that decide which
    rows are compared, so that no sweep varies them; warm_starts: whether it reads the request's `start_from`, as one of a project
    may: where it does not, such a training is refused; trusted_types: classes that its files name, as scikit-learn's trees.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ClassVar[str] = "trainer"
    data_settings: ClassVar[frozenset[str]] = frozenset({"split", "valid_fraction", "seed"})
    warm_starts: ClassVar[bool] = True
    trusted_types: ClassVar[frozenset[str]] = frozenset()

    split: SplitBy = "days"
    valid_fraction: float = Field(
        default=0.1, gt=0.0, lt=1.0, description="Share of the rows that is held out, in (0, 1)."
    )
    seed: Seed = 0

    @abstractmethod
    def __call__(self, request: TrainingRequest) -> Trained:
        """Learn from the request's rows and write the model's files into its folder. Raises: TrainingError."""

    @classmethod
    def digest(cls) -> str:
        """Digest of the code of this kind of trainer, and of all that it reaches."""
        return _digest_of(cls)

    @property
    def code(self) -> str:
        """Digest of the trainer's code."""
        return type(self).digest()

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters of the trainer, by name."""
        return self.model_dump()

    def with_parameters(self, changes: Mapping[str, Any]) -> Self:
        """Make the trainer with some parameters changed. Raises: TrainingDataError if one is unknown or not allowed."""
        try:
            return type(self).model_validate({**self.model_dump(), **changes})
        except ValidationError as error:
            raise TrainingDataError(
                f"parameters {dict(changes)} do not fit {self.kind!r}: {error}"
            ) from error

    @property
    def first_rung(self) -> int:
        """Epochs or rounds after which a sweep first compares trials: four, since one round of boosting says little."""
        return 4

    def check(self, outcome: Outcome, columns: Mapping[str, tuple[str, ...]]) -> None:
        """Check at declaration that the trainer can learn this outcome from these columns, by kind of input.

        Raises: ValueError, naming what does not fit.
        """

    def for_outcome(self, outcome: Outcome) -> Trainer:  # noqa: ARG002 - of those whose parameters say it
        """Make the trainer for an outcome; the same, unless its parameters say the outcome."""
        return self


class FunctionTrainer(Trainer):
    """Trainer that is a plain function of a project. values: its parameters, as `request.parameters` gives them."""

    kind: ClassVar[str] = "function"

    function: Callable[..., Trained]
    values: dict[str, Any] = Field(default_factory=dict)

    @field_serializer("function")
    def _name(self, function: Callable[..., Trained]) -> str:
        return reference(function)

    def __call__(self, request: TrainingRequest) -> Trained:
        """Call the function with the request."""
        return self.function(request)

    @property
    def code(self) -> str:
        """Digest of the function's code."""
        return _digest_of(self.function)

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters of the trainer, by name."""
        return dict(self.values)

    def with_parameters(self, changes: Mapping[str, Any]) -> Self:
        """Make the trainer with some parameters changed. Raises: TrainingDataError for one that was not declared."""
        unknown = sorted(set(changes) - set(self.values))
        if unknown:
            raise TrainingDataError(
                f"{reference(self.function)} has no parameters {unknown}: declare them with their defaults, "
                f"FunctionTrainer(function=…, values={{…}}); it has {sorted(self.values)}"
            )
        return self.model_copy(update={"values": {**self.values, **changes}})


def as_trainer(given: Any) -> Trainer:
    """Take a trainer as declared, or wrap a plain function. Raises: ValueError for anything else."""
    if isinstance(given, Trainer):
        return given
    if callable(given) and not isinstance(given, type):
        try:
            inspect.signature(given).bind(None)
        except TypeError as error:
            raise ValueError(
                f"trainer {given!r} takes {inspect.signature(given)}: want one argument, a TrainingRequest"
            ) from error
        return FunctionTrainer(function=given)
    raise ValueError(
        f"trainer {given!r} is neither a Trainer, such as XGBoost(), nor a function of a TrainingRequest"
    )


def diverged(epoch: Epoch, lr: float) -> str:
    """Say which loss of an epoch is no finite number, and what to do; empty if both are."""
    for name, loss in (("training", epoch.train_loss), ("validation", epoch.valid_loss)):
        if not math.isfinite(loss):
            return not_finite(name, epoch.number, loss, lr)
    return ""


def not_finite(name: str, epoch: int, loss: float, lr: float) -> str:
    """Say that a loss of an epoch is no finite number, and what to do."""
    return (
        f"the {name} loss of epoch {epoch} is {loss}: training stopped and registered nothing; "
        f"lower lr (now {lr}) or look for extreme values in the features"
    )


@cache
def _digest_of(target: Callable[..., Any]) -> str:
    return digest_of(target)
