"""Registers the models of the platform that fills every panel: arms, a shadow, answers that are no number, and a language model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from toque.featurestore import FeatureStore
from toque.functions.generative import EngineSettings, Prompt, register_generative
from toque.functions.model_formats.program import export_program, save_program
from toque.load.benchmarks.serving.floor import COLUMNS, SmallMlp, small_mlp
from toque.load.benchmarks.training.tabular import synthetic_table
from toque.load.panels.project import ANSWERING, BUYER, CODES, FEATURES, HELPER, KEYED, POOLED
from toque.registry import Access, Registry, Signature, Table, TableSnapshot, TensorSpec, open_store

__all__ = ["KNOWN", "NO_NUMBER", "Prepared", "prepare"]

KNOWN, NO_NUMBER = 8, 7
"""Codes that the model knows, from 0 on, and that for which its answer is no number. A code beyond them is an error."""
_ROWS = 20_000
_FEATURES = ("age", "visits")
_SHARE = 0.25
_SAMPLING = {"temperature": 0, "max_tokens": 24}
_GUARDRAILS = {
    "before": [{"kind": "injection", "action": "flag"}, {"kind": "personal_data", "action": "redact"}]
}
_PLAIN: dict[str, Any] = {"parameters": _SAMPLING, "guardrails": _GUARDRAILS}
_DECLINING: dict[str, Any] = _PLAIN | {
    "messages": [{"role": "system", "content": "You decline every request."}],
    "examples": [
        {"user": "What is the capital of Italy?", "assistant": "I'm sorry, but I can't help with that."},
        {"user": "Name a river.", "assistant": "I'm sorry, but I can't help with that."},
    ],
}


class Codes(torch.nn.Module):
    """Model that looks a code up in a table, of which one entry is no number."""

    values: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer(
            "values", torch.tensor([math.nan if code == NO_NUMBER else code / KNOWN for code in range(KNOWN)])
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Look the codes of (rows, 1) up."""
        return self.values[x[:, 0].long()].unsqueeze(1)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is in the store before the platform starts. caller, viewer: tokens of these roles; rows: to train on."""

    caller: str
    viewer: str
    rows: TableSnapshot


def prepare(store_url: str, folder: Path, weights: Path) -> Prepared:
    """Register every model, define the features and write rows to train on, before a platform signs what it writes.

    weights: GGUF file of a small language model.
    """
    store = open_store(store_url)
    registry = Registry(store, actor="panels")
    answering = _saved(folder / "answering", small_mlp(), COLUMNS)
    codes = _saved(folder / "codes", Codes(), 1)
    keyed = _saved(folder / "keyed", SmallMlp(len(_FEATURES)).eval(), len(_FEATURES))
    champion, other, shadow = (
        _version(registry, ANSWERING, answering, COLUMNS, {"max_batch_rows": "16", "max_batch_wait_ms": "5"})
        for _ in range(3)
    )
    registry.promote(ANSWERING, champion)
    registry.set_traffic(ANSWERING, {"canary": (other, _SHARE)}, shadows=[shadow], reason="panels")
    champion, other = (_version(registry, CODES, codes, 1, {}) for _ in range(2))
    registry.promote(CODES, champion)
    registry.set_traffic(CODES, {"canary": (other, _SHARE)}, reason="panels")
    registry.promote(KEYED, _version(registry, KEYED, keyed, 2, {"feature_service": BUYER}, _FEATURES))
    for name in POOLED:
        registry.promote(name, _version(registry, name, answering, COLUMNS, {}))
    _language_model(registry, weights)
    FeatureStore(store).apply(FEATURES)
    rows = Table(store, "rows").append(synthetic_table().slice(0, _ROWS))
    access = Access(store, actor="panels")
    return Prepared(access.create_token("caller", "caller"), access.create_token("viewer", "viewer"), rows)


def _saved(folder: Path, module: torch.nn.Module, columns: int) -> Path:
    folder.mkdir(parents=True)
    save_program(export_program(module, {"x": torch.ones(2, columns)}), folder / "model.pt2")
    return folder


def _version(
    registry: Registry,
    model: str,
    folder: Path,
    columns: int,
    tags: dict[str, str],
    names: tuple[str, ...] = (),
) -> int:
    """Register another version of a model; returns its number. names: of its columns, for requests by key."""
    registry.create_model(model, exist_ok=True)
    spec = TensorSpec(name="x", datatype="FP32", shape=[-1, columns], columns=list(names) or None)
    signature = Signature(
        inputs=[spec],
        outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1, 1])],
        example={"x": [[1.0] * columns]},
    )
    return registry.create_version(model, path=folder, signature=signature, tags=tags).version


def _language_model(registry: Registry, weights: Path) -> None:
    """Register the language model with a prompt, and one that declines as an arm beside it."""
    settings = EngineSettings(context_length=512, slots=2)
    prompt = Prompt.model_validate(_PLAIN)
    first = register_generative(registry, HELPER, weights=weights, settings=settings, prompt=prompt).version
    prompt = Prompt.model_validate(_DECLINING)
    other = register_generative(registry, HELPER, prompt=prompt, keep=first).version
    registry.promote(HELPER, first)
    registry.set_traffic(HELPER, {"declining": (other, _SHARE)}, reason="panels")
