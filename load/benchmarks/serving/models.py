"""Fixtures of the serving benchmarks: registered models, traffic splits, and features read by key."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import torch

from toque.featurestore import Entity, FeatureService, FeatureStore, FeatureView, Field, Float64
from toque.functions.model_formats.program import export_program, save_program
from toque.load.benchmarks.serving.floor import COLUMNS, small_mlp
from toque.registry import Access, Registry, Signature, TensorSpec, open_store

WIDE, LONG_ROW, FEATURES = 2_048, 500, 40
SERVICE, KEY = "forty_features", "k1"
FEATURE_NAMES = [f"f{n:02}" for n in range(FEATURES)]
_VIEWS = {f"view_{n}": FEATURE_NAMES[10 * n : 10 * n + 10] for n in range(FEATURES // 10)}


class WideMlp(torch.nn.Module):
    """MLP of 8.4 million weights, which reading dominates for one row as for many."""

    def __init__(self) -> None:
        super().__init__()
        widths = (COLUMNS, WIDE, WIDE, WIDE, 1)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(*pair) for pair in itertools.pairwise(widths))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the probabilities (rows, 1) of `x` (rows, 20)."""
        *hidden, last = self.layers
        for layer in hidden:
            x = torch.relu(layer(x))
        return torch.sigmoid(last(x))


@dataclass(frozen=True, slots=True)
class BenchmarkModel:
    """Model that the benchmark serves.

    tags: of its versions; arms: shares of further versions; shadow: whether one more listens.
    """

    module: torch.nn.Module
    tags: dict[str, str] = field(default_factory=dict)
    arms: tuple[float, ...] = ()
    shadow: bool = False
    columns: int = COLUMNS

    def signature(self) -> Signature:
        """Describe its rows, by the names of the features where it is asked by key."""
        names = FEATURE_NAMES if "feature_service" in self.tags else None
        return Signature(
            inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, self.columns], columns=names)],
            outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1, 1])],
            example={"x": [[0.1] * self.columns]},
        )


def split_models() -> dict[str, BenchmarkModel]:
    """Make the models of the small network: a 90/9/1 split, and one with a shadow."""
    return {
        "mlp-split": BenchmarkModel(small_mlp(), arms=(0.09, 0.01)),
        "mlp-split-shadow": BenchmarkModel(small_mlp(), arms=(0.09, 0.01), shadow=True),
    }


def keyed_models() -> dict[str, BenchmarkModel]:
    """Make two models of 40 features: one that is sent them, one that looks them up."""
    module = small_mlp(FEATURES)
    return {
        "forty": BenchmarkModel(module, columns=FEATURES),
        "forty-by-key": BenchmarkModel(module, {"feature_service": SERVICE}, columns=FEATURES),
    }


def define_features(store_url: str, redis_url: str | None = None) -> FeatureStore:
    """Define forty features in four views, if they are not yet; before a platform starts, which signs what it writes."""
    features, entity = (
        FeatureStore(open_store(store_url), redis_url=redis_url),
        Entity("key", join_keys=["key"]),
    )
    views = [
        FeatureView(view, entities=[entity], schema=[Field(name, Float64) for name in names], ttl=None)
        for view, names in _VIEWS.items()
    ]
    features.apply([entity, *views, FeatureService(SERVICE, features=views)])
    return features


def fill_features(store_url: str, redis_url: str) -> None:
    """Write forty features in four views to Redis, one row each."""
    features, now = (
        define_features(store_url, redis_url),
        pa.array([datetime.now(UTC)], pa.timestamp("us", "UTC")),
    )
    for view, names in _VIEWS.items():
        row = pa.table({"key": [KEY], "event_timestamp": now, **{name: [0.5] for name in names}})
        features.push(view, row, to="online")


def register(store_url: str, folder: Path, models: dict[str, BenchmarkModel]) -> str:
    """Register the models and set their traffic; returns a token that may predict."""
    store = open_store(store_url)
    registry = Registry(store, actor="bench")
    for name, model in models.items():
        registry.create_model(name)
        champion, *others = [
            another_version(registry, folder, name, model) for _ in range(1 + len(model.arms) + model.shadow)
        ]
        registry.promote(name, champion)
        if others:
            arms = {f"arm-{n}": (others[n], share) for n, share in enumerate(model.arms)}
            shadows = [others[-1]] if model.shadow else []
            registry.set_traffic(name, arms, shadows=shadows, reason="benchmark")
    return Access(store, actor="bench").create_token("bench", "predictor")


def another_version(registry: Registry, folder: Path, name: str, model: BenchmarkModel) -> int:
    """Register a version of a model that the registry knows; a network is exported once to `folder`. Returns its number."""
    path = folder / str(id(model.module))
    if not path.exists():
        path.mkdir(parents=True)
        example = torch.full((2, model.columns), 0.1)
        save_program(export_program(model.module, {"x": example}), path / "model.pt2")
    return registry.create_version(name, path=path, signature=model.signature(), tags=model.tags).version
