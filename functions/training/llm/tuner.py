"""What fine-tunes of any network of `transformers` share: the version they begin with, adapters, and settings; known without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from toque.functions.training.errors import TrainingDataError
from toque.functions.training.params import RecipeParams
from toque.functions.training.splits import Split
from toque.functions.training.trainer import Trainer

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
