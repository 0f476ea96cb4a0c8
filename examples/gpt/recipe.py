"""Recipe of the language model: network, text and signature; its fields are the options of a training."""

from __future__ import annotations

import hashlib
from typing import Self

from pydantic import Field, model_validator
from torch import nn

from examples.gpt.data import Windows, notes
from examples.gpt.network import VOCABULARY, Gpt, initialise
from toque.functions.training import Recipe
from toque.functions.training.loop.first_weights import FirstWeights, Initialised
from toque.registry import Signature, TensorSpec


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
