"""The function that fine-tunes a language model, all weights or adapters, and its trainer; known without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Resources
from toque.functions.runtime.environments import Environment
from toque.functions.runtime.function import function
from toque.functions.training.errors import TrainingDataError
from toque.functions.training.frame import TrainingJob, run_training
from toque.functions.training.params import RecipeParams
from toque.functions.training.request import SlowPolicy, TrainingRequest, Workers, workers_demand
from toque.functions.training.splits import Split
from toque.functions.training.trainer import Trained, Trainer
from toque.registry import TableSnapshot

_BASE = re.compile(r"(.+)@(\d+)")
_SETTINGS = RecipeParams.model_fields.keys() - {"seed"}  # which is of the trainer too, for the rows


class Lora(BaseModel):
    """Size and strength of low-rank adapters. rank, alpha: size, and strength (alpha / rank); targets: names of layers, or "all-linear".

    Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0.0)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"


class Tuner(Trainer):
    """Trainer that begins with a version, as "name@3", which is a Hugging Face folder.

    length: tokens of a row; lora: None trains all weights; params: how it is trained, whose fields are parameters of the trainer.
    """

    base: str
    length: int = Field(default=1_024, ge=8)
    lora: Lora | None = Lora()
    params: RecipeParams = RecipeParams(lr=1e-4, epochs=3, batch_size=8)
    split: Split = "random"

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
    """Objective of preferring the chosen of two answers (DPO). beta: how dear it is to leave the base.

    Source: Rafailov et al., Direct Preference Optimization, 2023.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    beta: float = Field(default=0.1, gt=0.0)


class FineTune(Tuner):
    """Trainer of a causal language model from one that is a version, as "name@3", of a Hugging Face folder.

    column: of the training set: "messages" are conversations in JSON, of which the answers are learnt; "text" is learnt whole.
    length: tokens of a row; texts are packed into rows end to end. Longer ones are cut into pieces, all of which are learnt; of longer
    conversations the beginning is, and the run's `answers_beyond_length` counts the others. lora: None trains all weights.
    preference: learn to prefer the text in the column "chosen" to that in "rejected" as the answer to the messages.
    """

    kind: ClassVar[str] = "fine_tune"
    data_settings: ClassVar[frozenset[str]] = Tuner.data_settings | {"column", "length", "base"}

    column: Literal["messages", "text"] = "messages"
    preference: Preference | None = None

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
    model: str,
    base: str,
    training_set: TableSnapshot,
    *,
    column: Literal["messages", "text"] = "messages",
    length: int = 1_024,
    lora: Lora | None = Lora(),  # noqa: B008 - frozen
    preference: Preference | None = None,
    params: RecipeParams = RecipeParams(lr=1e-4, epochs=3, batch_size=8),  # noqa: B008 - frozen
    num_workers: int = 1,
    min_workers: int | None = None,
    slow_workers: SlowPolicy = "name",
    worker_cpus: float = 1.0,
    worker_gpus: float = 0.0,
    sharding: Literal["replicate", "shard"] = "replicate",
    tensor: int = 1,
    experiment: str | None = None,
    register: bool = True,
    priority: int = 0,  # noqa: ARG001 - its demand reads it
    card: str | None = None,
    limit_s: float | None = None,  # noqa: ARG001 - its demand reads it
    environment: Environment | None = None,
) -> Trained:
    """Fine-tune the causal language model `base`, as "name@3", and register the result as the next version of `model`.

    column, length, lora, preference: see `FineTune`; the other arguments are those of `train_recipe`. The version is a Hugging Face folder:
    adapters are merged into its weights. An interrupted training resumes at its last checkpoint when it is called again.
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
