"""The function that trains a user's own network by a recipe of the project, and its trainer.

Processes that never train know the
function too; `recipe.job`, which needs torch, is imported when a network is trained.
"""

from __future__ import annotations

import importlib
from contextlib import suppress
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticInvalidForJsonSchema

from toque.functions.arguments import (
    BroughtEnvironment,
    Card,
    Experiment,
    LimitSeconds,
    NumWorkers,
    Priority,
    Register,
    Tags,
    WorkerCpus,
    WorkerGpus,
)
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Resources
from toque.functions.runtime.declaration.options import reaching_fields
from toque.functions.runtime.function import function
from toque.functions.training.errors import TrainingDataError
from toque.functions.training.frame import TrainingJob, run_training
from toque.functions.training.params import RecipeParams
from toque.functions.training.recipe.recipe import Recipe
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
from toque.functions.training.trainer import Trained, Trainer
from toque.registry.code_digest import digest_of

RecipeName = Annotated[str, Field(description="Name of a recipe in the project's RECIPES.")]
RecipeSettings = Annotated[RecipeParams, Field(description="How the network is trained.")]


@function(http=True, resources=Resources(num_cpus=1), timeout_s=None, demand=workers_demand)
def train_recipe(
    model: TrainedModel,
    recipe: RecipeName,
    *,
    options: Annotated[
        dict[str, Any] | None,
        Field(description="Fields of the recipe, such as widths, by name; its defaults for those left out."),
    ] = None,
    params: RecipeSettings = RecipeParams(),  # noqa: B008 - frozen
    num_workers: NumWorkers = 1,
    min_workers: MinWorkers = None,
    slow_workers: SlowWorkers = "name",
    worker_cpus: WorkerCpus = 1.0,
    worker_gpus: WorkerGpus = 0.0,
    sharding: HowSharded = "replicate",
    tensor: WorkersPerLayer = 1,
    experiment: Experiment = None,
    register: Register = True,
    tags: Tags = None,
    priority: Priority = 0,  # noqa: ARG001 - its demand reads it
    card: Card = None,
    limit_s: LimitSeconds = None,  # noqa: ARG001 - its demand reads it
    environment: BroughtEnvironment = None,
) -> Trained:
    """Train the network of a recipe of the project and register it as the next version of `model`.

    An interrupted training resumes at its last checkpoint when it is called again, also with fewer or more workers.
    Raises: TrainingDataError, TrainingDiverged, ArtifactRefused; the run is then FAILED and nothing is registered.
    """
    trainer = RecipeTrainer(recipe=recipe, options=options or {}, params=params)
    found = trainer.found()
    job = TrainingJob(
        model=model,
        trainer=trainer,
        code=trainer.code,
        workers=Workers(
            num_workers, worker_cpus, worker_gpus, sharding, card, min_workers, tensor, slow_workers
        ),
        experiment=experiment,
        params={"num_workers": num_workers, "sharding": sharding, "tensor": tensor, **found.model_dump()},
        tags={"data": found.data(), **(tags or {})},
        register=register,
        environment=environment,
    )
    return run_training(context().registry(), job, context().prices)


class RecipeTrainer(Trainer):
    """Trainer of the network of a recipe, which opens its rows itself.

    A recipe with the fields `training_set` and `label` gets those of the request, so that it can be retrained on
    newer rows.
    """

    kind: ClassVar[str] = "recipe"
    warm_starts: ClassVar[bool] = False

    recipe: RecipeName
    options: dict[str, Any] = Field(default_factory=dict, description="Fields of the recipe, by name.")
    params: RecipeSettings = RecipeParams()

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
