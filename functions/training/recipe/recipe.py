"""Recipes: a user's own network and what it learns from, as a class of the project.

A project's module names its recipes in `RECIPES`, as it names its models in `MODELS`.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from functions.training.errors import TrainingDataError
from registry.models.signature import Signature

if TYPE_CHECKING:
    from torch import nn

    from functions.training.loop.task import Lesson


class Recipe(BaseModel, ABC):
    """A network and what it learns from. The fields of a subclass are its options, such as widths."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @abstractmethod
    def network(self) -> nn.Module:
        """A new network, its random numbers from torch's stream, which is seeded.

        Its arguments are the inputs of the signature. Blocks in a `ModuleList` are what is split among workers one by one.
        """

    @abstractmethod
    def lesson(self) -> Lesson:
        """What it learns from; every worker reads it."""

    @abstractmethod
    def data(self) -> str:
        """What tells its data from others, as a table's version or a digest does: a training is taken up on the same only."""

    @abstractmethod
    def signature(self) -> Signature:
        """What the network takes and gives, with an example of two rows."""


def recipe_of(project: str | None, name: str, options: dict[str, Any]) -> Recipe:
    """The recipe that the project's module names so.

    Raises: TrainingDataError if there is no project, no such recipe, or an option does not fit; ImportError.
    """
    if project is None:
        raise TrainingDataError(
            f"recipe {name!r}: which project's? Set TOQUE_PROJECT to a module with RECIPES"
        )
    known = getattr(importlib.import_module(project), "RECIPES", {})
    if name not in known:
        raise TrainingDataError(f"no recipe {name!r} in {project}.RECIPES, which has {sorted(known)}")
    kind: type[Recipe] = known[name]
    try:
        return kind.model_validate(options)
    except ValidationError as error:
        raise TrainingDataError(f"options={options} do not fit recipe {name!r}: {error}") from error
