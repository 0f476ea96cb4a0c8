"""Recipes of a project, each a class that names a network and the task it learns.

A project's module names its recipes in `RECIPES`, as it names its models in `MODELS`.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.errors import PydanticInvalidForJsonSchema

from toque.functions.runtime.declaration.http_types import reaching_fields
from toque.functions.training.errors import TrainingDataError
from toque.registry.models import Signature

if TYPE_CHECKING:
    from torch import nn

    from toque.functions.training.loop.first_weights import FirstWeights
    from toque.functions.training.loop.task import LearningTask


class Recipe(BaseModel, ABC):
    """Network of a project and the task it learns. The fields of a subclass are its options, such as widths."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @abstractmethod
    def network(self) -> nn.Module:
        """Make a new network, with random numbers from torch's stream, which is seeded.

        Its arguments are the inputs of the signature. Blocks in a `ModuleList` are split among workers one by one.
        """

    def weights(self, seed: int) -> FirstWeights | None:  # noqa: ARG002 - of those that have a source
        """Source of the first weights, for a network larger than a worker: it is then built without memory and filled in shards.

        None: `network()` sets them itself, in the memory of each worker.
        """
        return None

    @abstractmethod
    def task(self) -> LearningTask:
        """Open the rows to learn from, with their loss; called in every worker."""

    @abstractmethod
    def data(self) -> str:
        """Identity of the data, such as a table's version or a digest: a training resumes on the same data only."""

    @abstractmethod
    def signature(self) -> Signature:
        """Signature of the network with inputs, outputs and an example of two rows."""


def recipe_of(project: str | None, name: str, options: dict[str, Any]) -> Recipe:
    """Find a recipe of the project by its name, and set its options.

    Raises: TrainingDataError if there is no project, no such recipe, or an option does not fit, or is a path, a URL or a
    secret, which callers from outside could point anywhere; ImportError.
    """
    if project is None:
        raise TrainingDataError(
            f"recipe {name!r}: which project's? Set TOQUE_PROJECT to a module with RECIPES"
        )
    known = getattr(importlib.import_module(project), "RECIPES", {})
    if name not in known:
        raise TrainingDataError(f"no recipe {name!r} in {project}.RECIPES, which has {sorted(known)}")
    kind: type[Recipe] = known[name]
    _refuse_reaching(name, kind, options)
    try:
        return kind.model_validate(options)
    except ValidationError as error:
        raise TrainingDataError(f"options={options} do not fit recipe {name!r}: {error}") from error


def _refuse_reaching(name: str, kind: type[Recipe], options: dict[str, Any]) -> None:
    """Check that no given option is a path, a URL or a secret. Raises: TrainingDataError."""
    given = {each: (field.annotation, field) for each, field in kind.model_fields.items() if each in options}
    asked = create_model("Options", __config__=ConfigDict(arbitrary_types_allowed=True), **given)  # type: ignore[call-overload]  # fields by name
    with suppress(PydanticInvalidForJsonSchema):  # JSON gives no value of such a type
        for each, what in reaching_fields(asked.model_json_schema()).items():
            raise TrainingDataError(
                f"options.{each} of recipe {name!r} is a {what}, which a caller may not choose; "
                "set its default in the project"
            )
