"""A small GPT over bytes: recipe, network and text; the recipe's fields are the options of a training.

Source: Radford et al., Language Models are Unsupervised Multitask Learners, 2019; pre-normalised blocks, learnt
positions. The text is the notes in this repository's `docs`, as bytes in consecutive windows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from toque.functions.training import Recipe
from toque.functions.training.loop.first_weights import FirstWeights, Initialised, reset
from toque.registry import Signature, TensorSpec

NOTES = Path(__file__).parents[2] / "docs"
VOCABULARY = 256
_VALID_PART = 10  # a tenth of the text, its end, is held out
_DEVIATION = 0.02  # of first weights


class GptRecipe(Recipe):
    """Recipe of a small GPT. context: bytes that it sees; width: of an embedding; heads: of attention; layers: blocks."""

    context: int = Field(default=64, ge=2)
    width: int = Field(default=64, ge=1)
    heads: int = Field(default=4, ge=1)
    layers: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} must be a multiple of heads={self.heads}")
        return self

    def network(self) -> nn.Module:
        """Make the network of these sizes."""
        return Gpt(context=self.context, width=self.width, heads=self.heads, layers=self.layers)

    def weights(self, seed: int) -> FirstWeights:
        """Set each module's weights by itself, so that the network may be larger than a worker."""
        return Initialised(initialise, seed)

    def task(self) -> Windows:
        """Cut the notes into windows to learn from."""
        return Windows.of(notes(), self.context)

    def data(self) -> str:
        """SHA-256 of the notes, as text."""
        return f"sha256:{hashlib.sha256(notes()).hexdigest()}"

    def signature(self) -> Signature:
        """Signature with bytes in, logits of the byte after each out; a shorter text is padded at its end."""
        text = notes()
        return Signature(
            inputs=[TensorSpec(name="tokens", datatype="INT64", shape=[-1, self.context])],
            outputs=[TensorSpec(name="logits", datatype="FP32", shape=[-1, self.context, VOCABULARY])],
            example={"tokens": [list(text[: self.context]), list(text[1 : self.context + 1])]},
        )


class Block(nn.Module):
    """Transformer block of causal attention, then a small MLP at each position, both with residual connections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Transform (rows, positions, width) to the same shape."""
        x = x + self._attend(self.before_attention(x))
        change: Tensor = self.mlp(self.before_mlp(x))
        return x + change

    def _attend(self, x: Tensor) -> Tensor:
        mixed = self.mix(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = mixed.unbind(0)  # [rows, heads, positions, width / heads] each
        seen = scaled_dot_product_attention(query, key, value, is_causal=True)
        out: Tensor = self.out(seen.transpose(1, 2).flatten(2))
        return out


class Gpt(nn.Module):
    """Network from bytes to logits of the byte that follows each."""

    def __init__(self, *, context: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, width)
        self.position = nn.Parameter(torch.zeros(context, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute logits (rows, context, 256) of `tokens` (rows, context) int64, each from the tokens up to it."""
        x = self.token(tokens) + self.position
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.last(x))
        return logits


def initialise(module: nn.Module) -> None:
    """Set the weights of one module of the network to random numbers from torch's stream."""
    if isinstance(module, Gpt):
        nn.init.normal_(module.position, std=_DEVIATION)
        return
    reset(module)
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=_DEVIATION)


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
