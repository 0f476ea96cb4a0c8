"""A project of one model that adds numbers, a schedule that says when it fires, and functions to make both."""

from __future__ import annotations

import contextlib
import tempfile
import uuid
from datetime import datetime
from pathlib import Path

import torch

from toque.featurestore import Entity, FeatureService, FeatureView, Field, Float64, Int64
from toque.functions import Cron, context, function
from toque.functions.model_formats.program import export_program, save_program
from toque.functions.placement import Placement
from toque.functions.project import ModelDefinition
from toque.registry import AlreadyExists, ModelPolicy, Signature, TensorSpec

MODEL, FIRED = "sum", "tests/fired"
TICK_SECONDS = (0, 30)
SIGNATURE = Signature(
    inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 3])],
    outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1, 1])],
    example={"x": [[1.0, 2.0, 3.0]]},
)

_basket = Entity("basket", join_keys=[Field("basket_id", Int64)])
_items = FeatureView("items", entities=[_basket], schema=[Field("items", Float64)])
FEATURES = [_basket, _items, FeatureService(MODEL, [_items])]
MODELS = [
    ModelDefinition(
        name=MODEL,
        service=MODEL,
        entities="tests/baskets",
        label="label",
        numeric=("items",),
        monitors=(),
        retraining=None,
        governance=ModelPolicy(),
        inspect="0 0 1 1 *",
        placement=Placement(min_replicas=2, max_replicas=2),
    )
]


class Sum(torch.nn.Module):
    """Adds up each row and multiplies the sum."""

    factor: torch.Tensor

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(dim=1, keepdim=True) * self.factor


@function(http=True)
def make_version(factor: float) -> int:
    """Register a version that multiplies its sum by a factor; returns its number."""
    with tempfile.TemporaryDirectory() as folder:
        save_program(export_program(Sum(factor), {"x": torch.rand(2, 3)}), Path(folder) / "model.pt2")
        registry = context().registry()
        with contextlib.suppress(AlreadyExists):
            registry.create_model(MODEL)
        return registry.create_version(MODEL, path=Path(folder), signature=SIGNATURE).version


@function(http=True)
def echo(text: str) -> str:
    """Return a text."""
    return text


@function(schedule=Cron(f"* * * * * {','.join(map(str, TICK_SECONDS))}", tick_as="tick", overlap="queue"))
def note_tick(tick: datetime) -> None:
    """Leave one object in the store for each run of each tick."""
    context().store.create(f"{FIRED}/{tick.isoformat()}/{uuid.uuid4().hex}", b"")
