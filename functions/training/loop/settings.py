"""Settings that the training loop reads, whatever kind of network is trained."""

from __future__ import annotations

from typing import Protocol

from toque.functions.training.named import Named
from toque.functions.training.params import Nonfinite, Precision


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
