"""Settings of fine-tunes: the version to begin with, adapters, texts and preferences; known without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from toque.functions.training.errors import TrainingDataError
from toque.functions.training.params import RecipeParams, weights_depend_on
from toque.functions.training.trainer import SplitBy, Trainer

_BASE = re.compile(r"(.+)@(\d+)")
_SETTINGS = RecipeParams.model_fields.keys() - {"seed"}  # which is of the trainer too, for the rows


class Lora(BaseModel):
    """Size and strength of low-rank adapters.

    Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(
        le=65_536, default=8, ge=1, description="Size of the adapters: the rank of their matrices."
    )
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

    def checkpoint_key(self, **more: Any) -> dict[str, Any]:
        """Everything that the weights depend on, as JSON. more: of which rows they are learnt, and how."""
        return {
            "base": self.base,
            "lora": self.lora.model_dump(mode="json") if self.lora else None,
            "params": weights_depend_on(self.params),
            "code": self.code,
            **more,
        }

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


class FineTuneSettings(Tuner):
    """What a causal language model learns, and from which texts; `FineTune` trains by it."""

    column: TextColumn = "messages"
    preference: Preferred = None

    @model_validator(mode="after")
    def _prefers_answers(self) -> Self:
        if self.preference is not None and self.column != "messages":
            raise ValueError(f"preference with column={self.column!r}: it compares answers to messages")
        return self
