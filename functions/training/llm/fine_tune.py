"""The function that fine-tunes a language model, all weights or adapters, and its trainer; known without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from toque.functions.arguments import (
    BroughtEnvironment,
    Card,
    Experiment,
    LimitSeconds,
    NumWorkers,
    Priority,
    Register,
    TrainingSet,
    WorkerCpus,
    WorkerGpus,
)
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Resources
from toque.functions.runtime.function import function
from toque.functions.training.errors import TrainingDataError
from toque.functions.training.frame import TrainingJob, run_training
from toque.functions.training.params import RecipeParams
from toque.functions.training.request import (
    HowSharded,
    MinWorkers,
    SlowWorkers,
    TrainedModel,
    TrainingRequest,
    Workers,
    WorkersPerLayer,
    workers_demand,
)
from toque.functions.training.trainer import SplitBy, Trained, Trainer

_BASE = re.compile(r"(.+)@(\d+)")
_SETTINGS = RecipeParams.model_fields.keys() - {"seed"}  # which is of the trainer too, for the rows


class Lora(BaseModel):
    """Size and strength of low-rank adapters.

    Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(default=8, ge=1, description="Size of the adapters: the rank of their matrices.")
    alpha: float = Field(
        default=16.0,
        gt=0.0,
        description="Strength of the adapters, whose output is multiplied by alpha / rank.",
    )
    dropout: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="Share of an adapter's inputs that a step drops, in [0, 1)."
    )
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        default="all-linear",
        description='Names of the layers that are adapted, or "all-linear" for all linear ones.',
    )


Base = Annotated[
    str,
    Field(
        description="Version to begin with, which is a Hugging Face folder, as model@version.",
        examples=["smollm2@1"],
    ),
]
Adapters = Annotated[
    Lora | None, Field(description="Low-rank adapters that are learnt; null learns all weights.")
]
TuningParams = Annotated[RecipeParams, Field(description="How it is trained.")]


class Tuner(Trainer):
    """Trainer that begins with a version which is a Hugging Face folder; the fields of `params` are parameters of it too."""

    warm_starts: ClassVar[bool] = False  # but from its `base`

    base: Base
    length: int = Field(default=1_024, ge=8, description="Tokens of a row.")
    lora: Adapters = Lora()
    params: TuningParams = RecipeParams(lr=1e-4, epochs=3, batch_size=8)
    split: SplitBy = "random"

    @field_validator("base")
    @classmethod
    def _names_a_version(cls, base: str) -> str:
        if not _BASE.fullmatch(base):
            raise ValueError(f"base={base!r}: name a version of a model, as in 'smollm2@1'")
        return base

    @property
    def base_version(self) -> tuple[str, int]:
        """Name and number of the version to begin with."""
        name, number = self.base.rsplit("@", 1)
        return name, int(number)

    @property
    def first_rung(self) -> int:
        """A fine-tune has few epochs, each of which says much: trials are compared after the first, unless it is the last."""
        return 1 if self.params.epochs > 1 else super().first_rung

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters of the trainer, and settings of its training, by name."""
        return {**self.params.model_dump(exclude={"seed"}), **self.model_dump(exclude={"params"})}

    def with_parameters(self, changes: Mapping[str, Any]) -> Self:
        """Make the trainer with some parameters or settings changed. Raises: TrainingDataError."""
        settings = {name: value for name, value in changes.items() if name in _SETTINGS}
        others = {name: value for name, value in changes.items() if name not in settings}
        try:
            params = RecipeParams.model_validate({**self.params.model_dump(), **settings})
            return type(self).model_validate({**self.model_dump(), "params": params, **others})
        except ValidationError as error:
            raise TrainingDataError(
                f"parameters {dict(changes)} do not fit {self.kind!r}: {error}"
            ) from error


class Preference(BaseModel):
    """Objective of preferring the chosen of two answers (DPO).

    Source: Rafailov et al., Direct Preference Optimization, 2023.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    beta: float = Field(
        default=0.1,
        gt=0.0,
        description="How dear it is to leave the base: the higher, the closer the model stays to it.",
    )


