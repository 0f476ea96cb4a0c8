"""Llamas with fresh weights and random tokens, for benchmarks of the platform's training loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from toque.functions.training.llm.texts import Rows
from toque.functions.training.planning import Decoder


def network(model: Decoder, length: int) -> nn.Module:
    """Make a decoder with weights that are the same each time, in float32."""
    from transformers import AutoModelForCausalLM, LlamaConfig  # late: the extra `llm`

    config = LlamaConfig(
        num_hidden_layers=model.layers, hidden_size=model.width, num_attention_heads=model.heads,
        num_key_value_heads=model.key_heads, head_dim=model.head_width, intermediate_size=model.inner,
        vocab_size=model.vocabulary, max_position_embeddings=length, tie_word_embeddings=model.tied,
    )  # fmt: skip
    auto: Any = AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net: nn.Module = auto.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    return net.train()


def random_rows(model: Decoder, count: int, length: int) -> Rows:
    """Draw rows of tokens, the same each time."""
    ids = torch.randint(model.vocabulary, (count, length), generator=torch.Generator().manual_seed(0))
    return Rows(ids, ids, torch.arange(length).expand_as(ids))
