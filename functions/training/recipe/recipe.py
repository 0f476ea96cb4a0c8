"""Recipes: classes of a project that describe a network of its own; its module names them in `RECIPES`, as its models in `MODELS`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from toque.registry.models import Signature

if TYPE_CHECKING:
    from torch import nn

    from toque.functions.training.loop.first_weights import FirstWeights
    from toque.functions.training.loop.task import LearningTask


class Recipe(BaseModel, ABC):
    """Network of a project and the task it learns. The fields of a subclass are its options, such as widths."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @abstractmethod
    def network(self) -> nn.Module:
        """Make a new network, with random numbers from torch's stream, which is seeded.

        Its arguments are the inputs of the signature. Blocks in a `ModuleList` are split among workers one by one.
        """

    def weights(self, seed: int) -> FirstWeights | None:  # noqa: ARG002 - of those that have a source
        """Source of the first weights, for a network larger than a worker: it is then built without memory and filled in shards.

        None: `network()` sets them itself, in the memory of each worker.
        """
        return None

    @abstractmethod
    def task(self) -> LearningTask:
        """Open the rows to learn from, with their loss; called in every worker."""

    @abstractmethod
    def data(self) -> str:
        """Identity of the data, such as a table's version or a digest: a training resumes on the same data only."""

    @abstractmethod
    def signature(self) -> Signature:
        """Signature of the network with inputs, outputs and an example of two rows."""
