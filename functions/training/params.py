"""Settings of trainings as JSON: of the tabular network, a recipe, the loop and columns; known without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, Self

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from toque.functions.evaluation.meanings import Outcome
from toque.functions.training.errors import TrainingDataError
from toque.functions.training.splits import TIME_COLUMN
from toque.functions.training.trainer import Seed, Trained, Trainer
from toque.registry import Table, TableSnapshot

if TYPE_CHECKING:
    from toque.functions.training.request import TrainingRequest


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
Task = Literal["binary", "multiclass", "regression"]
_TASKS: dict[Outcome, Task] = {"binary": "binary", "multiclass": "multiclass", "number": "regression"}
Precision = Literal["fp32", "bf16"]
RowsIn = Literal["memory", "disk", "shards"]
Nonfinite = Literal["stop", "skip"]
_FEWEST_EPOCHS, _LEAST_PATIENCE = 6, 3
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
_MIN_BATCH, _MIN_STEPS, _MIN_TOTAL_STEPS = 16, 32, 200
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
    Precision, Field(description="Precision of the network's arithmetic; its weights stay float32.")
]
Accumulate = Annotated[
    int,
    Field(
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
KeepLast = Annotated[int, Field(ge=1, description="Newest checkpoints that are kept while it trains.")]
KeepBest = Annotated[
    int,
    Field(ge=0, description="Checkpoints with the lowest validation loss that are kept, also after the end."),
]


class TabularParams(Trainer):
    """Trainer of the tabular network: how it is built and trained; the defaults are meant to be good without tuning."""

    kind: ClassVar[str] = "tabular"
    data_settings: ClassVar[frozenset[str]] = Trainer.data_settings | {
        "task", "bins", "min_category_rows", "max_categories", "rows_in"
    }  # fmt: skip
    optimizer: ClassVar[Named] = ADAMW
    schedule: ClassVar[Named | None] = None
    recompute: ClassVar[bool] = False
    nonfinite: ClassVar[Nonfinite] = "stop"
    checkpoint_steps: ClassVar[int | None] = None
    checkpoint_s: ClassVar[float | None] = CHECKPOINT_S

    task: Task = Field(
        default="binary",
        description="What the label is: 0 or 1, one of several classes (texts or integers), or a number.",
    )
    hidden: tuple[int, ...] = Field(
        default=(128, 64), description="Widths of the hidden layers, the first first."
    )
    dropout: float = Field(
        default=0.2,
        ge=0.0,
        lt=1.0,
        description="Share of each hidden layer's outputs that a step drops, in [0, 1).",
    )
    embedding_dim: int = Field(default=8, ge=1, description="Numbers that a category becomes.")
    bins: int = Field(default=12, ge=1, description="Pieces of the piecewise linear code of a number.")
    lr: LearningRate = 3e-3
    weight_decay: WeightDecay = 5e-2
    batch_size: int = Field(
        default=2048,
        ge=1,
        description=(
            "Rows of one optimiser step over all workers; fewer where the training rows are below 32 times "
            "that."
        ),
    )
    epochs: int | None = Field(
        default=None,
        ge=1,
        description="Epochs, which are the length of the schedule; six unless given, more on a small set.",
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description=(
            "Epochs without a better validation loss before it stops; a third of all, but at least 3, unless "
            "given."
        ),
    )
    unknown_rate: float = Field(
        default=0.02,
        ge=0.0,
        lt=1.0,
        description=(
            "Share of categories hidden in a step, in [0, 1), which teaches the embedding of unknown ones."
        ),
    )
    min_category_rows: int = Field(
        default=10, ge=1, description="Training rows that a category needs for an embedding of its own."
    )
    max_categories: int = Field(
        default=10_000,
        ge=1,
        description="Most categories of a column with an embedding of their own, the frequent ones.",
    )
    clip: Clip = None
    precision: Arithmetic = "fp32"
    accumulate: Accumulate = 1
    compiled: Compiled = False
    keep_last: KeepLast = 2
    keep_best: KeepBest = 0
    rows_in: RowsIn = Field(
        default="memory",
        description=(
            'Where a worker has its rows: in memory, in a file on its machine ("disk"), or in the store, '
            'with a bounded cache ("shards").'
        ),
    )

    def __call__(self, request: TrainingRequest) -> Trained:
        """Train the network, calibrate it and write it as a program."""
        from toque.functions.training.tabular.job import train_network  # late: torch and Ray Train

        return train_network(self, request)

    def check(self, outcome: Outcome, columns: Mapping[str, tuple[str, ...]]) -> None:
        """Check that the network can learn the outcome, and that there are no tensors, which it cannot read. Raises: ValueError."""
        if outcome not in _TASKS:
            raise ValueError(
                f"the tabular network learns {', '.join(_TASKS)}, not {outcome!r}; declare another trainer, such as XGBoost()"
            )
        if columns.get("tensors"):
            raise ValueError(
                f"the tabular network reads no tensors such as {columns['tensors'][0]!r}; declare another trainer"
            )

    @property
    def outcome(self) -> Outcome:
        """Outcome that the task answers for."""
        return next(outcome for outcome, task in _TASKS.items() if task == self.task)

    def for_outcome(self, outcome: Outcome) -> TabularParams:
        """Settings with the task that learns `outcome`."""
        return self.model_copy(update={"task": _TASKS[outcome]})

    def batch_rows(self, rows: int, *, workers: int = 1) -> int:
        """Rows of a step over `rows` training rows: an epoch has 32 steps at least, each worker equally many rows."""
        batch = min(self.batch_size, max(_MIN_BATCH, rows // _MIN_STEPS), rows)
        return max(workers, batch - batch % workers)

    def resolved(self, rows: int) -> TabularParams:
        """Settings with epochs and patience decided for `rows` training rows."""
        steps = max(1, rows // self.batch_rows(rows))
        epochs = self.epochs or max(_FEWEST_EPOCHS, -(-_MIN_TOTAL_STEPS // steps))
        patience = self.patience or max(_LEAST_PATIENCE, epochs // 3)
        return self.model_copy(update={"epochs": epochs, "patience": patience})

    @property
    def epochs_and_patience(self) -> tuple[int, int]:
        """Epochs and patience of resolved settings. Raises: ValueError if they are not resolved."""
        if self.epochs is None or self.patience is None:
            raise ValueError(f"epochs={self.epochs}, patience={self.patience}: call resolved(rows) first")
        return self.epochs, self.patience


class RecipeParams(BaseModel):
    """How the network of a user's recipe is trained.

    Checkpoints are saved after each epoch, and within it after so many steps or seconds, whichever come first.
    With `nonfinite` "skip" GPUs wait for the norm of each step's gradients.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lr: LearningRate = 1e-3
    weight_decay: WeightDecay = 1e-2
    batch_size: int = Field(default=32, ge=1, description="Rows of one optimiser step over all workers.")
    epochs: int = Field(default=10, ge=1, description="Epochs, which are the length of the schedule.")
    patience: int | None = Field(
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
        default=None, ge=1, description="Steps between checkpoints within an epoch; any number unless given."
    )
    checkpoint_s: float | None = Field(
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


class Settings(Protocol):
    """Settings of the loop, as `TabularParams` and `RecipeParams` have them."""

    @property
    def lr(self) -> float:
        """Peak of the learning rate's schedule."""

    @property
    def weight_decay(self) -> float:
        """Decay of weights in a step; biases do not decay."""

    @property
    def clip(self) -> float | None:
        """Greatest norm of a step's gradients; None for any."""

    @property
    def nonfinite(self) -> Nonfinite:
        """What a step does whose gradients are no finite numbers: stop the training, or be skipped."""

    @property
    def precision(self) -> Precision:
        """Precision of the network's arithmetic; weights stay float32."""

    @property
    def accumulate(self) -> int:
        """Number of micro-batches of a worker in a step."""

    @property
    def compiled(self) -> bool:
        """Whether steps go through torch.compile."""

    @property
    def optimizer(self) -> Named:
        """Optimizer of torch, by its name."""

    @property
    def schedule(self) -> Named | None:
        """Schedule of torch for the learning rate; None for one cycle."""

    @property
    def recompute(self) -> bool:
        """Whether blocks compute their activations again for the gradients, instead of keeping them."""

    @property
    def checkpoint_steps(self) -> int | None:
        """Steps between checkpoints within an epoch; None for any number."""

    @property
    def checkpoint_s(self) -> float | None:
        """Seconds between checkpoints within an epoch; None for any time."""

    @property
    def seed(self) -> int:
        """Seed of all random numbers of the training."""

    @property
    def epochs_and_patience(self) -> tuple[int, int]:
        """Epochs, and how many of them may pass without a better validation loss."""

    def batch_rows(self, rows: int, *, workers: int = 1) -> int:
        """Rows of a step over all workers, of `rows` training rows."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the feature columns and the label of a training set."""

    numeric: Sequence[str]
    categorical: Sequence[str]
    label: str

    @classmethod
    def of(cls, numeric: Sequence[str], categorical: Sequence[str], label: str) -> Self:
        """Name the feature columns and the label. Raises: TrainingDataError if a column is named twice."""
        names = [*numeric, *categorical, label]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise TrainingDataError(f"columns {twice} are named twice among numeric, categorical and label")
        return cls(tuple(numeric), tuple(categorical), label)

    def read(self, table: Table, snapshot: TableSnapshot) -> pa.Table:
        """Read the columns of a snapshot, with the rows' time; an absent column is reported where it is used."""
        rows = table.read(version=snapshot.version)
        wanted = {*self.numeric, *self.categorical, self.label, TIME_COLUMN}
        return rows.select([name for name in rows.column_names if name in wanted])