TextColumn = Annotated[
    Literal["messages", "text"],
    Field(
        description=(
            'Column of the training set: "messages", conversations in JSON whose answers are learnt, or '
            '"text", learnt whole.'
        )
    ),
]
Preferred = Annotated[
    Preference | None,
    Field(
        description=(
            'Learns to prefer the text in the column "chosen" to that in "rejected" as the answer to the '
            "messages, if given."
        )
    ),
]


class FineTune(Tuner):
    """Trainer of a causal language model from one that is a version of a Hugging Face folder.

    Texts are packed into rows end to end. Those longer than a row are cut into pieces, all of which are learnt; of
    longer conversations the beginning is, and the run's `answers_beyond_length` counts the others.
    """

    kind: ClassVar[str] = "fine_tune"
    data_settings: ClassVar[frozenset[str]] = Tuner.data_settings | {"column", "length", "base"}

    column: TextColumn = "messages"
    preference: Preferred = None

    @model_validator(mode="after")
    def _prefers_answers(self) -> Self:
        if self.preference is not None and self.column != "messages":
            raise ValueError(f"preference with column={self.column!r}: it compares answers to messages")
        return self

    def __call__(self, request: TrainingRequest) -> Trained:
        """Fine-tune the model and write it as a Hugging Face folder."""
        from toque.functions.training.llm.job import train_model  # late: torch, transformers and Ray Train

        if request.training_set is None:
            raise TrainingDataError(
                f"model {request.model!r} needs a training set with a column {self.column!r}"
            )
        if self.lora is not None and request.workers.tensor > 1:
            raise TrainingDataError(
                f"tensor={request.workers.tensor} with lora: adapters of layers that are split are not there; pass lora=None, or "
                "leave tensor out"
            )
        return train_model(self, request)


@function(http=True, resources=Resources(num_cpus=1), timeout_s=None, demand=workers_demand)
def fine_tune(
    model: TrainedModel,
    base: Base,
    training_set: TrainingSet,
    *,
    column: TextColumn = "messages",
    length: Annotated[
        int,
        Field(ge=8, description="Tokens of a row; texts are packed end to end, and longer ones are cut."),
    ] = 1_024,
    lora: Adapters = Lora(),  # noqa: B008 - frozen
    preference: Preferred = None,
    params: TuningParams = RecipeParams(lr=1e-4, epochs=3, batch_size=8),  # noqa: B008 - frozen
    num_workers: NumWorkers = 1,
    min_workers: MinWorkers = None,
    slow_workers: SlowWorkers = "name",
    worker_cpus: WorkerCpus = 1.0,
    worker_gpus: WorkerGpus = 0.0,
    sharding: HowSharded = "replicate",
    tensor: WorkersPerLayer = 1,
    experiment: Experiment = None,
    register: Register = True,
    priority: Priority = 0,  # noqa: ARG001 - its demand reads it
    card: Card = None,
    limit_s: LimitSeconds = None,  # noqa: ARG001 - its demand reads it
    environment: BroughtEnvironment = None,
) -> Trained:
    """Fine-tune the causal language model `base` and register the result as the next version of `model`.

    The version is a Hugging Face folder: adapters are merged into its weights. Of conversations longer than a row the
    beginning is learnt, see `FineTune`. An interrupted training resumes at its last checkpoint when it is called again.
    Raises: TrainingDataError, also for adapters with `tensor`; TrainingDiverged; the run is then FAILED and nothing is registered.
    """
    trainer = FineTune(
        base=base, column=column, length=length, lora=lora, preference=preference, params=params
    )
    job = TrainingJob(
        model=model,
        trainer=trainer,
        code=trainer.code,
        training_set=training_set,
        workers=Workers(
            num_workers, worker_cpus, worker_gpus, sharding, card, min_workers, tensor, slow_workers
        ),
        experiment=experiment,
        params={"num_workers": num_workers, "sharding": sharding, "tensor": tensor},
        tags={"base": base},
        register=register,
        environment=environment,
    )
    return run_training(context().registry(), job, context().prices)
