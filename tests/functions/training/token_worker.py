"""Texts whose rows have unequal numbers of learnt tokens, a network of one table that learns them, and two workers that do so together.

Each worker leaves the losses of its epochs, by the number of micro-batches of a step.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.functions.training.forked import on_workers
from toque.functions.training.llm.texts import IGNORED, Rows, TextTask
from toque.functions.training.loop.process_group import ProcessGroup, ReplicatedGroup
from toque.functions.training.loop.training_loop import Trainer
from toque.functions.training.params import RecipeParams

WORKERS, WORDS, LENGTH = 2, 8, 24
PIECES = (1, 2, 3)
PARAMS = RecipeParams(lr=3e-2, epochs=2, batch_size=6, clip=None)


class Answer:
    """What a language model returns."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Bigram(nn.Module):
    """Predicts the next token by the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, WORDS)

    def forward(self, input_ids: Tensor, **_: Any) -> Answer:
        return Answer(self.table(input_ids))


def bigram() -> Bigram:
    """Network that always begins with the same weights."""
    torch.manual_seed(0)
    return Bigram()


def uneven_rows(count: int, seed: int) -> Rows:
    """Rows of which each has from one learnt token to all of them, and each number of tokens prefers a token of its own."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, WORDS, (count, LENGTH), generator=generator)
    labels = torch.full_like(ids, IGNORED)
    for number in range(count):
        learnt = 1 if number % 2 else LENGTH - 1 - number % 5
        ids[number, 1 : 1 + learnt] = number % WORDS
        labels[number, 1 : 1 + learnt] = ids[number, 1 : 1 + learnt]
    return Rows(ids, labels, torch.arange(LENGTH).expand(count, LENGTH))


def task() -> TextTask:
    return TextTask(uneven_rows(24, 0), uneven_rows(7, 1))


def losses(pieces: int, group: ProcessGroup | None = None) -> list[tuple[float, float]]:
    """Losses of the rows that are learnt from and of those held out, by epoch."""
    trainer = Trainer(bigram(), task(), PARAMS.model_copy(update={"accumulate": pieces}), group)
    epochs = [trainer.run_epoch() for _ in range(PARAMS.epochs)]
    return [(epoch.train_loss, epoch.valid_loss) for epoch in epochs]


def of_a_worker(_: int) -> object:
    group = ReplicatedGroup()
    return {pieces: losses(pieces, group) for pieces in PIECES}


if __name__ == "__main__":
    sys.exit(max(abs(code or 0) for code in on_workers(WORKERS, Path(sys.argv[1]), of_a_worker)))
