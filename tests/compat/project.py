"""The user's project behind the stored platform: features, models and a scorer, by the public names alone.

The store names this module and what is in it, so both must stay where they are; its functions are in `tasks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from tests.compat import tasks
from toque.featurestore import (
    Aggregation,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    Float64,
    InRange,
    OnDemandFeatureView,
    RequestSource,
    String,
    Windows,
    on_demand_feature_view,
)
from toque.functions.evaluation import Gate
from toque.functions.monitoring import DriftMonitor, PerformanceMonitor, QualityMonitor
from toque.functions.project import ModelDefinition
from toque.functions.retraining.policy import RetrainingPolicy
from toque.functions.retraining.windows import TrainingWindow
from toque.functions.rollout import Guardrail, RolloutPolicy, Slo
from toque.functions.training import TabularParams
from toque.registry import ModelPolicy

DAY = timedelta(days=1)
START = datetime(2013, 1, 1, tzinfo=UTC)
SERVED_FROM = START + 14 * DAY
NOW = START + 26 * DAY
"""When the store was closed, on the platform's clock."""

item = Entity("item")
shop = Entity("shop")
state = FeatureView(
    "state",
    [item],
    [Field("x", Float64), Field("kind", String)],
    expectations=[InRange("x", least=-100, most=100)],
)
visits = FeatureView(
    "visits",
    [shop],
    source=Windows([Aggregation("count", 2 * DAY), Aggregation("mean", 2 * DAY, "spent")], every=DAY),
)
ask = RequestSource("ask", [Field("limit", Float64)])


@on_demand_feature_view(sources=[state[["x"]], ask], schema=[Field("above", Float64)])
def above(inputs: Any) -> Any:
    """How far a value is above the asker's limit."""
    return {"above": inputs["x"] - inputs["limit"]}


FEATURES: list[Entity | FeatureView | OnDemandFeatureView | FeatureService] = [
    item,
    shop,
    state,
    visits,
    above,
    FeatureService("late", [state]),
    FeatureService("full", [state, visits, above]),
]

ROLLOUT = RolloutPolicy(
    burn_in=30,
    shadow_min_labels=60,
    planned_labels=200,
    slos=(Slo(name="answers", target=0.99),),
    guardrails=(Guardrail(name="tips", source="table", margin=5.0),),
)
PERFORMANCE = PerformanceMonitor(lookback=14 * DAY)
DRIFT = DriftMonitor(window=3, lookback=14 * DAY)
QUALITY = QualityMonitor(lookback=14 * DAY)
MODELS = [
    ModelDefinition(
        name="late",
        service="late",
        entities="items",
        label="late",
        numeric=("x",),
        categorical=("kind",),
        training=TabularParams(hidden=(8,), epochs=3, batch_size=64, lr=0.02, min_category_rows=2),
        gate=Gate(max_log_loss_ratio={"constant": 2.0}, max_ece=None, min_rows=20),
        governance=ModelPolicy(guarded=frozenset({"champion"}), gates=("offline",)),
        monitors=(PERFORMANCE, DRIFT, QUALITY),
        rollout=ROLLOUT,
        retraining=RetrainingPolicy(
            windows=(TrainingWindow(name="recent", days=20),), max_champion_ratio=None, settle=DAY
        ),
    )
]


class Weighted:
    """A model in a class of the project: a sum of its inputs, times a weight of its version's files."""

    def load(self, folder: Path) -> None:
        self._weight = float((folder / "weight.txt").read_text())

    def predict(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"price": (inputs["numeric"].sum(axis=1, keepdims=True) * self._weight).astype(np.float32)}


SCORERS = {"weighted": Weighted}
FUNCTIONS = tasks  # imported with the project, and so declared
