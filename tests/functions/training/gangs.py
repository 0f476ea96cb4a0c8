"""A gang whose workers hold cards of Ray's that nobody has plugged in, and compute on CPUs; everything else of it is real."""

from tests.functions.training.recipes import FAST
from toque.functions import Demand, function
from toque.functions.runtime.context import context
from toque.functions.training import Trained
from toque.functions.training.frame import TrainingJob, run_training
from toque.functions.training.recipe.train import RecipeTrainer
from toque.functions.training.request import Workers


class FakeCards(Workers):
    """Workers that hold GPUs as all do, and compute on their CPUs."""

    @property
    def device(self) -> str:
        return "cpu"


@function(
    timeout_s=None,
    demand=lambda gang, priority, limit_s, **_: Demand(
        gang, gang, priority, workers=gang, card="H100", limit_s=limit_s, preemptible=True
    ),
)
def train_gang(
    model: str,
    *,
    epochs: int,
    step_s: float = 0.0,
    pace_file: str = "",
    gang: int = 2,
    priority: int = 0,
    limit_s: float | None = None,
) -> Trained:
    """Train sums on a card for each worker, as `train_recipe` does."""
    params = FAST.model_copy(update={"epochs": epochs})
    trainer = RecipeTrainer(recipe="sums", options={"step_s": step_s, "pace_file": pace_file}, params=params)
    workers = FakeCards(gang, 1.0, 1.0, card="H100")
    job = TrainingJob(model=model, trainer=trainer, code=trainer.code, workers=workers)
    return run_training(context().registry(), job, context().prices)
