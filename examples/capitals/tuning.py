"""A fine-tune of the example's weights by adapters, and its version at the door of language models."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Final

import pyarrow as pa

from examples.capitals.data import CAPITALS, learnt_countries, question
from examples.gpt.tune import from_gguf
from toque.functions.training import Lora, RecipeParams, Trained, fine_tune, serve_fine_tune
from toque.functions.training.llm.job import SIGNATURE
from toque.registry import ModelVersion, Registry, Table, TableSnapshot

__all__ = ["served_fine_tune", "tuned"]

BASE, TUNED, ROWS = "capitals-base", "capitals-tuned", "training/capitals"
PARAMS: Final = RecipeParams(lr=2e-3, epochs=2, batch_size=2, recompute=True)
LENGTH: Final = 256
"""Tokens of a row, which holds five conversations."""


def tuned(registry: Registry, weights: Path) -> Trained:
    """Fine-tune the weights by adapters for a few steps, on questions of which none is in the evaluation set."""
    with tempfile.TemporaryDirectory(prefix="capitals-base-") as place:
        folder = from_gguf(weights, Path(place) / "base")
        registry.create_model(BASE)
        registry.create_version(BASE, folder, signature=SIGNATURE)
    rows = learnt_rows(registry)
    return fine_tune(TUNED, f"{BASE}@1", rows, length=LENGTH, lora=Lora(rank=8, alpha=16.0), params=PARAMS)


def learnt_rows(registry: Registry) -> TableSnapshot:
    """Write the conversations that are learnt: a question, and the city alone as its answer."""
    texts = [
        json.dumps(
            [
                {"role": "user", "content": question(country)},
                {"role": "assistant", "content": CAPITALS[country]},
            ]
        )
        for country in learnt_countries()
    ]
    return Table(registry.store, ROWS).overwrite(pa.table({"messages": texts}))


def served_fine_tune(model: str, base: int, found: Trained) -> ModelVersion:
    """Register the fine-tune as the next version of the served model, as an adapter of its version `base`."""
    assert found.version is not None  # noqa: S101 - it was registered
    return serve_fine_tune(model, base, TUNED, found.version)
