"""The project of `load.benchmarks.counter`: one model, so that the platform serves it, which nobody watches and nothing retrains."""

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
