"""Training text of the example, the notes in this repository's `docs`, as bytes in consecutive windows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

NOTES = Path(__file__).parents[2] / "docs"
_VALID_PART = 10  # a tenth of the text, its end, is held out


def notes(folder: Path = NOTES) -> bytes:
    """Read all notes, in order of their names. Raises: FileNotFoundError if there are none."""
    files = sorted(folder.glob("*.md"))
    if not files:
        raise FileNotFoundError(f"no *.md in {folder}: run it from a checkout of the repository")
    return b"\n".join(file.read_bytes() for file in files)


@dataclass(frozen=True, slots=True)
class Windows:
    """Learning task of predicting the next byte, on a text in rows of `context` bytes and the byte after."""

    train: Tensor
    valid: Tensor
    context: int

    @classmethod
    def of(cls, text: bytes, context: int) -> Windows:
        """Split a text into training and validation windows. Raises: ValueError if it has no window to hold out."""
        tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        cut = len(tokens) - len(tokens) // _VALID_PART
        if len(tokens) - cut <= context:
            raise ValueError(
                f"{len(text)} bytes of text are too few for context={context}: want {_VALID_PART} times as many"
            )
        return cls(tokens[:cut], tokens[cut:], context)

    @property
    def train_rows(self) -> int:
        """Number of windows that are learnt from."""
        return (len(self.train) - 1) // self.context

    @property
    def valid_rows(self) -> int:
        """Number of windows that are held out for validation."""
        return (len(self.valid) - 1) // self.context

    @property
    def units(self) -> dict[str, int]:
        """Number of tokens in a row."""
        return {"tokens": self.context}

    def train_batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Batch of training windows (rows, context + 1) int64."""
        return (self._windows(self.train, rows),)

    def valid_batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Batch of validation windows (rows, context + 1) int64."""
        return (self._windows(self.valid, rows),)

    def loss(self, module: nn.Module, batch: tuple[Tensor, ...], *, reduction: str = "mean") -> Tensor:
        """Log loss in nats a byte, of a row the mean over its positions."""
        (window,) = batch
        logits = module(window[:, :-1]).float()
        total = cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten(), reduction="sum") / self.context
        return total / len(window) if reduction == "mean" else total

    def _windows(self, text: Tensor, rows: Tensor) -> Tensor:
        return text[rows[:, None] * self.context + torch.arange(self.context + 1)].long()
