"""Settings of trainings as JSON: those that every network has, and those of a recipe; known without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from toque.functions.training.trainer import Seed


class Named(BaseModel):
    """Class of torch by its name, such as "SGD", with its arguments; a text alone is a name without arguments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        pattern=r"[A-Za-z][A-Za-z0-9]*",
        description="Name of the class, without its module.",
        examples=["SGD"],
    )
    arguments: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Arguments of the class by name; torch's defaults for those left out.",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given


ADAMW = Named(name="AdamW")
Precision = Literal["fp32", "bf16"]
Nonfinite = Literal["stop", "skip"]
CHECKPOINT_S = 600.0  # between checkpoints within an epoch
# settings of how a step is computed, which do not change its result
_EXECUTION = {
    "accumulate",
    "compiled",
    "keep_last",
    "keep_best",
    "recompute",
    "checkpoint_steps",
    "checkpoint_s",
}
# settings of every network
LearningRate = Annotated[
    float, Field(gt=0.0, description="Learning rate of the optimiser; the peak of the one-cycle schedule.")
]
WeightDecay = Annotated[float, Field(ge=0.0, description="Decay of weights in a step; biases do not decay.")]
Clip = Annotated[
    float | None,
    Field(
        gt=0.0,
        description="Norm to which a step's gradients are cut down where it is greater; null leaves them.",
    ),
]
Arithmetic = Annotated[
    Precision,
    Field(description="Precision of the network's arithmetic; weights that are learnt stay float32."),
]
Accumulate = Annotated[
    int,
    Field(
        le=1_000_000,
        ge=1,
        description=(
            "Micro-batches into which a worker cuts its rows of a step, so that a step needs the memory of "
            "one only."
        ),
    ),
]
Compiled = Annotated[
    bool, Field(description="Whether steps go through torch.compile, which takes a minute to begin with.")
]
KeepLast = Annotated[
    int, Field(le=100_000, ge=1, description="Newest checkpoints that are kept while it trains.")
]
KeepBest = Annotated[
    int,
    Field(
        le=100_000,
        ge=0,
        description="Checkpoints with the lowest validation loss that are kept, also after the end.",
    ),
]


class RecipeParams(BaseModel):
    """How the network of a user's recipe is trained.

    Checkpoints are saved after each epoch, and within it after so many steps or seconds, whichever come first.
    With `nonfinite` "skip" GPUs wait for the norm of each step's gradients.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lr: LearningRate = 1e-3
    weight_decay: WeightDecay = 1e-2
    batch_size: int = Field(
        le=10_000_000, default=32, ge=1, description="Rows of one optimiser step over all workers."
    )
    epochs: int = Field(
        le=1_000_000, default=10, ge=1, description="Epochs, which are the length of the schedule."
    )
    patience: int | None = Field(
        le=1_000_000,
        default=None,
        ge=1,
        description="Epochs without a better validation loss before it stops; it never does unless given.",
    )
    clip: Clip = 1.0
    precision: Arithmetic = "fp32"
    accumulate: Accumulate = 1
    compiled: Compiled = False
    optimizer: Named = Field(
        default=ADAMW,
        description=(
            "Optimiser of torch.optim by name; its `lr` and `weight_decay` are the fields of those names."
        ),
    )
    schedule: Named | None = Field(
        default=None,
        description=(
            "Schedule of torch.optim.lr_scheduler by name, which counts steps; one cycle unless given."
        ),
    )
    recompute: bool = Field(
        default=False,
        description=(
            "Whether blocks of a `ModuleList` keep no activations and are computed again for their gradients."
        ),
    )
    nonfinite: Nonfinite = Field(
        default="stop",
        description=(
            "What a step does whose gradients are no finite numbers: it ends the training, or changes "
            'nothing ("skip").'
        ),
    )
    checkpoint_steps: int | None = Field(
        le=1_000_000_000,
        default=None,
        ge=1,
        description="Steps between checkpoints within an epoch; any number unless given.",
    )
    checkpoint_s: float | None = Field(
        le=31_622_400,
        default=CHECKPOINT_S,
        gt=0.0,
        description="Seconds between checkpoints within an epoch; null for any time.",
    )
    keep_last: KeepLast = 2
    keep_best: KeepBest = 0
    seed: Seed = 0

    @property
    def epochs_and_patience(self) -> tuple[int, int]:
        """Epochs, and how many of them may pass without a better validation loss."""
        return self.epochs, self.patience or self.epochs

    def batch_rows(self, rows: int, *, workers: int = 1) -> int:
        """Rows of a step over `rows` training rows: equally many for each worker, at least one."""
        batch = min(self.batch_size, rows)
        return max(workers, batch - batch % workers)


def weights_depend_on(params: BaseModel) -> dict[str, Any]:
    """Settings that the weights depend on, as JSON: a training may resume with smaller micro-batches, or uncompiled."""
    return params.model_dump(mode="json", exclude=_EXECUTION)


def run_params(params: BaseModel | Mapping[str, object], **more: object) -> dict[str, str]:
    """Parameters as a run records them, by name and as text."""
    known = params.model_dump() if isinstance(params, BaseModel) else params
    return {name: str(value) for name, value in {**known, **more}.items()}


def digest_of(what: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object in hex, whatever the order of its names."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
