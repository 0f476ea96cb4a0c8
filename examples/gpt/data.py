"""The text: the notes in this repository's `docs`, as bytes, in windows that follow one another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

NOTES = Path(__file__).parents[2] / "docs"
_VALID_PART = 10  # a tenth of the text, its end, is held out


def notes(folder: Path = NOTES) -> bytes:
    """All notes, by name, one after the other. Raises: FileNotFoundError if there are none."""
    files = sorted(folder.glob("*.md"))
    if not files:
        raise FileNotFoundError(f"no *.md in {folder}: run it from a checkout of the repository")
    return b"\n".join(file.read_bytes() for file in files)


@dataclass(frozen=True, slots=True)
class Windows:
    """A text in rows of `context` bytes and the byte after: what is to be told at each place is the next byte."""

    train: Tensor
    valid: Tensor
    context: int

    @classmethod
    def of(cls, text: bytes, context: int) -> Windows:
        """Raises: ValueError if the text has no window to hold out."""
        tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        cut = len(tokens) - len(tokens) // _VALID_PART
        if len(tokens) - cut <= context:
            raise ValueError(
                f"{len(text)} bytes of text are too few for context={context}: want {_VALID_PART} times as many"
            )
        return cls(tokens[:cut], tokens[cut:], context)

    @property
    def train_rows(self) -> int:
        """Windows that are learnt from."""
        return (len(self.train) - 1) // self.context

    @property
    def valid_rows(self) -> int:
        """Windows held out."""
        return (len(self.valid) - 1) // self.context

    @property
    def units(self) -> dict[str, int]:
        """A row is so many tokens."""
        return {"tokens": self.context}

    def train_batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Windows (rows, context + 1) int64."""
        return (self._windows(self.train, rows),)

    def valid_batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The same of the text held out."""
        return (self._windows(self.valid, rows),)

    def loss(self, module: nn.Module, batch: tuple[Tensor, ...], *, reduction: str = "mean") -> Tensor:
        """Nats a byte; of a row, the mean of its places."""
        (window,) = batch
        logits = module(window[:, :-1]).float()
        places = cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten(), reduction="sum") / self.context
        return places / len(window) if reduction == "mean" else places

    def _windows(self, text: Tensor, rows: Tensor) -> Tensor:
        return text[rows[:, None] * self.context + torch.arange(self.context + 1)].long()
