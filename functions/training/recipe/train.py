"""The function that trains a user's own network, described by a recipe of the project.

Processes that never train know the function too; `recipe.job`, which needs torch, is imported when a network is trained.
"""

from __future__ import annotations

from typing import Any, Literal

from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Resources
from toque.functions.runtime.environments import Environment
from toque.functions.runtime.function import function
from toque.functions.training.frame import TrainingJob, run_training
from toque.functions.training.params import RecipeParams
from toque.functions.training.recipe.trainer import RecipeTrainer
from toque.functions.training.trained import Trained
from toque.functions.training.workers import SlowPolicy, Workers, workers_demand


@function(http=True, resources=Resources(num_cpus=1), timeout_s=None, demand=workers_demand)
def train_recipe(
    model: str,
    recipe: str,
    *,
    options: dict[str, Any] | None = None,
    params: RecipeParams = RecipeParams(),  # noqa: B008 - frozen
    num_workers: int = 1,
    min_workers: int | None = None,
    slow_workers: SlowPolicy = "name",
    worker_cpus: float = 1.0,
    worker_gpus: float = 0.0,
    sharding: Literal["replicate", "shard"] = "replicate",
    tensor: int = 1,
    experiment: str | None = None,
    register: bool = True,
    tags: dict[str, str] | None = None,
    priority: int = 0,  # noqa: ARG001 - its demand reads it
    card: str | None = None,
    limit_s: float | None = None,  # noqa: ARG001 - its demand reads it
    environment: Environment | None = None,
) -> Trained:
    """Train the network of a recipe of the project and register it as the next version of `model`.

    recipe: a name in the project's RECIPES; options: its fields; num_workers: 1 trains here, more train on the Ray cluster
    with `worker_cpus` and `worker_gpus` each; min_workers: fewest that go on where there is no room for all, until there is (null:
    it waits for all); slow_workers: whether one that computes twice as long as others is named, or they go on away from its node
    ("leave", with `min_workers`); sharding: every worker holds the whole model ("replicate", DDP) or a shard
    of weights, optimiser and checkpoints ("shard", FSDP2); tensor: how many workers split each layer of a shard among them; experiment: where the run is tracked (default: the model's name).
    priority: of a submitted call in the queue of experiments, the higher first; card: type of the GPUs as Ray names it, None for any;
    limit_s: longest run time of a submitted call, which may then fill a gap in the queue; None: as long as it takes;
    environment: packages and variables that the processes of a submitted call have, if the profile allows them.
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
