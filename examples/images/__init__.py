"""Example of a network of one's own for pictures: a convolution that reads handwritten digits, as a recipe of a project.

`TOQUE_PROJECT=examples.images toque submit train_recipe --json '{"model": "reader", "recipe": "digits"}'` trains it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from toque.functions.training import Recipe
from toque.registry import Signature, TensorSpec

_VALID = 5  # every fifth picture is held out


def pictures() -> tuple[Tensor, Tensor]:
    """Read the 1,797 pictures of scikit-learn, (rows, 8, 8) float32 from 0 to 1, and their digits (rows,) int64."""
    from sklearn.datasets import load_digits  # late: only a training reads them

    found = load_digits()
    return torch.from_numpy(found.images).float() / 16, torch.from_numpy(found.target).long()


class Reading:
    """Learning task of naming the digit on a picture."""

    units: ClassVar[dict[str, int]] = {}

    def __init__(self) -> None:
        self._images, self._digits = pictures()
        held = torch.arange(len(self._digits)) % _VALID == 0
        self._train, self._valid = (part.nonzero().squeeze(1) for part in (~held, held))
        self.train_rows, self.valid_rows = len(self._train), len(self._valid)

    def train_batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Pictures and digits to learn from, each picture moved by a pixel at random."""
        rows = self._train[rows]
        moved = torch.roll(self._images[rows], tuple(torch.randint(-1, 2, (2,)).tolist()), dims=(1, 2))
        return moved, self._digits[rows]

    def valid_batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Pictures and digits that are held out."""
        return self._images[self._valid[rows]], self._digits[self._valid[rows]]

    def loss(self, module: nn.Module, batch: tuple[Tensor, ...], *, reduction: str = "mean") -> Tensor:
        """Log loss of the digits, in nats a picture."""
        return cross_entropy(module(batch[0]), batch[1], reduction=reduction)


class Reader(nn.Module):
    """Network from pictures (rows, 8, 8) to logits (rows, 10)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[Any] = [nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.ReLU(), nn.Flatten()]
        self.layers = nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(32 * channels, 10))

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute the logits of each digit."""
        logits: Tensor = self.layers(pixels.unsqueeze(1))
        return logits


class DigitsRecipe(Recipe):
    """Recipe of the reader of digits. channels: of its first convolution."""

    channels: int = Field(default=16, ge=1)

    def network(self) -> nn.Module:
        """Make the network of this width."""
        return Reader(self.channels)

    def task(self) -> Reading:
        """Split the pictures into those to learn from and those held out."""
        return Reading()

    def data(self) -> str:
        """Name of the pictures, which never change."""
        return "sklearn.datasets.load_digits"

    def signature(self) -> Signature:
        """Signature with pixels in and logits out; the example is the first two pictures."""
        return Signature(
            inputs=[TensorSpec(name="pixels", datatype="FP32", shape=[-1, 8, 8])],
            outputs=[TensorSpec(name="logits", datatype="FP32", shape=[-1, 10])],
            example={"pixels": pictures()[0][:2].tolist()},
        )


RECIPES = {"digits": DigitsRecipe}
