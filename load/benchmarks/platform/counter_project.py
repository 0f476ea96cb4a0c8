"""Project of `load.benchmarks.platform.counter`: one model to serve, without monitors or retraining."""

from functions.project import ModelDefinition

FEATURES: list[object] = []
MODELS = [
    ModelDefinition(
        name="mlp",
        service="none",
        entities="none",
        label="y",
        numeric=("x",),
        monitors=(),
        retraining=None,
    )
]
