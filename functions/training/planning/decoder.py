"""Sizes of a decoder-only transformer, read from the `config.json` of a Hugging Face folder, and what follows from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NAMES = {
    "layers": ("num_hidden_layers", "n_layer"),
    "width": ("hidden_size", "n_embd"),
    "heads": ("num_attention_heads", "n_head"),
    "vocabulary": ("vocab_size",),
}
_PLAIN = ("gpt2", "gpt_neox", "opt", "bloom")  # families whose block has two matrices in its MLP, not three
_MLP = 4  # inner width of the MLP over the width, where a configuration does not say it


@dataclass(frozen=True, slots=True)
class Decoder:
    """Sizes of a decoder-only transformer. key_heads: of keys and values; inner: width of the MLP; gated: whether it has a third matrix.

    tied: whether the last layer is the embedding; positions: learnt ones.
    """

    layers: int
    width: int
    heads: int
    key_heads: int
    head_width: int
    inner: int
    vocabulary: int
    gated: bool = True
    tied: bool = False
    positions: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Decoder:
        """Read the sizes from a configuration. Raises: ValueError, naming the field that is missing or not a size."""
        size = {name: _size(config, fields) for name, fields in _NAMES.items()}
        gated = config.get("model_type") not in _PLAIN
        if config.get("num_local_experts") or config.get("num_experts"):
            raise ValueError(
                f"model_type={config.get('model_type')!r} has experts: only dense decoders are planned"
            )
        return cls(
            **size,
            key_heads=int(config.get("num_key_value_heads") or size["heads"]),
            head_width=int(config.get("head_dim") or size["width"] // size["heads"]),
            inner=int(config.get("intermediate_size") or config.get("n_inner") or _MLP * size["width"]),
            gated=gated,
            tied=bool(config.get("tie_word_embeddings", config.get("model_type") == "gpt2")),
            positions=int(config.get("n_positions") or 0),
        )

    @classmethod
    def read(cls, path: Path) -> Decoder:
        """Read a `config.json`, or that of a folder. Raises: ValueError if there is none, or it is none of a decoder."""
        file = path / "config.json" if path.is_dir() else path
        try:
            return cls.of(json.loads(file.read_text()))
        except FileNotFoundError:
            raise ValueError(f"{file}: no such file; give a Hugging Face folder or its config.json") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}: no JSON: {error}") from error

    @property
    def block_parameters(self) -> int:
        """Number of weights in the matrices of one block."""
        attention = self.width * self.head_width * (2 * self.heads + 2 * self.key_heads)
        return attention + self.width * self.inner * (3 if self.gated else 2)

    @property
    def outer_parameters(self) -> int:
        """Number of weights outside the blocks: embedding, positions and last layer."""
        tables = 1 if self.tied else 2
        return self.width * (self.vocabulary * tables + self.positions)

    @property
    def parameters(self) -> int:
        """Number of weights; norms and biases, which are few, are left out."""
        return self.layers * self.block_parameters + self.outer_parameters

    def adapters(self, rank: int) -> int:
        """Number of weights in low-rank adapters of all linear layers of the blocks."""
        keys = self.key_heads * self.head_width
        queries = self.heads * self.head_width
        shapes = [(self.width, queries), (self.width, keys), (self.width, keys), (queries, self.width)]
        shapes += [(self.width, self.inner)] * (2 if self.gated else 1) + [(self.inner, self.width)]
        return self.layers * rank * sum(a + b for a, b in shapes)

    def token_flops(self, length: int, *, tensor: int = 1) -> float:
        """Operations of a token's forward pass: two a weight, and attention to half of `length` tokens on average.

        tensor: how many cards split each block; of one of them.
        """
        return self.block_flops(length, tensor=tensor) + 2.0 * self.width * self.vocabulary

    def block_flops(self, length: int, *, tensor: int = 1) -> float:
        """Operations of a token's forward pass through all blocks, which are those that `recompute` makes once more."""
        return 2.0 * self.layers * (self.block_parameters + self.heads * self.head_width * length) / tensor

    def splits_into(self, tensor: int) -> bool:
        """Whether so many cards share the heads and the inner width of each block evenly."""
        return not any(each % tensor for each in (self.heads, self.key_heads, self.inner))

    @property
    def block_width_activations(self) -> int:
        """Numbers of `block_activations` that are as wide as the model: what its two norms keep."""
        return 6 * self.width

    @property
    def block_activations(self) -> int:
        """Numbers that a block keeps of a token for its gradients, where attention keeps no matrix of scores.

        Two norms keep input, scaled and output; attention keeps query, its own keys and values, and its output twice; the MLP
        keeps what each matrix gave, the activation, and the product.
        """
        attention = self.head_width * (3 * self.heads + 2 * self.key_heads)
        return self.block_width_activations + attention + self.inner * (4 if self.gated else 2)


def _size(config: Mapping[str, Any], fields: tuple[str, ...]) -> int:
    value = next((config[field] for field in fields if field in config), None)
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"config.json: {' or '.join(fields)} is {value!r}; want a whole number above 0")
    return value
