"""Project of the soak: a model in two replicas, one that is retrained, and one that is asked by key."""

from __future__ import annotations

from functions.placement import Placement
from functions.project import ModelDefinition

FEATURES: list[object] = []
STEADY, RETRAINED, KEYED = "mlp", "tabular", "forty-by-key"


def _model(name: str, replicas: int) -> ModelDefinition:
    return ModelDefinition(
        name=name,
        service="none",
        entities="none",
        label="y",
        numeric=("x",),
        monitors=(),
        retraining=None,
        placement=Placement(min_replicas=replicas, max_replicas=replicas),
    )


MODELS = [_model(STEADY, 2), _model(RETRAINED, 1), _model(KEYED, 1)]
