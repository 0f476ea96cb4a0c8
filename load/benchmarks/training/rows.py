"""Rows that trainings of benchmarks learn from: made-up ones with gaps and categories, and the columns of 2013's flights."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from toque.functions.training.params import TabularParams
from toque.functions.training.tabular.columns import Columns

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
