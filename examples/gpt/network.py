"""Decoder-only transformer network over bytes.

Source: Radford et al., Language Models are Unsupervised Multitask Learners, 2019; pre-normalised blocks, learnt positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from toque.functions.training.loop.first_weights import reset

VOCABULARY = 256
_DEVIATION = 0.02


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
