"""The settings of the tabular default."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from functions.training.dataset import Split


class TabularParams(BaseModel):
    """How the tabular network is built and trained; the defaults are meant to be good without tuning.

    hidden: widths of the hidden layers; embedding_dim: numbers a category becomes; bins: pieces of the linear code of
    a number; lr: peak of the one-cycle schedule; batch_size: rows of one optimiser step over all workers (fewer on a set below 32 times that);
    epochs: the length of the schedule; patience: epochs without a better validation loss before stopping;
    unknown_rate: share of categories hidden during training, which teaches the row for unknown ones;
    min_category_rows, max_categories: which categories get a row of their own;
    split, valid_fraction: which rows are held out to stop, to calibrate and to measure (see `split_rows`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: tuple[int, ...] = (128, 64)
    dropout: float = Field(default=0.2, ge=0.0, lt=1.0)
    embedding_dim: int = Field(default=8, ge=1)
    bins: int = Field(default=12, ge=1)
    lr: float = Field(default=3e-3, gt=0.0)
    weight_decay: float = Field(default=5e-2, ge=0.0)
    batch_size: int = Field(default=2048, ge=1)
    epochs: int = Field(default=6, ge=1)
    patience: int = Field(default=3, ge=1)
    unknown_rate: float = Field(default=0.02, ge=0.0, lt=1.0)
    min_category_rows: int = Field(default=10, ge=1)
    max_categories: int = Field(default=10_000, ge=1)
    split: Split = "days"
    valid_fraction: float = Field(default=0.1, gt=0.0, lt=1.0)
    seed: int = 0


def run_params(params: TabularParams, **more: object) -> dict[str, str]:
    """The parameters of a run as it records them."""
    return {name: str(value) for name, value in {**params.model_dump(), **more}.items()}
