"""Trainer of a user's own network, described by a recipe of the project."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from toque.functions.runtime.context import context
from toque.functions.runtime.declaration.digest import digest_of
from toque.functions.training.errors import TrainingDataError
from toque.functions.training.params import RecipeParams
from toque.functions.training.recipe.recipe import Recipe, recipe_of
from toque.functions.training.trained import Trained
from toque.functions.training.trainer import Trainer

if TYPE_CHECKING:
    from toque.functions.training.request import TrainingRequest


class RecipeTrainer(Trainer):
    """Trainer of the network of a recipe, which opens its rows itself.

    recipe: a name in the project's RECIPES; options: its fields; params: how the network is trained. A recipe with the fields
    `training_set` and `label` gets those of the request, so that it can be retrained on newer rows.
    """

    kind: ClassVar[str] = "recipe"

    recipe: str
    options: dict[str, Any] = Field(default_factory=dict)
    params: RecipeParams = RecipeParams()

    def __call__(self, request: TrainingRequest) -> Trained:
        """Train the network and write it as a program."""
        from toque.functions.training.recipe.job import RecipeJob, train_network  # late: torch and Ray Train

        found = self.found()
        known = {"training_set": request.training_set, "label": request.label}
        taken = {name: value for name, value in known.items() if name in type(found).model_fields and value}
        return train_network(RecipeJob(found.model_copy(update=taken), self.params), request)

    @property
    def code(self) -> str:
        """Digest of the recipe's code."""
        return digest_of(type(self.found()))

    @property
    def parameters(self) -> dict[str, Any]:
        """Options of the recipe and settings of its training, by name."""
        return {**self.params.model_dump(), "recipe": self.recipe, **self.options}

    def with_parameters(self, changes: Any) -> RecipeTrainer:
        """Make the trainer with some options or settings changed. Raises: TrainingDataError."""
        own = {name: value for name, value in changes.items() if name in RecipeParams.model_fields}
        options = {**self.options, **{name: value for name, value in changes.items() if name not in own}}
        try:
            params = RecipeParams.model_validate({**self.params.model_dump(), **own})
        except ValueError as error:
            raise TrainingDataError(f"parameters {own} do not fit a recipe: {error}") from error
        return self.model_copy(update={"options": options, "params": params})

    def found(self) -> Recipe:
        """Find the recipe and set its options. Raises: TrainingDataError if the project has none of this name."""
        return recipe_of(context().project, self.recipe, self.options)
