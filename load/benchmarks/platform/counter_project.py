"""Project of `toque.load.benchmarks.platform.counter`: one model to serve, without monitors or retraining."""

from toque.load.unmonitored import unmonitored

FEATURES: list[object] = []
MODELS = [unmonitored("mlp")]
