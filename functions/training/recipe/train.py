"""A user's own network: what to train and on what, by a recipe of the project; the loop, the workers and the rest are ours.

A project's module names its recipes in `RECIPES`, as it names its models in `MODELS`. The function is known to processes that
never train; what trains, `recipe_job`, is imported when it is called.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from functions.runtime.context import context
from functions.runtime.declaration import Demand, Resources
from functions.runtime.function import function
from functions.training.errors import TrainingDataError
from functions.training.params import RecipeParams, run_params
from functions.training.tabular.train import Trained
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


def _demand(num_workers: int, worker_cpus: float, worker_gpus: float, priority: int, **_: Any) -> Demand:
    return Demand(max(1.0, num_workers * worker_cpus), num_workers * worker_gpus, priority)


@function(resources=Resources(num_cpus=1), timeout_s=86_400, demand=_demand)
def train_recipe(
    model: str,
    recipe: str,
    options: dict[str, Any] | None = None,
    params: RecipeParams = RecipeParams(),  # noqa: B008 - frozen
    num_workers: int = 1,
    worker_cpus: float = 1.0,
    worker_gpus: float = 0.0,
    sharding: Literal["replicate", "shard"] = "replicate",
    experiment: str | None = None,
    register: bool = True,  # noqa: FBT001, FBT002 - by HTTP every argument has its name
    tags: dict[str, str] | None = None,
    priority: int = 0,  # noqa: ARG001 - its demand reads it
) -> Trained:
    """Train the network of a recipe of the project and register it as the next version of `model`.

    recipe: a name in the project's RECIPES; options: its fields; num_workers: 1 trains here, more train on the Ray cluster
    with `worker_cpus` and `worker_gpus` each; sharding: every worker holds the whole model ("replicate", DDP) or its share
    of weights, optimiser and checkpoints ("shard", FSDP2); experiment: where the run is tracked (default: the model's name).
    priority: of a submitted one in the queue of experiments, the higher first.
    A training that was interrupted goes on after its last epoch when it is asked for again, be it by fewer workers or more.
    Raises: TrainingDataError, TrainingDiverged, ArtifactRefused; the run is then FAILED and nothing is registered.
    """
    from functions.training.loop.distributed import Workers  # late: the same
    from functions.training.recipe.job import RecipeOrder, train  # late: torch and Ray Train

    order = RecipeOrder(model, recipe_of(context().project, recipe, options or {}), params, tags or {})
    registry = context().registry()
    with registry.start_run(
        experiment or model,
        name=f"train {model}",
        params=run_params(
            params, num_workers=num_workers, sharding=sharding, recipe=recipe, **order.recipe.model_dump()
        ),
        tags={"kind": "training", "model": model, "data": order.recipe.data(), **order.tags},
        code=order.code,
    ) as run:
        workers = Workers(num_workers, worker_cpus, worker_gpus, sharding)
        return train(registry, run, order, workers, register=register, prices=context().prices)
