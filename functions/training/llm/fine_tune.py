"""The function that fine-tunes a language model, all weights or adapters, its trainer, and that of a classifier; known without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, get_args

from pydantic import Field

from toque.functions.arguments import (
    BroughtEnvironment,
    Card,
    Experiment,
    LimitSeconds,
    NumWorkers,
    Priority,
    Register,
    TrainingSet,
    WorkerCpus,
    WorkerGpus,
)
from toque.functions.evaluation.meanings import Outcome
from toque.functions.model_formats.text_classifier import MOST_TEXTS
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Resources
from toque.functions.runtime.function import function
from toque.functions.training.errors import TrainingDataError
from toque.functions.training.frame import TrainingJob, run_training
from toque.functions.training.llm.settings import (
    Adapters,
    Base,
    FineTuneSettings,
    Lora,
    Preferred,
    TextColumn,
    Tuner,
    TuningParams,
)
from toque.functions.training.params import RecipeParams
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
from toque.functions.training.trainer import Trained

_LEARNT: tuple[Outcome, ...] = ("binary", "multiclass", "multilabel")


class FineTune(FineTuneSettings):
    """Trainer of a causal language model from one that is a version of a Hugging Face folder.

    Texts are packed into rows end to end. Those longer than a row are cut into pieces, all of which are learnt; of
    longer conversations the beginning is, and the run's `answers_beyond_length` counts the others.
    """

    kind: ClassVar[str] = "fine_tune"
    data_settings: ClassVar[frozenset[str]] = FineTuneSettings.data_settings | {"column", "length", "base"}

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


class TextClassifier(Tuner):
    """Trainer of a classifier of texts from a version, as "name@3", of a Hugging Face folder: an encoder or a language model.

    It reads one column of texts, or two whose texts are a pair, declared as `categorical`, and learns the outcomes binary,
    multiclass and multilabel. lora: None trains all weights; the head is learnt whole in any case.
    """

    kind: ClassVar[str] = "text_classifier"

    length: int = Field(default=256, ge=8, description="Tokens of a row; longer ones are cut.")
    lora: Lora | None = None
    params: RecipeParams = RecipeParams(lr=5e-5, epochs=3, batch_size=16)

    def check(self, outcome: Outcome, columns: Mapping[str, tuple[str, ...]]) -> None:
        """Check that the outcome is one of classes, and the columns are one or two of texts. Raises: ValueError."""
        if outcome not in _LEARNT:
            raise ValueError(
                f"a classifier of texts learns {', '.join(_LEARNT)}, not {outcome!r} (of {', '.join(get_args(Outcome))}); "
                "declare another trainer"
            )
        texts = columns.get("categorical", ())
        others = [name for kind, names in columns.items() if kind != "categorical" for name in names]
        if others or not 1 <= len(texts) <= MOST_TEXTS:
            raise ValueError(
                f"a classifier of texts reads one column of texts, or two, not categorical={texts} beside {others}: leave the "
                "others out"
            )

    def __call__(self, request: TrainingRequest) -> Trained:
        """Train the classifier and write it as a Hugging Face folder."""
        from toque.functions.training.llm.classifier_job import (
            train_classifier,  # late: torch and transformers
        )

        return train_classifier(self, request)


@function(http=True, resources=Resources(num_cpus=1), timeout_s=None, demand=workers_demand)
def fine_tune(
    model: TrainedModel,
    base: Base,
    training_set: TrainingSet,
    *,
    column: TextColumn = "messages",
    length: Annotated[
        int,
        Field(
            le=1_048_576,
            ge=8,
            description="Tokens of a row; texts are packed end to end, and longer ones are cut.",
        ),
    ] = 1_024,
    lora: Adapters = Lora(),  # noqa: B008 - frozen
    preference: Preferred = None,
    params: TuningParams = RecipeParams(lr=1e-4, epochs=3, batch_size=8),  # noqa: B008 - frozen
    num_workers: NumWorkers = 1,
    min_workers: MinWorkers = None,
    slow_workers: SlowWorkers = "name",
    worker_cpus: WorkerCpus = 1.0,
    worker_gpus: WorkerGpus = 0.0,
    sharding: HowSharded = "replicate",
    tensor: WorkersPerLayer = 1,
    experiment: Experiment = None,
    register: Register = True,
    priority: Priority = 0,  # noqa: ARG001 - its demand reads it
    card: Card = None,
    limit_s: LimitSeconds = None,  # noqa: ARG001 - its demand reads it
    environment: BroughtEnvironment = None,
) -> Trained:
    """Fine-tune the causal language model `base` and register the result as the next version of `model`.

    The version is a Hugging Face folder: adapters are merged into its weights. Of conversations longer than a row the
    beginning is learnt, see `FineTune`. An interrupted training resumes at its last checkpoint when it is called again.
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
