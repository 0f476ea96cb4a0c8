"""Inputs of the training benchmarks: made-up rows, the columns of 2013's flights, and Llamas with fresh weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from toque.functions.training.llm.texts import Rows
from toque.functions.training.planning import Decoder
from toque.functions.training.tabular.params import TabularParams
from toque.functions.training.tabular.settings import Columns

ROWS, FEATURES, CATEGORIES = 160_000, 25, 6
COLUMNS = Columns([f"x{n}" for n in range(FEATURES)], [f"c{n}" for n in range(CATEGORIES)], "y")
PARAMS = TabularParams(batch_size=4_096, epochs=1_000, patience=1_000)
LEARNT_MONTHS = 3


def synthetic_table() -> pa.Table:
    """Make rows with gaps, skewed numbers and categories of 10 to 1,000 values."""
    generator = np.random.default_rng(0)
    numbers = generator.lognormal(0.0, 1.0, (ROWS, FEATURES))
    codes = [generator.integers(10 * 10 ** (n % 3), size=ROWS) for n in range(CATEGORIES)]
    logit = np.log(numbers[:, :5]).sum(axis=1) * 0.4 + (codes[0] % 3 - 1.0)
    data = {
        name: pa.array(numbers[:, n], mask=generator.random(ROWS) < 0.1)
        for n, name in enumerate(COLUMNS.numeric)
    }
    data |= {name: pa.array([f"v{code}" for code in codes[n]]) for n, name in enumerate(COLUMNS.categorical)}
    at = np.sort(generator.integers(0, 90 * 86_400_000_000, ROWS))
    data["event_timestamp"] = pa.array(at).cast(pa.timestamp("us", "UTC"))
    data["y"] = pa.array((generator.random(ROWS) < 1 / (1 + np.exp(-logit))).astype(float))
    return pa.table(data)


def flight_columns(table: pa.Table) -> Columns:
    """Choose texts as categories and numbers as numeric features, without time and label."""
    kinds = {field.name: field.type for field in table.schema if field.name != "late"}
    numeric = [
        name for name, kind in kinds.items() if pa.types.is_floating(kind) or pa.types.is_integer(kind)
    ]
    texts = [
        name for name, kind in kinds.items() if pa.types.is_string(kind) or pa.types.is_large_string(kind)
    ]
    return Columns(numeric, texts, "late")


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
