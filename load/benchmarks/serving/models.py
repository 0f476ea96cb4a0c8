"""Fixtures of the serving benchmarks: registered models, traffic splits, and features read by key."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import torch

from toque.featurestore import Entity, FeatureService, FeatureStore, FeatureView, Field, Float64
from toque.functions.model_formats.program import export_program, save_program
from toque.load.benchmarks.serving.floor import COLUMNS, SmallMlp, small_mlp
from toque.registry import Access, ModelVersion, ObjectStore, Registry, Signature, TensorSpec, open_store

WIDE = 2_048
ROW = [round(0.1 * i, 1) for i in range(COLUMNS)]
FEATURES = 40
LONG_ROW = 500
SERVICE = "forty_features"
KEY = "k1"


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


def split_models() -> dict[str, BenchmarkModel]:
    """Make the models of the small network: a 90/9/1 split, and one with a shadow."""
    return {
        "mlp-split": BenchmarkModel(small_mlp(), arms=(0.09, 0.01)),
        "mlp-split-shadow": BenchmarkModel(small_mlp(), arms=(0.09, 0.01), shadow=True),
    }


def long_row_model() -> dict[str, BenchmarkModel]:
    """Make the model with many inputs."""
    torch.manual_seed(0)
    return {"long-row": BenchmarkModel(SmallMlp(LONG_ROW).eval(), columns=LONG_ROW)}


def keyed_models() -> dict[str, BenchmarkModel]:
    """Make two models of 40 features: one that is sent them, one that looks them up."""
    torch.manual_seed(0)
    module = SmallMlp(FEATURES).eval()
    return {
        "forty": BenchmarkModel(module, columns=FEATURES),
        "forty-by-key": BenchmarkModel(module, {"feature_service": SERVICE}, columns=FEATURES),
    }


def key_body() -> bytes:
    """Encode a request by entity key."""
    return json.dumps({"inputs": [], "parameters": {"entities": [{"key": KEY}]}}).encode()


def define_features(store_url: str, redis_url: str | None = None) -> FeatureStore:
    """Define forty features in four views, if they are not yet; before a platform starts, which signs what it writes."""
    features = FeatureStore(open_store(store_url), redis_url=redis_url)
    entity, names = Entity("key", join_keys=["key"]), feature_names()
    views = [
        FeatureView(f"view_{n}", entities=[entity], schema=[Field(name, Float64) for name in part], ttl=None)
        for n, part in enumerate([names[at : at + 10] for at in range(0, FEATURES, 10)])
    ]
    features.apply([entity, *views, FeatureService(SERVICE, features=views)])
    return features


def fill_features(store_url: str, redis_url: str) -> None:
    """Write forty features in four views to Redis, one row each."""
    features = define_features(store_url, redis_url)
    now = pa.array([datetime.now(UTC)], pa.timestamp("us", tz="UTC"))
    for n in range(FEATURES // 10):
        values = {name: [0.5] for name in feature_names()[10 * n : 10 * n + 10]}
        row = pa.table({"key": [KEY], "event_timestamp": now, **values})
        features.push(f"view_{n}", row, to="online")


def feature_names() -> list[str]:
    """Name the columns of the 40 features."""
    return [f"f{n:02}" for n in range(FEATURES)]


def register(store_url: str, folder: Path, models: dict[str, BenchmarkModel]) -> str:
    """Register the models and set their traffic; returns a token that may predict."""
    store = open_store(store_url)
    registry = Registry(store, actor="bench")
    for name, model in models.items():
        registry.create_model(name)
        champion, *others = [
            another_version(registry, folder / f"{name}-{n}", name, model)
            for n in range(1 + len(model.arms) + model.shadow)
        ]
        registry.promote(name, champion.version)
        if others:
            arms = {f"arm-{n}": (others[n].version, share) for n, share in enumerate(model.arms)}
            shadows = [others[-1].version] if model.shadow else []
            registry.set_traffic(name, arms, shadows=shadows, reason="benchmark")
    return _token(store)


def another_version(registry: Registry, path: Path, name: str, model: BenchmarkModel) -> ModelVersion:
    """Register a version of a model that the registry knows."""
    rows = [[0.1] * model.columns, [0.2] * model.columns]
    keyed = "feature_service" in model.tags
    signature = Signature(
        inputs=[
            TensorSpec(
                name="x",
                datatype="FP32",
                shape=[-1, model.columns],
                columns=feature_names() if keyed else None,
            )
        ],
        outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1, 1])],
        example={"x": rows[:1]},
    )
    path.mkdir(parents=True)
    save_program(export_program(model.module, {"x": torch.tensor(rows)}), path / "model.pt2")
    return registry.create_version(name, path=path, signature=signature, tags=model.tags)


def _token(store: ObjectStore) -> str:
    return Access(store, actor="bench").create_token("bench", "predictor")
