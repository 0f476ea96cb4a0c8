"""Settings of trainings as JSON: of the tabular network, a recipe, the loop and columns; known without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from toque.functions.evaluation.meanings import Outcome
from toque.functions.training.errors import TrainingDataError
from toque.functions.training.splits import TIME_COLUMN
from toque.functions.training.trainer import Trained, Trainer
from toque.registry import Table, TableSnapshot

if TYPE_CHECKING:
    from toque.functions.training.request import TrainingRequest


class Named(BaseModel):
    """Class of torch by its name, such as "SGD", with its arguments; a text alone is a name without arguments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"[A-Za-z][A-Za-z0-9]*")
    arguments: dict[str, JsonValue] = Field(default_factory=dict)

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


class TabularParams(Trainer):
    """Trainer of the tabular network: how it is built and trained; the defaults are meant to be good without tuning.

    task: what the label is: 0 or 1, one of several classes (texts or integers), or a number;
    hidden: widths of the hidden layers; embedding_dim: numbers a category becomes; bins: pieces of the linear code of
    a number; lr: peak of the one-cycle schedule; batch_size: rows of one optimiser step over all workers (fewer on a set
    below 32 times that); epochs: the length of the schedule (None: six, more on a small set);
    patience: epochs without a better validation loss before stopping (None: a third of the epochs, three at least);
    unknown_rate: share of categories hidden during training, which teaches the embedding of unknown ones;
    min_category_rows, max_categories: which categories get a row of their own;
    split, valid_fraction: which rows are held out to stop, to calibrate and to measure (see `Trainer`);
    clip: the greatest norm of a step's gradients (None: any); precision: of the network's arithmetic, weights stay float32;
    accumulate: micro-batches into which a worker cuts its rows of a step, so that a step needs the memory of one only;
    compiled: whether steps go through torch.compile, which takes a minute to begin with;
    keep_last, keep_best: how many checkpoints are kept: of the last epochs, and of the best, these also after the end;
    rows_in: where the rows are: in a worker's memory, in a file on its machine if they do not fit, or in shards in the store,
    which it reads through a cache of bounded size, if they do not fit there either.
    """

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

    task: Task = "binary"
    hidden: tuple[int, ...] = (128, 64)
    dropout: float = Field(default=0.2, ge=0.0, lt=1.0)
    embedding_dim: int = Field(default=8, ge=1)
    bins: int = Field(default=12, ge=1)
    lr: float = Field(default=3e-3, gt=0.0)
    weight_decay: float = Field(default=5e-2, ge=0.0)
    batch_size: int = Field(default=2048, ge=1)
    epochs: int | None = Field(default=None, ge=1)
    patience: int | None = Field(default=None, ge=1)
    unknown_rate: float = Field(default=0.02, ge=0.0, lt=1.0)
    min_category_rows: int = Field(default=10, ge=1)
    max_categories: int = Field(default=10_000, ge=1)
    clip: float | None = Field(default=None, gt=0.0)
    precision: Precision = "fp32"
    accumulate: int = Field(default=1, ge=1)
    compiled: bool = False
    keep_last: int = Field(default=2, ge=1)
    keep_best: int = Field(default=0, ge=0)
    rows_in: RowsIn = "memory"

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

    lr: peak of the one-cycle schedule; batch_size: rows of one optimiser step over all workers; epochs: the length of the
    schedule; patience: epochs without a better validation loss before stopping (None: never); clip, precision, accumulate,
    compiled, keep_last, keep_best: as in `TabularParams`; optimizer, schedule: of torch by name, with arguments (schedule None:
    one cycle); recompute: blocks of a `ModuleList` keep no activations and are computed again for their gradients;
    nonfinite: a step whose gradients are no finite numbers ends the training ("stop") or changes nothing ("skip"; GPUs wait then for
    the norm of each step's gradients);
    checkpoint_steps, checkpoint_s: steps and seconds between checkpoints within an epoch (None: only after each epoch).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lr: float = Field(default=1e-3, gt=0.0)
    weight_decay: float = Field(default=1e-2, ge=0.0)
    batch_size: int = Field(default=32, ge=1)
    epochs: int = Field(default=10, ge=1)
    patience: int | None = Field(default=None, ge=1)
    clip: float | None = Field(default=1.0, gt=0.0)
    precision: Precision = "fp32"
    accumulate: int = Field(default=1, ge=1)
    compiled: bool = False
    optimizer: Named = ADAMW
    schedule: Named | None = None
    recompute: bool = False
    nonfinite: Nonfinite = "stop"
    checkpoint_steps: int | None = Field(default=None, ge=1)
    checkpoint_s: float | None = Field(default=CHECKPOINT_S, gt=0.0)
    keep_last: int = Field(default=2, ge=1)
    keep_best: int = Field(default=0, ge=0)
    seed: int = 0

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
